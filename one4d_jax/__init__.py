"""One4D in JAX: text, an image, a few frames or a video in; a 4D scene out.

The names below are the public interface. Each is imported when first used, so ``import one4d_jax`` itself loads
neither JAX nor NumPy.
"""

import importlib

__version__ = '0.1.0'

# public name -> (module, attribute). Solving the flow is ``one4d_jax.flow.sampling.sample``: here that name belongs
# to the command ``python -m one4d_jax.sample``, whose library form is ``generate``.
_PUBLIC = {
  'load_config': ('one4d_jax.config', 'load'),
  'load_base': ('one4d_jax.parallel.load', 'load_base'),
  'One4D': ('one4d_jax.model.one4d', 'One4D'),
  'Condition': ('one4d_jax.model.umc', 'Condition'),
  'make_condition': ('one4d_jax.model.umc', 'make_condition'),
  'flow_loss': ('one4d_jax.flow.rectified', 'loss'),
  'generate': ('one4d_jax.model.generate', 'generate'),
  'WanVAE': ('one4d_jax.wan.vae', 'WanVAE'),
  'fit_cameras': ('one4d_jax.postopt.fit', 'fit_cameras'),
  'depth_metrics': ('one4d_jax.evaluation.depth', 'depth_metrics'),
  'trajectory_metrics': ('one4d_jax.evaluation.trajectory', 'trajectory_metrics'),
  'Scene': ('one4d_jax.viewer.scene', 'Scene'),
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(_PUBLIC)}')
  module, attribute = _PUBLIC[name]
  globals()[name] = value = getattr(importlib.import_module(module), attribute)
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *_PUBLIC})
