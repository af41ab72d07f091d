"""Text to token ids: Wan's cleaning and the SentencePiece model of umT5, or plain UTF-8 bytes for the tiny model.

Both end a text with the end-of-text id 1, which counts in the length and survives truncation, and pad with 0.
An empty text is the end-of-text alone. The names of special tokens (``</s>``, ``<pad>``, ``<extra_id_0>``) are text
like any other: a prompt cannot end itself.
"""

import dataclasses
import functools
import html
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from one4d_jax.errors import ConfigError, DataError

PAD, EOS = 0, 1


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """``tokenizer(texts) -> (ids int32 [b t], mask bool [b t])`` with ``t = length``.

  Args:
    pieces: the ids of one text, without the end.
    length: of every row, padding included.
    vocab: ids are below it.
    clean: whether texts are cleaned first.
  """

  pieces: Callable[[str], list[int]]
  length: int
  vocab: int
  clean: bool = False

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Raises DataError for anything but a sequence of strings."""
    if isinstance(texts, str | bytes) or not all(isinstance(text, str) for text in texts):
      got = type(texts).__name__ if isinstance(texts, str | bytes) else [type(t).__name__ for t in texts]
      raise DataError(f'the tokenizer takes a list of strings, got {got}')
    ids = np.full((len(texts), self.length), PAD, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
      text = clean_text(text) if self.clean else text
      text = text.encode('utf-8', 'replace').decode('utf-8')  # lone surrogates become '?'
      tokens = [*self.pieces(text)[: self.length - 1], EOS]
      ids[row, : len(tokens)] = tokens
      lengths[row] = len(tokens)
    return ids, np.arange(self.length) < lengths[:, None]


def clean_text(text: str) -> str:
  """As Wan cleans a prompt: wrongly decoded text repaired, HTML entities resolved twice, one space between words."""
  import ftfy

  return ' '.join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def byte_pieces(text: str) -> list[int]:
  """UTF-8 bytes, shifted by 3 past padding, end and unknown."""
  return [byte + 3 for byte in text.encode('utf-8')]


def load(name_or_path: str | pathlib.Path, length: int, *, clean: bool = True) -> Tokenizer:
  """``'bytes'``, or the SentencePiece model of a folder that holds ``spiece.model``.

  Args:
    clean: as Wan and diffusers do; VideoX-Fun does not. ``'bytes'`` takes every text as it is.

  Raises:
    ConfigError: ``length`` leaves no room for the end, or there is no such tokenizer.
    DataError: the model file cannot be read, or belongs to another family of models.
  """
  if length < 1:
    raise ConfigError(f'text length must be at least 1 to hold the end-of-text token, got {length}')
  if name_or_path == 'bytes':
    return Tokenizer(byte_pieces, length, 256 + 3)
  model = pathlib.Path(name_or_path) / 'spiece.model'
  if not model.is_file():
    raise ConfigError(
      f"tokenizer must be 'bytes' or a folder with spiece.model (google/umt5-xxl of a Wan release), "
      f'got {str(name_or_path)!r}'
    )
  import sentencepiece

  try:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
  except (RuntimeError, OSError) as error:
    raise DataError(f'{model} is not a SentencePiece model: {error}') from None
  if (processor.pad_id(), processor.eos_id()) != (PAD, EOS):
    raise DataError(
      f'{model} pads with id {processor.pad_id()} and ends texts with {processor.eos_id()}, where umT5 has {PAD} and '
      f'{EOS}: take the spiece.model of google/umt5-xxl from the Wan release'
    )
  return Tokenizer(functools.partial(_pieces, processor), length, processor.vocab_size(), clean)


def _pieces(processor, text: str) -> list[int]:
  """Characters outside the vocabulary are one unknown a run, as transformers' T5 tokenizer reads them for Wan.

  umT5's model would have SentencePiece spell them in bytes.
  """
  unknown = processor.unk_id()
  ids = [unknown if processor.is_byte(i) else i for i in processor.encode(text)]
  return [i for i, before in zip(ids, [None, *ids], strict=False) if not i == before == unknown]
