"""Bundles on disk."""

import json

import numpy as np
import pytest

from one4d_jax import config as configs
from one4d_jax.errors import CheckpointError
from one4d_jax.model import bundle as bundles


def small():
  params = {'vae': {'encoder': {'kernel': np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}}}
  return bundles.Bundle(params, configs.sizes(configs.load('configs/one4d.py:tiny')), {'vae': {'steps': 3}})


def test_round_trip_in_half_precision(tmp_path):
  bundles.save(small(), tmp_path / 'b', dtype='float16')
  again = bundles.load(tmp_path / 'b')
  assert again.config == small().config and again.record == {'vae': {'steps': 3}}
  kernel = again.params['vae']['encoder']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_allclose(kernel, small().params['vae']['encoder']['kernel'], atol=1e-3)


def test_the_hash_follows_the_weights(tmp_path):
  first = small()
  bundles.save(first, tmp_path / 'a')
  bundles.save(first, tmp_path / 'b')
  assert bundles.load(tmp_path / 'a').hash == bundles.load(tmp_path / 'b').hash
  first.params['vae']['encoder']['kernel'][0, 0] += 1
  bundles.save(first, tmp_path / 'b')
  assert bundles.load(tmp_path / 'a').hash != bundles.load(tmp_path / 'b').hash


def test_a_failed_save_keeps_what_was_there(tmp_path):
  bundles.save(small(), tmp_path / 'b')
  before = bundles.load(tmp_path / 'b').hash
  broken = small()
  broken.record['made'] = object()  # not JSON
  with pytest.raises(TypeError):
    bundles.save(broken, tmp_path / 'b')
  assert bundles.load(tmp_path / 'b').hash == before


def test_missing_and_damaged_bundles_are_named(tmp_path):
  with pytest.raises(CheckpointError, match='no weights at'):
    bundles.load(tmp_path / 'none')
  bundles.save(small(), tmp_path / 'b')
  (tmp_path / 'b' / 'vae.safetensors').write_bytes(b'not tensors')
  with pytest.raises(CheckpointError, match='cannot be read'):
    bundles.load(tmp_path / 'b')
  (tmp_path / 'b' / 'bundle.json').write_text(json.dumps({'record': {}}))
  with pytest.raises(CheckpointError, match='cannot be read'):
    bundles.load(tmp_path / 'b')
