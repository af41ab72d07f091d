"""Where arrays lie on a mesh, for networks that know no mesh.

Networks name the axes of what they compute (``constrain``) and call ``attention.attend``. While a ``Layout`` is in use
it places both; without one, names mean nothing and attention is local. A layout is read while a function is traced, so
what is jitted enters ``using`` itself.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Protocol

import jax


class Layout(Protocol):
  """How a mesh is used. ``parallel/layout.py`` has the one there is."""

  mesh: jax.sharding.Mesh
  platform: str  # of the devices, e.g. 'gpu': decides which kernels may be used
  modality_axis: str | None  # mesh axis that holds the two branches apart

  def constrain(self, x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """``x`` placed by the names of its axes."""

  def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention over arrays that are split by batch, tokens and heads."""


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar('layout', default=None)


@contextlib.contextmanager
def using(layout: Layout | None) -> Iterator[None]:
  """Places by ``layout`` what is traced inside; ``None`` by none."""
  token = _LAYOUT.set(layout)
  try:
    yield
  finally:
    _LAYOUT.reset(token)


def current() -> Layout | None:
  """The layout in use."""
  return _LAYOUT.get()


def platform() -> str:
  """Of the devices that what is traced will run on."""
  layout = current()
  return jax.default_backend() if layout is None else layout.platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """``x``, placed by the logical names of its axes (under ``vmap`` without the mapped one)."""
  layout = current()
  return x if layout is None else layout.constrain(x, names)
