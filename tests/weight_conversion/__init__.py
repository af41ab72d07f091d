"""Names and shapes of the published checkpoints at full size (``manifests/``), and small random ones.

A row of a manifest: layers (empty: none), native name, shape, diffusers or transformers names (several where native
fuses them), their shape (``=``: as native). Wan's own lists hash to the values that public tools know the files by.
"""

import functools
import pathlib
from typing import NamedTuple

import ml_dtypes
import numpy as np

from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from weight_conversion.rules import Leaf, Tensor, plan
from weight_conversion.tables import TABLES

HERE = pathlib.Path(__file__).parent
SMALL = {  # as few sizes as possible are equal, so that a wrong transpose shows
  'base': DiTConfig(width=24, ffn_width=40, heads=2, layers=3, freq_width=8, text_width=12, image_width=20),
  'vae': VAEConfig(width=4),
  'text': UMT5Config(vocab=30, width=16, ffn_width=24, heads=4, layers=3, buckets=8),
  'image': CLIPConfig(image_size=6, patch=2, width=160, layers=3, heads=2, mlp_width=24),
}


class Row(NamedTuple):
  """Tensors of one layer in both layouts; either side may be empty."""

  layers: int  # 0: not in a layer
  native: tuple[str, ...]
  native_shape: tuple[int, ...]
  diffusers: tuple[str, ...]
  diffusers_shape: tuple[int, ...]

  def names(self, layout: str, layers: int | None = None) -> list[tuple[str, ...]]:
    """Of each layer; ``layers`` in place of the published number."""
    names = self.native if layout == 'native' else self.diffusers
    count = (layers or self.layers) if self.layers else 1
    return [tuple(name.replace('{l}', str(l)) for name in names) for l in range(count)]


def rows(name: str) -> list[Row]:
  found = []
  for line in (HERE / 'manifests' / f'{name}.tsv').read_text().splitlines()[1:]:
    layers, native, shape, diffusers, other = (line.split('\t') + 4 * [''])[:5]
    sizes = lambda text: tuple(int(n) for n in text.split('x') if n)
    shapes = sizes(shape), sizes(shape if other == '=' else other)
    found.append(Row(int(layers or 0), tuple(native.split()), shapes[0], tuple(diffusers.split()), shapes[1]))
  return found


def manifest(name: str, layout: str, dtype: str = 'bfloat16') -> dict[str, Tensor]:
  """Every tensor of the published file."""
  shape = lambda row: row.native_shape if layout == 'native' else row.diffusers_shape
  return {n: Tensor(shape(row), dtype) for row in rows(name) for names in row.names(layout) for n in names}


@functools.cache
def targets(part: str, cfg) -> dict[str, tuple[int, ...]]:
  """Shapes of our arrays."""
  return {path: leaf.shape for path, leaf in TABLES[part].targets(cfg, 'bfloat16').items()}


def shapes(part: str, cfg, layout: str) -> dict[str, tuple[int, ...]]:
  """Of the tensors that a network of this size reads, and of CLIP's last block, which is left alone."""
  found = {}
  for rule in TABLES[part].rules(cfg, layout):
    shape = targets(part, cfg)[rule.target]
    sources = rule.transform.source_shapes(shape[rule.stacked :])
    for layer in range(shape[0] + (part == 'image') if rule.stacked else 1):
      found.update(zip(rule.names(layer), sources, strict=True))
  return found


def fit(part: str, cfg, layout: str, tensors: dict[str, Tensor]) -> tuple[Leaf, ...]:
  """The plan by the part's table."""
  table = TABLES[part]
  return plan(tensors, table.rules(cfg, layout), targets(part, cfg), ignore=table.ignored(cfg, layout))


def described(part: str, cfg, layout: str) -> dict[str, Tensor]:
  return {name: Tensor(shape, 'float32') for name, shape in shapes(part, cfg, layout).items()}


def random(part: str, cfg, layout: str, dtype: str = 'float32') -> dict[str, np.ndarray]:
  """Random tensors of a small network."""
  rng, kind = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, dtype, dtype))
  return {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes(part, cfg, layout).items()}
