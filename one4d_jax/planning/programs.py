"""The compiled programs of a run, over arguments that are shapes with their places: what there is to plan.

Nothing is allocated. On a mesh of described devices (``hardware.describe``) they compile; on an ``AbstractMesh`` the
arguments tell how much each device holds.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

from one4d_jax import config as configs
from one4d_jax.errors import ConfigError
from one4d_jax.model import generate
from one4d_jax.model.bundle import Bundle
from one4d_jax.model.one4d import One4D
from one4d_jax.nn import partition
from one4d_jax.parallel import load, rules
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel.layout import MeshLayout, batch_sharding, check_batch, for_sampling
from one4d_jax.training import latents
from one4d_jax.training.setup import setup
from one4d_jax.training.stages import One4DStage
from one4d_jax.wan.vae import latent_grid

NAMES = {'train': ('step',), 'sample': generate.Programs._fields, 'encode': ('vae', 'decode', 'text', 'image')}


class Program(NamedTuple):
  """A jitted function and what it takes: named trees of ``ShapeDtypeStruct`` with shardings."""

  run: Callable
  arguments: dict[str, dict]  # in order
  parts: dict[str, dict]  # the same leaves by what they are for: base, adapters, optimizer, batch …
  layout: partition.Layout | None = None  # it is traced under, unless it enters one itself

  def lower(self):
    with partition.using(self.layout):
      return self.run.lower(*self.arguments.values())


class _Unplaced(MeshLayout):
  """For programs that run without a layout: it places nothing, and names the platform that is planned for."""

  def constrain(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    return x


def abstract_mesh(text: str, devices: int) -> AbstractMesh:
  """``meshes.make`` for devices of which only the number is known."""
  sizes = meshes.sizes(text, devices)
  return AbstractMesh(tuple(sizes.values()), meshes.AXES, axis_types=(AxisType.Auto,) * len(meshes.AXES))


def programs(task: str, config, mesh: Mesh | AbstractMesh) -> dict[str, Program]:
  """What a task runs, by name.

  Raises:
    ConfigError: a stage that there is no plan for, or a mesh that cannot be used so.
  """
  if task == 'train':
    return {'step': train(config, mesh)}
  if task == 'sample':
    return sample(config, mesh)
  return encode(config, mesh)


def model(config) -> One4D:
  """The network of a configuration."""
  return Bundle({}, configs.sizes(config), {}).model


class _WithoutData(One4DStage):
  """The stage as far as its step goes."""

  def __init__(self, config, bundle):
    self.config, self.bundle = config, bundle


def train(config, mesh: Mesh | AbstractMesh) -> Program:
  """The optimisation step of ``python -m one4d_jax.train`` over an encoded set (features and latents are stored)."""
  settings, model = config.train, config.model
  if settings.stage != 'one4d':
    raise ConfigError(f'train.stage={settings.stage!r}: there are plans for one4d alone; the other stages are small')
  check_batch(mesh, settings.batch, heads=model.dit.heads, attention=config.parallel.attention)
  bundle = Bundle({}, configs.sizes(config), {})
  stage, layout = _WithoutData(config, bundle), MeshLayout(mesh, config.parallel.attention)
  frozen = {'base': _base(model.dit, model.dtype, model.int8, mesh)}
  run, batch = setup(config, stage, layout, frozen), samples(config, mesh)
  state = run.state
  parts = {
    'base': frozen,
    'adapters': {'params': state.params, 'average': state.average},
    'optimizer': state.optimizer,
    'batch': batch,
  }
  return Program(run.step, {'state': state, 'frozen': frozen, 'batch': batch}, parts)


def samples(config, mesh: Mesh | AbstractMesh) -> dict:
  """What a step reads of an encoded set, which is float16 (``training/latents.py``)."""
  data, model = config.data, config.model
  grid = latent_grid(data.frames, data.height, data.width)
  latent, count = (*grid, model.vae.latent_channels), config.train.batch * config.train.accumulation
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype, sharding=batch_sharding(mesh))
  return {
    'z': array(np.float16, 2, *latent),
    'weight': array(np.float16, *grid),
    'latent': array(np.float16, *latent),
    'observed': array(np.bool_, data.frames),
    'text': array(np.float16, model.dit.text_len, model.dit.text_width),
    'image': array(np.float16, model.image.tokens, model.dit.image_width),
  }


def sample(config, mesh: Mesh | AbstractMesh) -> dict[str, Program]:
  """The parts of one scene, from pixels and token ids to both videos, by the defaults of sampling."""
  sizes = configs.sizes(config)
  layout = for_sampling(mesh, sizes.dit.heads)
  bundle = Bundle({}, sizes, {})
  params = {name: _placed(bundle, name, mesh) for name in ('vae', 'text', 'image', 'adapters')}
  params['base'] = _base(sizes.dit, sizes.dtype, config.model.int8, mesh)
  run = generate.compiled(sizes, layout, **generate.with_defaults(sizes, {}))
  inputs, (given, state) = request(config, mesh), between(config, mesh)
  arguments = {
    'begin': inputs,
    'advance': {'given': given, 'state': state, 'stop': state.step},
    'decode': {'z': state.x},
  }
  weights = {
    'base': params['base'],
    'adapters': params['adapters'],
    'encoders': {name: params[name] for name in ('vae', 'text', 'image')},
  }
  return {
    name: Program(getattr(run, name), {'params': params} | own, weights | {'batch': own})
    for name, own in arguments.items()
  }


def request(config, mesh: Mesh | AbstractMesh) -> dict:
  """What a scene is made from."""
  return {name: _at(mesh, leaf, *(None,) * leaf.ndim) for name, leaf in _request(configs.sizes(config)).items()}


def between(config, mesh: Mesh | AbstractMesh) -> tuple:
  """What goes from ``begin`` to ``advance``."""
  return generate.placed(_between(configs.sizes(config)), functools.partial(_at, mesh))


def _at(mesh, leaf: jax.ShapeDtypeStruct, *names: str | None) -> jax.ShapeDtypeStruct:
  """``leaf`` where ``MeshLayout.constrain`` puts it."""
  sharding = NamedSharding(mesh, rules.spec(names, leaf.shape, mesh, rules.USED))
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _request(sizes) -> dict:
  array, tokens = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype), sizes.dit.text_len
  return {
    'video': array(np.float32, 1, sizes.frames, sizes.height, sizes.width, 3),
    'observed': array(np.bool_, 1, sizes.frames),
    'ids': array(np.int32, 2, tokens),
    'mask': array(np.bool_, 2, tokens),
    'seed': array(np.uint32),
  }


@functools.lru_cache(maxsize=16)  # many meshes are tried
def _between(sizes) -> tuple:
  run = generate.compiled(sizes, None, **generate.with_defaults(sizes, {}))
  params = {name: nn.unbox(_boxed(sizes, name)) for name in ('base', 'adapters', 'vae', 'text', 'image')}
  return jax.eval_shape(run.begin, params, *_request(sizes).values())


def encode(config, mesh: Mesh | AbstractMesh) -> dict[str, Program]:
  """The networks of ``python -m one4d_jax.encode``, each over a batch of clips, and the VAE's decoder."""
  sizes = configs.sizes(config)
  bundle, networks = Bundle({}, sizes, {}), latents.networks(sizes)
  size = sizes.frames, sizes.height, sizes.width
  clips = mesh.size * latents.clips_at_a_time(size)
  split = batch_sharding(mesh)
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((clips, *shape), dtype, sharding=split)
  grid = latent_grid(sizes.frames, sizes.height, sizes.width)
  tokens = sizes.dit.text_len
  inputs = {
    'vae': {'video': array(np.float32, *size, 3)},
    'decode': {'z': array(np.float32, *grid, sizes.vae.latent_channels)},
    'text': {'ids': array(np.int32, tokens), 'mask': array(np.bool_, tokens)},
    'image': {'first': array(np.float32, *size[1:], 3)},
  }
  found = {}
  for name, batch in inputs.items():
    params = _placed(bundle, 'vae' if name == 'decode' else name, mesh)
    parts = {'encoders': params, 'batch': batch}
    found[name] = Program(networks[name], {'params': params} | batch, parts, _Unplaced(mesh))
  return found


def _base(cfg, dtype: str, int8: bool, mesh) -> dict:
  boxed = _abstract_base(cfg, dtype, int8=int8)
  return load.placed(nn.unbox(boxed), rules.shardings(boxed, mesh))


def _placed(bundle: Bundle, part: str, mesh) -> dict:
  boxed = _boxed(bundle.config, part)
  return load.placed(nn.unbox(boxed), rules.shardings(boxed, mesh))


_abstract_base = functools.lru_cache(maxsize=8)(load.abstract_base)  # many meshes are tried


@functools.lru_cache(maxsize=16)
def _boxed(sizes, part: str) -> dict:
  return load.boxed(Bundle({}, sizes, {}), part)


def held(tree) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  one = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(one(leaf) for leaf in jax.tree.leaves(tree))


def resident(program: Program) -> dict[str, int]:
  """Bytes that one device holds of each part before anything runs."""
  return {name: held(tree) for name, tree in program.parts.items()}
