"""The networks that are compared, their releases, and what the converter makes of them."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import diffusers
import jax
import torch

from one4d_jax.model import bundle
from tests.parity import releases
from tests.parity.releases import Networks
from weight_conversion.wan_to_flax import convert_release

SIDE = 48  # of the picture that the image encoder takes


@contextlib.contextmanager
def settings() -> Iterator[None]:
  """Whole float32 products, one thread for torch, and programs that compile several times faster and run slower."""
  flag = 'jax_disable_most_optimizations'
  before, threads = jax.config.values[flag], torch.get_num_threads()
  torch.set_num_threads(1)
  jax.config.update(flag, True)
  try:
    with jax.default_matmul_precision('highest'):
      yield
  finally:
    jax.config.update(flag, before)
    torch.set_num_threads(threads)


class Models:
  """Networks, their releases and what the converter made of them, in ``folder``; each made when first used."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  @functools.cached_property
  def tokenizer(self) -> bytes:
    return releases.sentencepiece_model()

  @functools.cached_property
  def whole(self) -> Networks:
    """All four networks, fitting together; attention heads of the width that Wan has."""
    text = releases.umt5(width=64, heads=4, layers=3, ffn=160, vocab=300)
    return Networks(
      releases.randomise(releases.dit(heads=2, head_width=128, layers=2, ffn=336, text=64, image=160), 1),
      quiet(releases.randomise(diffusers.AutoencoderKLWan(base_dim=8), 2)),
      releases.randomise(text, 3, bfloat16=True),
      releases.randomise(releases.clip(width=160, layers=4, mlp=320, image=SIDE), 4),
    )

  @functools.cached_property
  def odd(self) -> Networks:
    """A DiT of uneven sizes; its heads do not divide by 6, the number of rotary parts."""
    model = releases.dit(heads=3, head_width=22, layers=4, ffn=50, text=24, image=40)
    return Networks(releases.randomise(model, 5, bfloat16=True))

  @functools.cached_property
  def wide(self) -> Networks:
    """The VAE at its real width."""
    return Networks(vae=quiet(releases.randomise(diffusers.AutoencoderKLWan(), 6)))

  @functools.cache  # noqa: B019, a handful of releases per run
  def release(self, networks: str, layout: str) -> pathlib.Path:
    """``networks`` in a public layout, written on first use: its folder, or the single file."""
    folder, parts = self.folder / f'{networks}_{layout}', getattr(self, networks)
    match networks, layout:
      case 'odd', 'native':  # bfloat16 shards, as a large release is cut
        return releases.write_native(folder, parts, shards=3, dtype=torch.bfloat16)
      case _, 'native':
        return releases.write_native(folder, parts, tokenizer=self.tokenizer)
      case _, 'single':
        return releases.write_single(folder, parts.dit)
      case _, 'diffusers':
        return releases.write_diffusers(folder, parts, shard='4MB', tokenizer=self.tokenizer)

  @functools.cache  # noqa: B019
  def bundle(self, networks: str, layout: str, dtype: str = 'float32') -> bundle.Bundle:
    """The release, converted and loaded again."""
    held = {'base': 'dit', 'vae': 'vae', 'text': 'text', 'image': 'image'}
    modules = getattr(self, networks)
    parts = tuple(ours for ours, name in held.items() if getattr(modules, name) is not None)
    if layout == 'single':
      parts = ('base',)
    target = self.folder / f'{networks}_{layout}_{dtype}'
    convert_release(self.release(networks, layout), target, parts=parts, dtype=dtype)
    return bundle.load(target)


@torch.no_grad()
def quiet(vae: diffusers.AutoencoderKLWan) -> diffusers.AutoencoderKLWan:
  """Random weights with a last layer that keeps pixels within [-1, 1], where diffusers clamps them."""
  vae.decoder.conv_out.weight *= 0.2
  return vae


def half(module: torch.nn.Module, folder: pathlib.Path) -> torch.nn.Module:
  """``module`` as its own library loads it in bfloat16: some weights stay float32."""
  return type(module).from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
