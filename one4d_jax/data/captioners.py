"""Vision-language models that describe a clip: Google's API, or a local model of Transformers."""

import hashlib
import io
import os
import pathlib
import re
import threading
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from one4d_jax.errors import ConfigError, UserError

PROMPT = (
  'These pictures are one shot in order, {seconds:.2g} seconds apart. Describe the shot in 60 to 120 words of plain'
  ' English, one paragraph in the present tense: the subjects and how they look, what they do and how they move, the'
  ' setting and the light. End with exactly one sentence on how the camera moves, or that it stays still. Say only what'
  ' can be seen. Do not write "the video shows" or mention a video, pictures or frames, and do not count frames. Answer'
  ' with the description alone.'
)
PROMPT_VERSION = hashlib.sha256(PROMPT.encode()).hexdigest()[:8]

GEMINI = 'gemini-3.5-flash'  # gemini-2.0-flash, which the paper used, was shut down in June 2026

Video = UInt8[np.ndarray, 'n H W 3']


class Captioner(Protocol):
  """Describes a few frames of a clip, `fps` of which pass in a second.

  Raises Rejected, Unavailable, or UserError where no clip would fare better.
  """

  name: str

  def __call__(self, frames: Video, fps: float) -> str: ...


class Rejected(Exception):
  """There is no caption for this clip, and asking again would not help."""


class Unavailable(Exception):
  """No answer for now. `after` is how many seconds the service asks to wait, where it says so."""

  def __init__(self, reason: str, after: float = 0.0):
    super().__init__(reason)
    self.after = after


def make(spec: str) -> Captioner:
  """'gemini', 'gemini:MODEL' or 'transformers:REPO_OR_FOLDER'. Raises ConfigError, and UserError as the classes do."""
  kind, _, model = spec.partition(':')
  if kind == 'gemini':
    return Gemini(model or GEMINI)
  if kind == 'transformers' and model:
    return LocalModel(model)
  raise ConfigError(f'captions cannot come from {spec!r}; give gemini, gemini:MODEL or transformers:REPO_OR_FOLDER')


class Gemini:
  """Google's API. Raises UserError if the key or the package is missing."""

  def __init__(self, model: str = GEMINI, *, timeout: float = 120.0):
    key = os.environ.get('GEMINI_API_KEY') or os.environ.get('GOOGLE_API_KEY')
    if not key:
      raise UserError('captions by Gemini need an API key; set the environment variable GEMINI_API_KEY')
    try:
      import httpx2
      from google import genai
    except ImportError as error:
      raise UserError(f"captions by Gemini: {error}; pip install 'one4d_jax[captions]'") from error
    self.name, self._model = f'gemini:{model}', model
    options = genai.types.HttpOptions(timeout=int(timeout * 1000), httpx_client=httpx2.Client(follow_redirects=True))
    self._client = genai.Client(api_key=key, vertexai=False, http_options=options)

  def __call__(self, frames: Video, fps: float) -> str:
    import httpx2
    from google.genai import errors, types

    pictures = [types.Part.from_bytes(data=_jpeg(frame), mime_type='image/jpeg') for frame in frames]
    try:
      answer = self._client.models.generate_content(model=self._model, contents=[*pictures, _prompt(fps)])
    except errors.APIError as error:
      raise self._failure(error) from error
    except httpx2.TransportError as error:
      raise Unavailable(f'no connection: {error!r}') from error
    except (ValueError, AttributeError, TypeError) as error:  # not JSON, or not of the documented form
      raise Unavailable(f'an answer that cannot be understood: {_line(error)}') from error
    if answer.prompt_feedback and answer.prompt_feedback.block_reason:
      raise Rejected(f'blocked: {answer.prompt_feedback.block_reason.value}')
    if not answer.candidates:
      raise Rejected('the answer is empty')
    reason = answer.candidates[0].finish_reason
    if reason and reason.value != 'STOP':
      raise Rejected(f'the answer was cut short: {reason.value}')
    return answer.text or ''

  def _failure(self, error) -> Exception:
    """What an HTTP status other than 200 means for this clip and for the others."""
    reason = f'{error.code} {error.status or ""}: {_line(error.message)}'
    if error.code in (408, 429) or error.code >= 500:
      return Unavailable(reason, _delay(error))
    # a wrong key and a region that is not served have status 400, as a picture that cannot be read
    if error.code in (401, 403) or error.status == 'FAILED_PRECONDITION' or 'API_KEY' in str(error.details):
      return UserError(f'Gemini refuses the API key ({reason}); check GEMINI_API_KEY and the rights of its project')
    if error.code == 404:
      return UserError(f'Gemini has no model {self._model!r} ({reason}); name another as gemini:MODEL')
    return Rejected(reason)


class LocalModel:
  """An image-text-to-text model of Transformers, from a folder or the hub; one clip at a time, on the GPU if any.

  Raises UserError if it cannot be loaded.
  """

  def __init__(self, path: str):
    folder = pathlib.Path(path)
    self.name = f'transformers:{folder.name if folder.is_dir() else path}'
    try:
      import transformers

      self._model = transformers.pipeline(
        'image-text-to-text', path, trust_remote_code=False, model_kwargs={'use_safetensors': True}
      )
    except (ImportError, OSError, ValueError) as error:
      raise UserError(f'no captions from {path} ({_line(error)}); give the folder or hub name of a model') from error
    self._turn = threading.Lock()

  def __call__(self, frames: Video, fps: float) -> str:
    content = [{'type': 'image', 'image': Image.fromarray(frame)} for frame in frames]
    chat = [{'role': 'user', 'content': [*content, {'type': 'text', 'text': _prompt(fps)}]}]
    settings = {'max_new_tokens': 512, 'do_sample': False}
    with self._turn:
      answer = self._model(text=chat, return_full_text=False, generate_kwargs=settings)
    return answer[0]['generated_text']


def _prompt(fps: float) -> str:
  return PROMPT.format(seconds=1 / fps)


def _jpeg(frame: UInt8[np.ndarray, 'H W 3']) -> bytes:
  file = io.BytesIO()
  Image.fromarray(frame).save(file, 'JPEG', quality=90)
  return file.getvalue()


def _line(message: object) -> str:
  """The beginning of a message, on one line."""
  return ' '.join(str(message).split())[:200]


def _delay(error) -> float:
  """Seconds that a Google error asks to wait, in its body or its header; 0 if it does not say."""
  asked = re.search(r"'retryDelay': '([\d.]+)s'", str(error.details))
  if asked:
    return float(asked[1])
  header = error.response.headers.get('retry-after', '') if error.response is not None else ''
  return float(header) if header.isdecimal() else 0.0
