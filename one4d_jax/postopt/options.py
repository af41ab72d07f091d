"""How cameras are fitted. No JAX: commands read these before anything heavy is loaded."""

import dataclasses

from one4d_jax.errors import ConfigError

LOSSES = ('huber', 'l1', 'l2')


@dataclasses.dataclass(frozen=True)
class AdamOptions:
  """The descent of ``method='adam'``; the learning rate falls linearly. Defaults are Geo4D's, the paper gives none."""

  iterations: int = 500
  learning_rate: float = 0.03
  last_learning_rate: float = 1e-3
  b1: float = 0.9
  b2: float = 0.9


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """What is fitted, to which objective, until when.

  The objective is ``mean rho(e) + smoothness * L_s``: misses of points from their rays over the median distance, and
  the mean of Eq. 12 over frame pairs.
  """

  method: str = 'lm'  # or 'adam': the paper's objective with depth unknown, for comparison
  world: str = 'first'  # the pointmap's world is the first camera, which stays the identity; or 'any'
  focal: str = 'shared'  # or 'per_frame'
  known_focal: float = 0.0  # pixels; 0: not known, fitted
  principal_point: str = 'centre'  # or 'shared': fitted, one for the clip
  loss: str = 'huber'  # or 'l1', 'l2'
  smoothness: float = 1e-3  # 0 for none; it pulls towards a static camera, 1e-2 visibly so
  stride: int = 0  # pixels between two used ones; 0 aims at 4096 a frame
  iterations: int = 30  # at most; the first third on the squared error
  tolerance: float = 1e-6  # stop when a step lowers the objective by less than this part of it
  adam: AdamOptions = AdamOptions()

  def __post_init__(self):
    choices = {
      'method': ('lm', 'adam'),
      'world': ('first', 'any'),
      'focal': ('shared', 'per_frame'),
      'principal_point': ('centre', 'shared'),
      'loss': LOSSES,
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ConfigError(f'{name}={getattr(self, name)!r} of the camera fit must be one of {", ".join(allowed)}')
    least = {'known_focal': 0, 'smoothness': 0, 'stride': 0, 'iterations': 1, 'tolerance': 0}
    for name, bound in least.items():
      if not getattr(self, name) >= bound:
        raise ConfigError(f'{name}={getattr(self, name)} of the camera fit must be at least {bound}')
    if self.method == 'adam' and (self.loss != 'l1' or self.focal != 'shared' or self.principal_point != 'centre'):
      raise ConfigError("method='adam' is the paper's objective: it takes loss='l1', a shared focal, the central point")
    if min(self.adam.iterations, self.adam.learning_rate, self.adam.last_learning_rate) <= 0:
      raise ConfigError(f'adam of the camera fit must have positive iterations and learning rates, got {self.adam}')
