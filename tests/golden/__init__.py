"""Golden numbers of the original networks; weights and inputs are rebuilt from a seed (see README.md here)."""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def normal(seed: int, name: str, shape) -> np.ndarray:
  return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape).astype(np.float32)


def weight(seed: int, name: str, shape, *, umt5: bool = False) -> np.ndarray:
  """The random weight that the golden run used for the native tensor ``name``; rules are tried top to bottom."""
  n, leaf = normal(seed, name, shape), name.split('.')[-1]
  if leaf == 'gamma':
    n = 1 + 0.2 * n
  elif 'modulation' in name:
    n = 0.3 * n
  elif 'token_embedding' in name or '.pos_embedding' in name:
    pass
  elif 'pos_embedding' in name or 'cls_embedding' in name:
    n = 0.5 * n
  elif len(shape) == 1:
    n = 1 + 0.2 * n if leaf == 'weight' else 0.1 * n
  else:
    n = n / np.sqrt(np.prod(shape[1:]))
  if umt5 and '.attn.q.' in name:
    n = n / 4
  return n.astype(np.float32)


def load(name: str) -> tuple[dict, dict, dict]:
  """``(description, arrays, native weights)`` of one golden file."""
  description = json.loads((HERE / f'{name}.json').read_text())
  arrays = dict(np.load(HERE / f'{name}.npz'))
  seed = description['seed']
  weights = {k: weight(seed, k, s, umt5=name == 'umt5') for k, s in description['shapes'].items()}
  return description, arrays, weights


def given(description: dict, key: str, shape) -> np.ndarray:
  """The random input ``key``."""
  return normal(description['seed'], 'input:' + key, shape)
