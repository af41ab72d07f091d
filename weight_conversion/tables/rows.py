"""What the tables are written in: a row ties a layer of ours to a layer of both published layouts."""

from collections.abc import Iterable
from typing import NamedTuple

from weight_conversion.rules import KEEP, LINEAR, Rule, Transform

LAYOUTS = ('native', 'diffusers')  # the second is transformers' for the two encoders
Kind = tuple[tuple[str, str, Transform], ...]  # (end of our path, end of the published name, transform)


def dense(kernel: Transform = LINEAR, bias: Transform = KEEP) -> Kind:
  """``weight`` and ``bias`` of a linear layer or a convolution."""
  return ('/kernel', '.weight', kernel), ('/bias', '.bias', bias)


def leaf(transform: Transform) -> Kind:
  """A tensor on its own, named in full."""
  return (('', '', transform),)


DENSE = dense()
KERNEL: Kind = (('/kernel', '.weight', LINEAR),)
NORM: Kind = (('/scale', '.weight', KEEP), ('/bias', '.bias', KEEP))
RMS: Kind = (('/scale', '.weight', KEEP),)
LEAF = leaf(KEEP)


class Row(NamedTuple):
  """One layer in the three trees. Published names are several where we fuse what the others keep apart."""

  ours: str
  native: str | tuple[str, ...]
  diffusers: str | tuple[str, ...]
  kind: Kind
  diffusers_kind: Kind | None = None  # where it is not that of native
  diffusers_copies: tuple[str, ...] = ()  # other names of a tied tensor

  def rules(self, layout: str) -> list[Rule]:
    native = layout == 'native'
    names = self.native if native else self.diffusers
    names = (names,) if isinstance(names, str) else names
    kind = self.kind if native or self.diffusers_kind is None else self.diffusers_kind
    copies = () if native else self.diffusers_copies
    return [
      Rule(tuple(name + theirs for name in names), self.ours + ours, transform, copies)
      for ours, theirs, transform in kind
    ]


def rules_of(rows: Iterable[Row], layout: str) -> tuple[Rule, ...]:
  if layout not in LAYOUTS:
    raise ValueError(f'layout is {layout!r}, not one of {LAYOUTS}')
  return tuple(rule for row in rows for rule in row.rules(layout))


def under(outer: tuple[str, str, str], rows: Iterable[Row]) -> tuple[Row, ...]:
  """``rows`` inside a module, whose (ours, native, diffusers) names are ``outer``."""
  ours, native, diffusers = outer
  inside = lambda module, name: f'{module}.{name}' if isinstance(name, str) else tuple(f'{module}.{n}' for n in name)
  return tuple(
    row._replace(
      ours=f'{ours}/{row.ours}', native=inside(native, row.native), diffusers=inside(diffusers, row.diffusers)
    )
    for row in rows
  )
