"""Damage that fuzzing found to escape as something else than one line (benchmarks/fuzz.py)."""

import json

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data import images, shards
from one4d_jax.data.sources import files
from one4d_jax.errors import CheckpointError, DataError
from one4d_jax.model import bundle
from weight_conversion import reader

NO_TEXT = b'{"a": "\xc7\x28"}'  # is no UTF-8


def test_an_npy_header_that_ends_in_a_statement(tmp_path):
  np.save(tmp_path / 'a.npy', np.zeros((3, 3), np.float32))
  content = (tmp_path / 'a.npy').read_bytes()
  (tmp_path / 'a.npy').write_bytes(content.replace(b'(3, 3), }', b'(3, 3),  '))
  with pytest.raises(DataError, match=r'a\.npy is damaged or no \.npy file'):
    files.array(tmp_path / 'a.npy')


def test_an_index_of_shards_that_is_no_text(tmp_path):
  shards.write(tmp_path / 'set', [{'x': np.zeros(3)}])
  (tmp_path / 'set' / shards.INDEX).write_bytes(NO_TEXT)
  with pytest.raises(DataError, match=r'dataset\.json'):
    shards.open(tmp_path / 'set')


@pytest.mark.parametrize('content', [NO_TEXT, b'null', b'[]', b'{"sizes": 3}', b'{"sizes": {"dit": 4}, "record": {}}'])
def test_a_description_of_weights_that_describes_nothing(tmp_path, content):
  (tmp_path / 'bundle.json').write_bytes(content)
  with pytest.raises(CheckpointError, match='cannot be read'):
    bundle.load(tmp_path)


def test_an_image_whose_decoder_gives_up(tmp_path, monkeypatch):
  Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / 'a.png')

  def give_up(*_, **__):
    raise RuntimeError('Failed to decode image: Not implemented')

  monkeypatch.setattr(Image, 'open', give_up)
  with pytest.raises(DataError, match=r'a\.png'):
    images.load_image(tmp_path / 'a.png')


def test_a_configuration_beside_weights_that_is_no_text(tmp_path):
  from tests.weight_conversion import release

  release.write(tmp_path, ('base',))
  (tmp_path / 'config.json').write_bytes(NO_TEXT)
  with pytest.raises(CheckpointError, match=r'config\.json'):
    reader.find(tmp_path, 'base')


@pytest.mark.parametrize('change', [{'count': None}, {'meta': 3}, {'shards': [{'file': 'data-00000.array_record'}]}])
def test_an_index_of_shards_that_lacks_something(tmp_path, change):
  shards.write(tmp_path / 'set', [{'x': np.zeros(3)}])
  path = tmp_path / 'set' / shards.INDEX
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(DataError, match=r'dataset\.json cannot be read'):
    shards.open(tmp_path / 'set')


def test_an_index_of_no_shards(tmp_path):
  shards.write(tmp_path / 'set', [{'x': np.zeros(3)}])
  path = tmp_path / 'set' / shards.INDEX
  path.write_text(json.dumps(json.loads(path.read_text()) | {'shards': []}))
  with pytest.raises(DataError, match='set cannot be read'):
    shards.open(tmp_path / 'set')


def test_a_record_whose_block_is_damaged(tmp_path):
  shards.write(tmp_path / 'set', [{'x': np.random.default_rng(i).normal(size=9000)} for i in range(3)])
  file = next((tmp_path / 'set').glob('*.array_record'))
  content = bytearray(file.read_bytes())
  content[70_000:70_100] = bytes(100)
  file.write_bytes(content)
  source = shards.open(tmp_path / 'set')
  with pytest.raises(DataError, match=r'record \d is damaged'):
    [source[i] for i in range(3)]
