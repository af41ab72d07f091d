"""The tensors of a published checkpoint and the arrays of one of our parameter trees, tied by rules.

A rule reads ``Rule(('blocks.{l}.ffn.0.weight',), 'blocks/ffn_in/kernel', LINEAR)``. ``{l}`` counts layers, which our
trees stack on a leading axis. A transform works on one layer, is exact and goes both ways. ``plan`` fits a table of
rules to a file by names, shapes and dtypes alone: every source is used once, every target filled once, and whatever
does not fit is reported together, before any data moves.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from one4d_jax.errors import CheckpointError

DTYPES = ('float32', 'bfloat16', 'float16')
QUANTISED = re.compile(r'u?int[248]$|float[48]|[iuf][48]', re.IGNORECASE)  # or as safetensors names them
SHOWN = 12  # names of a kind in an error


class Tensor(NamedTuple):
  """What is known of a tensor without reading it."""

  shape: tuple[int, ...]
  dtype: str  # as NumPy and ml_dtypes name it


@dataclasses.dataclass(frozen=True)
class Transform:
  """``forward(*sources)`` is our array of one layer, ``backward(array)`` the sources again; views where possible."""

  forward: Callable[..., np.ndarray]
  backward: Callable[[np.ndarray], tuple[np.ndarray, ...]]

  def source_shapes(self, layer: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the sources of one layer of ours, whose shape is ``layer``."""
    return tuple(w.shape for w in self.backward(np.broadcast_to(np.zeros(()), layer)))  # strides are 0: no memory


def _reshaped(theirs: Callable, ours: Callable) -> Transform:
  return Transform(theirs, lambda w: (ours(w),))


KEEP = _reshaped(lambda w: w, lambda w: w)
LINEAR = _reshaped(lambda w: w.T, lambda w: w.T)  # [out, in] <-> [in, out]
CONV = _reshaped(  # [out, in, *window] <-> [*window, in, out]
  lambda w: np.moveaxis(w, (0, 1), (-1, -2)), lambda w: np.moveaxis(w, (-1, -2), (0, 1))
)


def leading(ones: int) -> Transform:
  """``[1, ..., *shape]`` with so many leading ones ``<-> [*shape]``."""
  return _reshaped(lambda w: w.reshape(w.shape[ones:]), lambda w: w.reshape((1,) * ones + w.shape))


FIRST = leading(1)


def scale(ndim: int) -> Transform:
  """``[c, 1, ...]`` of ``ndim`` axes ``<-> [c]``."""
  return _reshaped(lambda w: w.reshape(-1), lambda w: w.reshape(-1, *(1,) * (ndim - 1)))


def pointwise(ndim: int) -> Transform:
  """The kernel ``[out, in, 1, ...]``, of ``ndim`` axes, of a 1x1 convolution ``<-> [in, out]``."""
  return _reshaped(lambda w: w.reshape(w.shape[:2]).T, lambda w: w.T.reshape(*w.shape[::-1], *(1,) * (ndim - 2)))


def patch(channels: int, *window: int, channels_last: bool = False) -> Transform:
  """A convolution whose stride is its window, as a matrix: ``[out, channels, *window] <-> [channels·window, out]``.

  ``channels_last`` orders the rows of the matrix as ``window·channels``.
  """
  if not channels_last:
    return _reshaped(lambda w: w.reshape(w.shape[0], -1).T, lambda w: w.T.reshape(-1, channels, *window))
  return _reshaped(
    lambda w: np.moveaxis(w, 1, -1).reshape(w.shape[0], -1).T,
    lambda w: np.moveaxis(w.T.reshape(-1, *window, channels), -1, 1),
  )


def fused(parts: int) -> Transform:
  """``parts`` kernels ``[out, in]`` or biases ``[out]`` of equal size, side by side in ``[in, parts·out]``."""
  return Transform(lambda *w: np.concatenate(w).T, lambda w: tuple(np.split(w.T, parts)))


@dataclasses.dataclass(frozen=True)
class Rule:
  """Where one of our arrays comes from.

  ``copies`` are other names of a single source, for files that hold a tied tensor under any or all of them. The
  first name found is read, the others are left alone; a written file has the source only.
  """

  sources: tuple[str, ...]
  target: str
  transform: Transform = KEEP
  copies: tuple[str, ...] = ()

  @property
  def stacked(self) -> bool:
    return '{l}' in self.sources[0]

  def names(self, layer: int) -> tuple[str, ...]:
    """The sources of one layer."""
    return tuple(source.replace('{l}', str(layer)) for source in self.sources)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of our tree and where it comes from."""

  target: str
  shape: tuple[int, ...]  # layers included
  layers: tuple[tuple[str, ...], ...]  # the sources of each layer; one entry where nothing is stacked
  stacked: bool
  transform: Transform

  @property
  def source_shapes(self) -> tuple[tuple[int, ...], ...]:
    """Shapes of the sources of one layer, equal in all of them."""
    return self.transform.source_shapes(self.shape[self.stacked :])


def plan(
  tensors: Mapping[str, Tensor],
  rules: Iterable[Rule],
  targets: Mapping[str, tuple[int, ...]],
  *,
  ignore: Iterable[str] = (),
) -> tuple[Leaf, ...]:
  """How each of our arrays is made of ``tensors``.

  Args:
    tensors: of the file, by name.
    rules: the table of the file's layout.
    targets: shapes of our arrays, layers included, by path.
    ignore: patterns (``*`` is any text) of tensors that are left alone, if they are there.

  Raises:
    CheckpointError: one, with all tensors that are missing, unexpected, of another shape or of a dtype that is not
      float32, bfloat16 or float16, and all arrays that the table does not fill.
  """
  rules = tuple(rules)
  known = [rule for rule in rules if rule.target in targets]
  claims, misfits = _claim(tensors, known, lambda rule: targets[rule.target][0], ignore)
  leaves = tuple(
    Leaf(rule.target, tuple(targets[rule.target]), layers, rule.stacked, rule.transform) for rule, layers in claims
  )
  misfits['mis-shaped'], misfits[f'not of a dtype in {", ".join(DTYPES)}'] = _differences(tensors, leaves)
  misfits['of the table unknown to our network'] = [rule.target for rule in rules if rule.target not in targets]
  misfits['of our network left empty'] = sorted(set(targets).difference(rule.target for rule in rules))
  _raise_any(misfits)
  return leaves


def convert(tensors: Mapping[str, np.ndarray], rules: Iterable[Rule], *, ignore: Iterable[str] = ()) -> dict:
  """Our tree from ``tensors`` in memory; the names themselves tell how many layers there are.

  Raises:
    CheckpointError: as ``plan``, for names only.
  """
  names = set(tensors).difference(*(fnmatch.filter(tensors, pattern) for pattern in ignore))

  def count(rule: Rule) -> int:
    pattern = re.compile(re.escape(rule.sources[0]).replace(r'\{l\}', r'(\d+)'))
    return max((int(found[1]) + 1 for name in names if (found := pattern.fullmatch(name))), default=1)

  claims, misfits = _claim(names, rules, count)
  _raise_any(misfits)
  flat = {}
  for rule, layers in claims:
    arrays = [rule.transform.forward(*(tensors[name] for name in sources)) for sources in layers]
    flat[rule.target] = np.stack(arrays) if rule.stacked else np.ascontiguousarray(arrays[0])
  return traverse_util.unflatten_dict(flat, sep='/')


def _claim(
  names: Collection[str], rules: Iterable[Rule], layers: Callable[[Rule], int], ignore: Iterable[str] = ()
) -> tuple[list[tuple[Rule, tuple[tuple[str, ...], ...]]], dict[str, list[str]]]:
  """The sources of each rule, layer by layer, and what does not fit, by kind."""
  available = set(names).difference(*(fnmatch.filter(names, pattern) for pattern in ignore))
  claims, used, skipped = [], collections.Counter(), set()
  for rule in rules:
    wanted = tuple(rule.names(l) for l in range(layers(rule))) if rule.stacked else (rule.sources,)
    if rule.copies:
      own = next((name for name in (*rule.sources, *rule.copies) if name in available), rule.sources[0])
      wanted, skipped = ((own,),), skipped.union(rule.sources, rule.copies)
    claims.append((rule, wanted))
    used.update(name for sources in wanted for name in sources)
  filled = collections.Counter(rule.target for rule, _ in claims)
  return claims, {
    'missing': [name for name in used if name not in available],
    'unexpected': sorted(available.difference(used, skipped)),
    'read twice': [name for name, times in used.items() if times > 1],
    'filled twice': [target for target, times in filled.items() if times > 1],
  }


def _differences(tensors: Mapping[str, Tensor], leaves: Iterable[Leaf]) -> tuple[list[str], list[str]]:
  """Tensors of another shape than their leaf needs, and tensors that are no plain floats."""
  shapes, dtypes = [], []
  for leaf in leaves:
    expected = leaf.source_shapes
    for names in leaf.layers:
      for name, shape in zip(names, expected, strict=True):
        found = tensors.get(name)
        if found and tuple(found.shape) != shape:
          shapes.append(f'{name} {list(found.shape)} instead of {list(shape)}')
        if found and found.dtype not in DTYPES:
          dtypes.append(f'{name} {found.dtype}' + ' (already quantised)' * bool(QUANTISED.match(found.dtype)))
  return shapes, dtypes


def _raise_any(misfits: Mapping[str, list[str]]) -> None:
  """Raises CheckpointError with the number of entries and the first ones of each kind, if there are any."""
  parts = []
  for kind, entries in misfits.items():
    if entries:
      more = f' and {len(entries) - SHOWN} more' if len(entries) > SHOWN else ''
      parts.append(f'{len(entries)} {kind}: {", ".join(entries[:SHOWN])}{more}')
  if parts:
    raise CheckpointError(
      f'the checkpoint does not fit the network, use unchanged files of one release ({"; ".join(parts)})'
    )
