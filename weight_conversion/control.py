"""The control links and the XYZ branch's patch embedding as one safetensors file, in PyTorch's orientation.

  links.{layer}.xyz_to_rgb.weight   [d, d]   after block ``layer``: rgb += W xyz   (One4D, Eq. 9)
  links.{layer}.rgb_to_xyz.weight   [d, d]                          xyz += W rgb
  patch_embedding_xyz.weight        [d, 36, 1, 2, 2]   the convolution that reads the XYZ branch's latent
  patch_embedding_xyz.bias          [d]

Both links of a layer read the features from before either is added. Layers count from 0. The header's metadata says
``one4d_control: 1`` (the version of this schema) and ``link_layers: 7,15,23,31,39``.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from one4d_jax.errors import CheckpointError
from one4d_jax.model.dlc import RGB, XYZ
from one4d_jax.wan.config import DiTConfig
from weight_conversion.stream import Lazy
from weight_conversion.tables import dit as table

VERSION = '1'
DIRECTIONS = {'xyz_to_rgb': RGB, 'rgb_to_xyz': XYZ}  # -> the branch that is changed


class Control(NamedTuple):
  """What is trained beside LoRA, in our orientation."""

  links: np.ndarray  # [k m d d]
  patch_xyz: dict[str, np.ndarray]  # kernel [c·ph·pw d], bias [d]
  link_layers: tuple[int, ...]


def _patch(channels: int, window: tuple[int, ...]):
  rules = table.rules(DiTConfig(in_channels=channels, patch=tuple(window)), 'native')
  return next(rule.transform for rule in rules if rule.target == 'embed/patch/kernel')


def tensors(leaves: Mapping[str, Any], cfg: DiTConfig, link_layers: tuple[int, ...]) -> dict[str, Lazy]:
  """The tensors of the file, of ``links`` and ``patch_xyz/{kernel,bias}``: anything with shape, dtype and indexing."""
  links, kernel, bias = leaves.get('links'), leaves['patch_xyz/kernel'], leaves['patch_xyz/bias']
  found = {}
  for slot, layer in enumerate(link_layers):
    for direction, branch in DIRECTIONS.items():
      read = lambda slot=slot, branch=branch: links[slot][branch].T
      found[f'links.{layer}.{direction}.weight'] = Lazy(links.shape[2:], links.dtype.name, read)
  backward = lambda w: _patch(cfg.in_channels, cfg.patch).backward(w)[0]
  shape = (cfg.width, cfg.in_channels, *cfg.patch)
  found['patch_embedding_xyz.weight'] = Lazy(shape, kernel.dtype.name, lambda: backward(kernel[...]))
  found['patch_embedding_xyz.bias'] = Lazy(bias.shape, bias.dtype.name, lambda: bias[...])
  return found


def metadata(link_layers: tuple[int, ...]) -> dict[str, str]:
  """The header's metadata."""
  return {'one4d_control': VERSION, 'link_layers': ','.join(map(str, link_layers))}


def read(path: str | os.PathLike) -> Control:
  """The contents of such a file.

  Raises:
    CheckpointError: no such file, another version, or tensors that are missing, unexpected or of another shape.
  """
  path = pathlib.Path(path)
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      header = file.metadata() or {}
    content = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise CheckpointError(f'{path} cannot be read as control links ({error})') from error
  if header.get('one4d_control') != VERSION:
    found = header.get('one4d_control', 'none')
    raise CheckpointError(f'{path} has one4d_control version {found}, this reads {VERSION}: export it again')
  layers = tuple(int(layer) for layer in header.get('link_layers', '').split(',') if layer)
  names = [f'links.{layer}.{direction}.weight' for layer in layers for direction in DIRECTIONS]
  due = {*names, 'patch_embedding_xyz.weight', 'patch_embedding_xyz.bias'}
  if wrong := due ^ set(content):
    raise CheckpointError(f'{path} does not hold links of layers {layers}: {sorted(wrong)} are missing or too many')
  weight, bias = content['patch_embedding_xyz.weight'], content['patch_embedding_xyz.bias']
  width = len(weight)
  shapes = {name: content[name].shape for name in (*names, 'patch_embedding_xyz.bias')}
  expected = dict.fromkeys(names, (width, width)) | {'patch_embedding_xyz.bias': (width,)}
  if wrong := {name: shape for name, shape in shapes.items() if shape != expected[name]}:
    raise CheckpointError(f'{path}: shapes {wrong} do not fit a width of {width}')
  links = np.zeros((len(layers), len(DIRECTIONS), width, width), content[names[0]].dtype if names else weight.dtype)
  for slot, layer in enumerate(layers):
    for direction, branch in DIRECTIONS.items():
      links[slot, branch] = content[f'links.{layer}.{direction}.weight'].T
  kernel = _patch(weight.shape[1], weight.shape[2:]).forward(weight)
  return Control(links, {'kernel': np.ascontiguousarray(kernel), 'bias': bias}, layers)
