"""The frozen base, from converted weights straight to the devices."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from one4d_jax.errors import ConfigError
from one4d_jax.model import weights
from one4d_jax.nn import quantize
from one4d_jax.parallel import rules
from one4d_jax.structs import from_dict
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

DTYPES = ('bfloat16', 'float16', 'float32')


def abstract_base(cfg: DiTConfig, dtype: str, *, int8: bool = False) -> dict:
  """Shapes, dtypes and logical axes (boxed) of a stored base. Norms and modulation are float32 in any case."""
  precision = dit.Precision(param_dtype=jnp.dtype(dtype))
  stored = quantize.blocks if int8 else lambda base: base
  return jax.eval_shape(lambda key: stored(dit.init_base(key, cfg, precision)), jax.random.key(0))


def load_base(path: str | os.PathLike, mesh: Mesh | None = None, *, dtype: str | None = None) -> dict:
  """Wan's weights, converted, on ``mesh``: each process reads only the slices that its devices hold.

  Args:
    path: the bundle that ``weight_conversion/wan_to_flax.py`` wrote, or its ``base`` folder.
    mesh: spreads the weights by ``parallel/rules.py``; every process of it must call this. Without one they lie on
      this process's first device.
    dtype: of the weights on the devices ('bfloat16', 'float16' or 'float32'; default: as stored). Int8 kernels stay
      int8, norms and modulation float32.

  Returns:
    The ``base`` argument of ``One4D.velocity`` and ``dit.velocity``.

  Raises:
    CheckpointError: no converted base, an unfinished one, a file that is missing or truncated, or leaves that do not
      fit the config in the manifest.
    ConfigError: an unknown ``dtype``.
  """
  if dtype not in (None, *DTYPES):
    raise ConfigError(f'dtype={dtype!r} is no dtype of weights; choose from {", ".join(DTYPES)}')
  folder = weights.locate(path, 'base')
  manifest = weights.check(folder, 'base')
  cfg = from_dict(manifest['config'], DiTConfig)
  boxed = abstract_base(cfg, dtype or manifest['dtype'], int8=manifest['int8'])
  abstract = nn.unbox(boxed)
  if mesh is not None:
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    abstract = jax.tree.map(place, abstract, rules.shardings(boxed, mesh))
  return weights.restore(folder, abstract)
