"""Apply a table of names: native Wan tensors in, one of our parameter trees out.

A rule reads ``Rule('blocks.{l}.ffn.0.weight', 'blocks/ffn_in/kernel', linear)``. A source with ``{l}`` names one
tensor per layer; they are stacked on a new leading axis. Every source is used once and every target filled
once: whatever is missing or left over is reported together, before any data moves. Tensors that our networks
do not have are named as patterns in ``ignore``; a pattern that matches nothing is an error too.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flax import traverse_util

from one4d_jax.errors import CheckpointError

Transform = Callable[[np.ndarray], np.ndarray]


def keep(w: np.ndarray) -> np.ndarray:
  return w


def linear(w: np.ndarray) -> np.ndarray:
  """Torch keeps ``[out, in]``, we keep ``[in, out]``."""
  return w.T


def conv(w: np.ndarray) -> np.ndarray:
  """Torch keeps ``[out, in, *window]``, we keep ``[*window, in, out]``."""
  return np.moveaxis(w, (0, 1), (-1, -2))


@dataclasses.dataclass(frozen=True)
class Rule:
  source: str
  target: str
  transform: Transform = keep


def convert(tensors: Mapping[str, np.ndarray], rules: Iterable[Rule], *, ignore: Iterable[str] = ()) -> dict:
  """Our tree from native ``tensors``, without those that match a pattern of ``ignore`` (``*`` is any text).

  Raises:
    CheckpointError: listing every source no rule reads and every rule or pattern that finds no source.
  """
  dropped = {pattern: fnmatch.filter(tensors, pattern) for pattern in ignore}
  missing = [pattern for pattern, names in dropped.items() if not names]
  available = set(tensors).difference(*dropped.values())
  flat, used = {}, set()
  for rule in rules:
    if '{l}' in rule.source:
      pattern = re.compile(re.escape(rule.source).replace(r'\{l\}', r'(\d+)'))
      found = sorted((int(m[1]), name) for name in available if (m := pattern.fullmatch(name)))
      names = [name for _, name in found]
      if not names or [i for i, _ in found] != list(range(len(found))):
        missing.append(rule.source)
        continue
      flat[rule.target] = np.stack([rule.transform(tensors[name]) for name in names])
    else:
      names = [rule.source]
      if rule.source not in available:
        missing.append(rule.source)
        continue
      flat[rule.target] = np.ascontiguousarray(rule.transform(tensors[rule.source]))
    used.update(names)
  left = sorted(available - used)
  if missing or left:
    raise CheckpointError(f'checkpoint does not fit the table: missing {missing[:20]}, unexpected {left[:20]}')
  return traverse_util.unflatten_dict(flat, sep='/')
