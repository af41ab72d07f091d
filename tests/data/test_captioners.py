import base64
import contextlib
import http.server
import io
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data import captioners, captioning
from one4d_jax.data.captioners import Gemini, Rejected, Unavailable
from one4d_jax.errors import ConfigError, UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), dtype=np.uint8)
FRAMES[1] = (250, 10, 10)
TEXT = 'A red ball rolls over a grey floor in soft daylight. The camera follows it.'


def answer(text=TEXT, finish='STOP'):
  parts = [{'text': 'Let me think.', 'thought': True}, {'text': text}] if text else []
  return 200, {'candidates': [{'content': {'role': 'model', 'parts': parts}, 'finishReason': finish}]}


def refusal(code, status, *details, message='no'):
  return code, {'error': {'code': code, 'status': status, 'message': message, 'details': list(details)}}


@pytest.fixture
def service(monkeypatch):
  """Speaks generateContent: a list of replies (status, JSON or bytes[, headers or seconds]), and what was asked."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      server.asked.append((self.path, dict(self.headers), body))
      code, content, *extra = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
      for item in extra:
        if isinstance(item, float):
          time.sleep(item)
      content = content if isinstance(content, bytes) else json.dumps(content).encode()
      with contextlib.suppress(OSError):  # the client may have hung up
        self.send_response(code)
        for name, value in (extra[0] if extra and isinstance(extra[0], dict) else {}).items():
          self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.asked, server.replies = [], []
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
  thread.start()
  monkeypatch.setenv('GOOGLE_GEMINI_BASE_URL', f'http://127.0.0.1:{server.server_port}')
  monkeypatch.setenv('GEMINI_API_KEY', 'secret-of-the-test')
  monkeypatch.delenv('GOOGLE_API_KEY', raising=False)
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


def test_what_is_sent(service):
  service.replies = [answer()]
  gemini = Gemini('some-model')
  assert gemini(FRAMES, 4.0) == TEXT  # and not the thought
  assert gemini.name == 'gemini:some-model'
  ((path, headers, body),) = service.asked
  assert path.endswith('/models/some-model:generateContent')
  assert {k.lower(): v for k, v in headers.items()}['x-goog-api-key'] == 'secret-of-the-test' and 'secret' not in path
  *pictures, prompt = body['contents'][0]['parts']
  assert '0.25 seconds apart' in prompt['text'] and '{' not in prompt['text']
  assert [p['inlineData']['mime_type'] for p in pictures] == ['image/jpeg'] * 3
  sent = [np.asarray(Image.open(io.BytesIO(base64.urlsafe_b64decode(p['inlineData']['data'])))) for p in pictures]
  assert {s.shape for s in sent} == {(24, 40, 3)}
  assert abs(sent[1].astype(int) - FRAMES[1]).max() < 4  # in the order of time


def test_the_prompt():
  text = captioners.PROMPT
  for word in ('60 to 120 words', 'camera', 'setting', 'light', 'the video shows'):
    assert word in text
  assert captioners.PROMPT_VERSION.isalnum() and len(captioners.PROMPT_VERSION) == 8


RETRY = {'@type': 'type.googleapis.com/google.rpc.RetryInfo', 'retryDelay': '17.5s'}
LATER = [
  (refusal(429, 'RESOURCE_EXHAUSTED', {'@type': 'QuotaFailure'}, RETRY), 17.5, '429 RESOURCE_EXHAUSTED'),
  ((*refusal(429, 'RESOURCE_EXHAUSTED'), {'Retry-After': '12'}), 12.0, '429'),
  ((*refusal(503, 'UNAVAILABLE', message='The model is overloaded'), {'Retry-After': 'tomorrow'}), 0.0, 'overloaded'),
  ((502, b'<html>Bad gateway</html>'), 0.0, '502'),
  (refusal(408, 'DEADLINE'), 0.0, '408'),
  ((200, b'{"candidates": [{"con'), 0.0, 'cannot be understood'),
  ((200, {'candidates': 3}), 0.0, 'cannot be understood'),
]


@pytest.mark.parametrize(('reply', 'after', 'why'), LATER, ids=[str(i) for i in range(len(LATER))])
def test_worth_another_try(service, reply, after, why):
  service.replies = [reply]
  with pytest.raises(Unavailable, match=why) as caught:
    Gemini('m')(FRAMES, 4.0)
  assert caught.value.after == after and '\n' not in str(caught.value)
  assert len(service.asked) == 1  # the client itself does not repeat


NOTHING = [
  ((200, {'promptFeedback': {'blockReason': 'PROHIBITED_CONTENT'}}), 'blocked: PROHIBITED_CONTENT'),
  (answer(text=None, finish='SAFETY'), 'SAFETY'),
  (answer(finish='MAX_TOKENS'), 'cut short: MAX_TOKENS'),
  ((200, {}), 'empty'),
  ((200, b'[]'), 'empty'),
  (refusal(400, 'INVALID_ARGUMENT', message='Unable to process input image'), 'Unable to process'),
]


@pytest.mark.parametrize(('reply', 'why'), NOTHING, ids=[str(i) for i in range(len(NOTHING))])
def test_no_caption_for_this_clip(service, reply, why):
  service.replies = [reply]
  with pytest.raises(Rejected, match=why):
    Gemini('m')(FRAMES, 4.0)


def test_an_answer_without_text_is_an_empty_one(service):
  service.replies = [answer(text=None)]
  assert Gemini('m')(FRAMES, 4.0) == ''


HOPELESS = [
  (refusal(403, 'PERMISSION_DENIED'), 'check GEMINI_API_KEY'),
  (refusal(401, 'UNAUTHENTICATED'), 'check GEMINI_API_KEY'),
  (refusal(400, 'INVALID_ARGUMENT', {'reason': 'API_KEY_INVALID'}), 'check GEMINI_API_KEY'),
  (refusal(400, 'FAILED_PRECONDITION', message='User location is not supported'), 'User location'),
  (refusal(404, 'NOT_FOUND'), "no model 'm'.*gemini:MODEL"),
]


@pytest.mark.parametrize(('reply', 'why'), HOPELESS, ids=[str(i) for i in range(len(HOPELESS))])
def test_no_clip_would_fare_better(service, reply, why):
  service.replies = [reply]
  with pytest.raises(UserError, match=why) as caught:
    Gemini('m')(FRAMES, 4.0)
  assert 'secret' not in str(caught.value) and '\n' not in str(caught.value)


def test_a_slow_answer_and_a_service_that_is_down(service, monkeypatch):
  service.replies = [(*answer(), 1.0)]
  start = time.monotonic()
  with pytest.raises(Unavailable, match='Timeout'):
    Gemini('m', timeout=0.2)(FRAMES, 4.0)
  assert time.monotonic() - start < 0.9
  monkeypatch.setenv('GOOGLE_GEMINI_BASE_URL', 'http://127.0.0.1:9')
  with pytest.raises(Unavailable, match='ConnectError'):
    Gemini('m')(FRAMES, 4.0)


def test_a_run_through_a_bad_hour(service, tmp_path, monkeypatch):
  monkeypatch.setattr(captioning, 'FIRST_WAIT', 0.01)
  quota = refusal(429, 'RESOURCE_EXHAUSTED', {**RETRY, 'retryDelay': '0.1s'})
  down, blocked = refusal(503, 'UNAVAILABLE'), (200, {'promptFeedback': {'blockReason': 'SAFETY'}})
  service.replies = [quota, down, (200, b'{'), blocked, answer(f'"{TEXT}"')]
  clips = [(f'clip {i}', lambda: (FRAMES, 16.0)) for i in range(6)]
  store = captioning.Captions(tmp_path / 'captions.jsonl')
  report = captioning.write_captions(clips, Gemini('m'), store, workers=2)
  assert report.written == 5 and list(report.failed.values()) == ['blocked: SAFETY']
  assert len(service.asked) == 6 + 3
  service.replies = [refusal(403, 'PERMISSION_DENIED')]
  with pytest.raises(UserError, match='check GEMINI_API_KEY'):
    captioning.write_captions(clips, Gemini('m'), store, workers=2)
  assert len(service.asked) == 6 + 3 + 1
  assert {row['caption'] for row in map(json.loads, store.path.read_text().splitlines())} == {TEXT}


def test_make(monkeypatch):
  for name in ('GEMINI_API_KEY', 'GOOGLE_API_KEY'):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(UserError, match='GEMINI_API_KEY'):
    captioners.make('gemini')
  monkeypatch.setenv('GOOGLE_API_KEY', 'key')
  assert captioners.make('gemini').name == captioners.make('gemini:').name == f'gemini:{captioners.GEMINI}'
  assert captioners.make('gemini:tuned/a:b').name == 'gemini:tuned/a:b'
  for spec in ('', 'gpt', 'transformers', 'transformers:'):
    with pytest.raises(ConfigError, match='gemini:MODEL or transformers:REPO_OR_FOLDER'):
      captioners.make(spec)


WORDS = ['a', 'red', 'ball', 'rolls', 'over', 'the', 'floor', 'camera', 'moves', '.']


@pytest.fixture(scope='module')
def tiny_llava(tmp_path_factory):
  """A LLaVA of a few thousand random weights with its own tokenizer of words."""
  tokenizers, transformers = pytest.importorskip('tokenizers'), pytest.importorskip('transformers')
  words = ['<unk>', '<s>', '</s>', '<pad>', '<image>', *WORDS]
  vocabulary = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<unk>')
  tokenizer = tokenizers.Tokenizer(vocabulary)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    unk_token='<unk>',
    bos_token='<s>',
    eos_token='</s>',
    pad_token='<pad>',
    additional_special_tokens=['<image>'],
  )
  small = {'hidden_size': 16, 'intermediate_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2}
  config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**small, image_size=28, patch_size=14),
    text_config=transformers.LlamaConfig(
      **small, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=3, max_position_embeddings=2048
    ),
    image_token_id=words.index('<image>'),
  )
  processor = transformers.LlavaProcessor(
    image_processor=transformers.CLIPImageProcessorPil(
      size={'shortest_edge': 28}, crop_size={'height': 28, 'width': 28}
    ),
    tokenizer=tokenizer,
    patch_size=14,
    num_additional_image_tokens=1,
    vision_feature_select_strategy='default',
    chat_template="{% for part in messages[0]['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}",
  )
  folder = tmp_path_factory.mktemp('models') / 'tiny-llava'
  transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
  processor.save_pretrained(folder)
  return folder


def test_local_model(tiny_llava, monkeypatch):
  local = captioners.make(f'transformers:{tiny_llava}')
  assert local.name == 'transformers:tiny-llava'  # and not where it lies
  seen, generate = [], local._model.model.generate

  def generate_end(**inputs):
    seen.append(inputs)
    return generate(**{**inputs, 'forced_eos_token_id': 2, 'max_new_tokens': 5, 'min_new_tokens': 4})

  monkeypatch.setattr(local._model.model, 'generate', generate_end)
  text = local(FRAMES, 4.0)
  assert set(text.split()) <= set(WORDS)  # no prompt, no marks
  assert len(seen[0]['pixel_values']) == 3 and (seen[0]['input_ids'] == 4).sum() == 3 * 2 * 2
  assert seen[0]['max_new_tokens'] == 512 and seen[0]['do_sample'] is False
  red = seen[0]['pixel_values'][1]
  assert red[0].mean() > 1 and red[1].mean() < -1
  assert local(FRAMES, 4.0) == text

  def generate_alone(**inputs):
    assert local._turn.locked()
    return generate_end(**inputs)

  monkeypatch.setattr(local._model.model, 'generate', generate_alone)
  assert local(FRAMES, 4.0) == text


def test_a_local_model_that_is_none(tmp_path):
  pytest.importorskip('transformers')
  with pytest.raises(UserError, match=r'no captions from .*folder or hub name'):
    captioners.make(f'transformers:{tmp_path}')
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(UserError, match=r'no captions from .*folder or hub name'):
    captioners.make(f'transformers:{tmp_path}')


def test_nothing_heavy_is_loaded():
  code = (
    'import sys, one4d_jax.data.captioners, one4d_jax.data.captioning;'
    "print([m for m in ('jax', 'torch', 'transformers', 'google.genai') if m in sys.modules])"
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'
