"""Ends, truncation and padding of both tokenizers; a stand-in plays SentencePiece."""

import sys
import types

import numpy as np
import pytest

from one4d_jax.errors import ConfigError, DataError, UserError
from one4d_jax.wan import tokenizer


def test_bytes_round_trip():
  text = 'eine Höhle, 洞\x00\x07\ufffdnan'
  ids, mask = tokenizer.load('bytes', 64)([text])
  assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (1, 64)
  row = ids[0][mask[0]]
  assert row[-1] == tokenizer.EOS and not ids[0][~mask[0]].any()
  assert bytes((row[:-1] - 3).astype(np.uint8)).decode() == text
  assert ids.max() < tokenizer.load('bytes', 64).vocab


def test_the_end_survives_truncation():
  ids, mask = tokenizer.load('bytes', 4)(['abcdefg', 'abc', 'ab', ''])
  a = ord('a') + 3
  np.testing.assert_array_equal(ids, [[a, a + 1, a + 2, 1], [a, a + 1, a + 2, 1], [a, a + 1, 1, 0], [1, 0, 0, 0]])
  np.testing.assert_array_equal(mask.sum(1), [4, 4, 3, 1])


def test_odd_input():
  encode = tokenizer.load('bytes', 8)
  ids, _ = encode(['\udcff'])  # a lone surrogate, as in a badly decoded command line
  assert ids[0, 0] == ord('?') + 3
  assert encode([])[0].shape == (0, 8)
  for bad in ('one string', [None], [b'bytes'], [float('nan')]):
    with pytest.raises(DataError, match='list of strings'):
      encode(bad)


def test_errors_name_the_way_out(tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match='at least 1'):
    tokenizer.load('bytes', 0)
  with pytest.raises(ConfigError, match=r'spiece\.model'):
    tokenizer.load(tmp_path, 8)
  (tmp_path / 'spiece.model').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  with pytest.raises(UserError, match='pip install'):
    tokenizer.load(tmp_path, 8)


def test_sentencepiece_folder(tmp_path, monkeypatch):
  class Processor:
    def __init__(self, model_file):
      assert model_file == str(tmp_path / 'spiece.model')

    def encode(self, text):
      return [len(word) + 10 for word in text.split()]

    def vocab_size(self):
      return 100

  (tmp_path / 'spiece.model').write_bytes(b'model')
  module = types.SimpleNamespace(SentencePieceProcessor=Processor)
  monkeypatch.setitem(sys.modules, 'sentencepiece', module)
  encode = tokenizer.load(tmp_path, 4)
  ids, mask = encode(['a bb', 'a bb ccc dddd eeeee', ''])
  np.testing.assert_array_equal(ids, [[11, 12, 1, 0], [11, 12, 13, 1], [1, 0, 0, 0]])
  np.testing.assert_array_equal(mask.sum(1), [3, 4, 1])
  assert encode.vocab == 100
