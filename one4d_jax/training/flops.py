"""Floating-point operations that the model asks for, and what a device can do: their ratio over time is the MFU.

A product of ``[n, a]`` and ``[a, b]`` is 2 n a b. Counted are the products of the DiT: linears, attention, adapters,
control links, embeddings and head. Not counted: what the backward pass computes a second time (remat, flash attention),
elementwise work, and the VAE and the encoders, which a step runs only where latents are not prepared.

A backward pass repeats a product once for the gradient of its input, where anything trained lies before it, and once
for that of its weight, where it is trained. So full training costs three forward passes; with a frozen base, its
linears cost two. Keys and values of text and image are computed from what both branches share, once for both; adapters
are not. Counted of one-way links are both directions, for both are computed.
"""

import dataclasses
import math
import re
from typing import NamedTuple

from one4d_jax.model import baselines
from one4d_jax.model.one4d import AdapterConfig, One4D
from one4d_jax.wan.config import DiTConfig

# bf16 without sparsity, FLOP/s of one JAX device, by its ``device_kind``; from the makers' data sheets.
_PEAK = {
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA A100-PCIE-40GB': 312e12,
  'NVIDIA A100 80GB PCIe': 312e12,
  'NVIDIA H100 80GB HBM3': 989.4e12,  # SXM
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835.5e12,
  'NVIDIA H200': 989.4e12,
  'NVIDIA H200 NVL': 835.5e12,
  'NVIDIA B200': 2250e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,  # v5e
  'TPU v5': 459e12,  # v5p
  'TPU v6 lite': 918e12,  # v6e
  'TPU7x': 2307e12 / 2,  # a chip is two devices
}


def peak(device_kind: str) -> float | None:
  """What the device can do in bf16, FLOP/s; None where that is not known, as of a CPU or a part of a GPU (MIG)."""
  return _PEAK.get(device_kind)


class Sizes(NamedTuple):
  """What a pass works on."""

  batch: int
  grid: tuple[int, int, int]  # tokens along frames, rows, columns
  text: int  # tokens
  image: int  # tokens


class Count(NamedTuple):
  """Operations by part: linear, attention, lora, links, embed."""

  forward: dict[str, int]
  step: dict[str, int]  # forward and backward


class _Product(NamedTuple):
  part: str
  operations: int
  repeats: int  # products of the same size that the backward pass makes of it


def base(cfg: DiTConfig, sizes: Sizes) -> Count:
  """The DiT alone, all of it trained, and an encoder of text and image before it."""
  products = [_product('linear', rows, din, dout, repeats=2) for _, rows, din, dout in _linears(cfg, sizes)]
  context = _context(cfg, sizes, repeats=2, first=2)
  tokens = [_patch(cfg, sizes, repeats=1), _head(cfg, sizes, repeats=2)]
  return _count([*products, *_attention(cfg, sizes), *context, *tokens])


def one4d(cfg: DiTConfig, adapters: AdapterConfig, sizes: Sizes) -> Count:
  """The model of ``adapters.kind`` (``model/baselines.py``), its adapters trained over a frozen base."""
  model, trained = baselines.build(cfg, adapters), adapters.kind == 'full'
  through = _through(model, sizes)
  products = []
  for name, rows, din, dout in _linears(cfg, through):
    context = name in _OF_CONTEXT
    repeats = 2 if trained else 0 if context else 1
    products.append(_product('linear', rows // model.sequences if context else rows, din, dout, repeats=repeats))
    if not trained and re.search(adapters.targets, f'{name}/kernel'):
      products.append(_product('lora', rows, din, adapters.rank, repeats=1 if context else 2))
      products.append(_product('lora', rows, adapters.rank, dout, repeats=2))
  links = len(model.adapters.link_layers) * through.batch * math.prod(through.grid)
  products.append(_product('links', links, cfg.width, cfg.width, repeats=2))
  given = _context(cfg, sizes, repeats=2, first=1) if trained else _context(cfg, sizes, repeats=0, first=0)
  return _count([*products, *_attention(cfg, through), *given, *_ends(cfg, adapters.kind, sizes)])


def tokens(model: One4D, sizes: Sizes) -> int:
  """All that go through the layers of ``model``."""
  through = _through(model, sizes)
  return through.batch * math.prod(through.grid)


def _through(model: One4D, sizes: Sizes) -> Sizes:
  """What the layers of ``model`` work on."""
  frames, rows, columns = sizes.grid
  return sizes._replace(batch=model.sequences * sizes.batch, grid=(frames, rows, model.tokens_per_place * columns))


def _ends(cfg: DiTConfig, kind: str, sizes: Sizes) -> list[_Product]:
  """From latents to tokens and back."""
  both = lambda product, rgb, xyz: [product(cfg, sizes, repeats=n) for n in (rgb, xyz)]
  if kind == 'channel_concat':
    one = cfg.in_channels + cfg.out_channels
    return [_patch(dataclasses.replace(cfg, in_channels=one), sizes, repeats=1), *both(_head, 1, 2)]
  if kind == 'spatial_concat':
    return [*both(_patch, 0, 0), *both(_head, 1, 1)]
  if kind == 'full':
    return [*both(_patch, 1, 1), *both(_head, 2, 2)]
  return [*both(_patch, 0, 1), *both(_head, 1, 1)]


_OF_CONTEXT = ('cross_k', 'cross_v', 'cross_k_img', 'cross_v_img')


def _linears(cfg: DiTConfig, sizes: Sizes) -> list[tuple[str, int, int, int]]:
  """``(name, rows, din, dout)`` of the linears of all blocks, as ``wan/dit.py`` names them."""
  d, tokens = cfg.width, math.prod(sizes.grid)
  square = dict.fromkeys(('self_q', 'self_k', 'self_v', 'self_o', 'cross_q', 'cross_o'), tokens)
  square |= dict(zip(_OF_CONTEXT, (sizes.text, sizes.text, sizes.image, sizes.image), strict=True))
  found = [(name, rows, d, d) for name, rows in square.items()]
  found += [('ffn_in', tokens, d, cfg.ffn_width), ('ffn_out', tokens, cfg.ffn_width, d)]
  return [(name, cfg.layers * sizes.batch * rows, din, dout) for name, rows, din, dout in found]


def _attention(cfg: DiTConfig, sizes: Sizes) -> list[_Product]:
  """Scores and weighted sums over tokens, text and image; each of the two has two gradients."""
  tokens = math.prod(sizes.grid)
  rows = cfg.layers * sizes.batch * tokens
  return [_product('attention', rows, cfg.width, 2 * keys, repeats=2) for keys in (tokens, sizes.text, sizes.image)]


def _context(cfg: DiTConfig, sizes: Sizes, *, repeats: int, first: int) -> list[_Product]:
  """Text, image and timestep; ``first`` are the repeats of the products that read what an encoder gives."""
  d, width = cfg.width, cfg.image_width
  rows = [
    *((sizes.text, din, d, n) for din, n in ((cfg.text_width, first), (d, repeats))),
    *((sizes.image, width, dout, n) for dout, n in ((width, first), (d, repeats))),
    (1, cfg.freq_width, d, min(repeats, 1)),  # before it lies the timestep
    *((1, d, dout, repeats) for dout in (d, 6 * d)),
  ]
  return [_product('embed', sizes.batch * n, din, dout, repeats=repeats) for n, din, dout, repeats in rows]


def _patch(cfg: DiTConfig, sizes: Sizes, *, repeats: int) -> _Product:
  rows = sizes.batch * math.prod(sizes.grid)
  return _product('embed', rows, math.prod(cfg.patch) * cfg.in_channels, cfg.width, repeats=repeats)


def _head(cfg: DiTConfig, sizes: Sizes, *, repeats: int) -> _Product:
  rows = sizes.batch * math.prod(sizes.grid)
  return _product('embed', rows, cfg.width, math.prod(cfg.patch) * cfg.out_channels, repeats=repeats)


def _product(part: str, rows: int, din: int, dout: int, *, repeats: int) -> _Product:
  return _Product(part, 2 * rows * din * dout, repeats)


def _count(products: list[_Product]) -> Count:
  parts = dict.fromkeys((product.part for product in products), 0)
  count = Count(dict(parts), dict(parts))
  for part, operations, repeats in products:
    count.forward[part] += operations
    count.step[part] += operations * (1 + repeats)
  return count
