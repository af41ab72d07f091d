"""Parameters from files and host memory to a mesh, and back."""

import dataclasses
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from one4d_jax.errors import ConfigError
from one4d_jax.model import bundle as bundles
from one4d_jax.model import weights
from one4d_jax.model.bundle import Bundle
from one4d_jax.model.files import PARTS, find_parts
from one4d_jax.model.one4d import base_shapes
from one4d_jax.nn import quantize
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel import rules
from one4d_jax.parallel.layout import for_sampling
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
    abstract = placed(abstract, rules.shardings(boxed, mesh))
  return weights.restore(folder, abstract)


def boxed(bundle: Bundle, part: str) -> dict:
  """Shapes and logical axes of one part of a bundle."""
  key = jax.random.key(0)
  if part in ('base', 'adapters'):
    base = base_shapes(bundle.config.dit, bundle.model.precision)
    return base if part == 'base' else jax.eval_shape(bundle.model.init_adapters, key, nn.unbox(base))
  return jax.eval_shape(getattr(bundle, part).init, key)


def placed(shapes, shardings):
  """A tree of shapes that also says where each leaf lies."""
  one = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  return jax.tree.map(one, shapes, shardings)


def put(tree: dict, shardings: dict) -> dict:
  """Arrays that every process holds whole, each device given what it is to hold."""
  one = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x[index]))
  return jax.tree.map(one, tree, shardings)


def part(bundle: Bundle, name: str, mesh: Mesh, *, int8: bool = False) -> dict:
  """The parameters of one part of a bundle on ``mesh``: those it has loaded, else read from its folder.

  Args:
    int8: the base's eligible kernels, if they are not int8 yet, one after the other.
  """
  if name in bundle.params:
    tree, names = bundle.params[name], boxed(bundle, name)
    found = put(tree, rules.shardings(quantize.boxed_like(names, tree), mesh))
  elif name == 'base':
    found = load_base(bundle.folders[name], mesh)
  else:
    names = boxed(bundle, name)
    found = weights.restore(bundle.folders[name], placed(nn.unbox(names), rules.shardings(names, mesh)))
  return _quantized(found) if int8 else found


def _quantized(base: dict) -> dict:
  flat = traverse_util.flatten_dict(base, sep='/')
  del base
  for name in [name for name in flat if quantize.eligible(name) and isinstance(flat[name], jax.Array)]:
    flat[name] = jax.jit(quantize.quantize, donate_argnums=0)(flat.pop(name))
  return traverse_util.unflatten_dict(flat, sep='/')


def open_bundle(path: str | os.PathLike | None) -> Bundle:
  """A bundle whose converted parts stay in their folders, to be read by ``part``; what was trained lies on the host."""
  places = find_parts(bundles.locate(path))
  return bundles.load(path, parts=[name for name in PARTS if name in places and pathlib.Path(places[name]).is_file()])


def load_bundle(path: str | os.PathLike | None, mesh: str) -> Bundle:
  """A bundle to sample from, all of its parts on a mesh (see ``mesh.make``) over the devices of this process.

  Raises:
    CheckpointError, ConfigError: no bundle, or a mesh that does not fit the devices.
  """
  devices, found = meshes.make(mesh, jax.local_devices()), open_bundle(path)
  params = {name: part(found, name, devices) for name in found.hashes}
  return dataclasses.replace(found, params=params, folders={}, layout=for_sampling(devices, found.config.dit.heads))


def gathered(tree: dict) -> dict:
  """The whole of every array, on the host of every process; all of them must call this."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
