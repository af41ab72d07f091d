"""A guard against compilers that compute wrong numbers without an error.

jaxlib 0.10.2 on a CPU does: a product, reduced over its last axis and then combined with something broadcast, is wrong
beyond 32768 elements. Depth along rays is such a pattern.
"""

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from one4d_jax.errors import UserError

TESTED = '0.10.1'  # the jaxlib that the tests of this version ran with


class CompilerError(UserError):
  """The installed compiler cannot be trusted with numbers."""


def check(*, always: bool = False) -> None:
  """Compares a compiled sum of the faulty kind with NumPy's; the tested jaxlib is not asked, unless ``always``.

  Raises:
    CompilerError: they differ.
  """
  if jaxlib.__version__ == TESTED and not always:
    return
  rng = np.random.default_rng(0)
  points, rays = (rng.normal(size=size).astype(np.float32) for size in ((1025, 64, 3), (64, 3)))
  length = 1 + rng.random(64, np.float32)
  along = lambda points, rays, length: (rays * points).sum(-1) / length
  error = np.abs(jax.jit(along)(*map(jnp.asarray, (points, rays, length))) - along(points, rays, length)).max()
  if not error < 0.1:  # a TPU multiplies in bfloat16; the fault is off by several
    raise CompilerError(
      f'jaxlib {jaxlib.__version__} computes wrong numbers on {jax.default_backend()} (off by {error:.2g}): '
      f'install jax=={TESTED}, or set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (with nothing after it)'
    )
