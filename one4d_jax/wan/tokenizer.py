"""Text to token ids: the SentencePiece model of UMT5, or plain UTF-8 bytes for the tiny model.

Both end a text with the end-of-text id 1, which counts in the length and survives truncation, and pad with 0.
An empty text is the end-of-text alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from one4d_jax.errors import ConfigError, DataError, UserError

PAD, EOS = 0, 1


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """``tokenizer(texts) -> (ids int32 [b t], mask bool [b t])`` with ``t = length``.

  Args:
    pieces: the ids of one text, without the end.
    length: of every row, padding included.
    vocab: ids are below it.
  """

  pieces: Callable[[str], list[int]]
  length: int
  vocab: int

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Raises DataError for anything but a sequence of strings."""
    if isinstance(texts, str | bytes) or not all(isinstance(text, str) for text in texts):
      got = type(texts).__name__ if isinstance(texts, str | bytes) else [type(t).__name__ for t in texts]
      raise DataError(f'the tokenizer takes a list of strings, got {got}')
    ids = np.full((len(texts), self.length), PAD, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
      text = text.encode('utf-8', 'replace').decode('utf-8')  # lone surrogates become '?'
      tokens = [*self.pieces(text)[: self.length - 1], EOS]
      ids[row, : len(tokens)] = tokens
      lengths[row] = len(tokens)
    return ids, np.arange(self.length) < lengths[:, None]


def byte_pieces(text: str) -> list[int]:
  """UTF-8 bytes, shifted by 3 past padding, end and unknown."""
  return [byte + 3 for byte in text.encode('utf-8')]


def load(name_or_path: str | pathlib.Path, length: int) -> Tokenizer:
  """``'bytes'``, or the SentencePiece model of a folder that holds ``spiece.model``.

  Raises:
    ConfigError: ``length`` leaves no room for the end, or there is no such tokenizer.
    DataError: the model file cannot be read.
    UserError: ``sentencepiece`` is not installed.
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
  try:
    import sentencepiece
  except ImportError:
    raise UserError('the UMT5 tokenizer needs sentencepiece: pip install sentencepiece') from None
  try:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
  except (RuntimeError, OSError) as error:
    raise DataError(f'{model} is not a SentencePiece model: {error}') from None
  return Tokenizer(processor.encode, length, processor.vocab_size())
