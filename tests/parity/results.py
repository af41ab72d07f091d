"""What a comparison comes to, and the arrays it starts from."""

from typing import NamedTuple

import numpy as np
import torch

TOLERANCE = 1e-4  # of the largest difference, float32


class Result(NamedTuple):
  """One line of the table. Errors are against the original in float32 with the same weights and inputs."""

  component: str
  sizes: str
  files: str  # what our weights were read from
  absolute: float  # max |ours - theirs|
  relative: float  # the same over max |theirs|
  tolerance: float = TOLERANCE  # of ``absolute``
  bfloat16: tuple[float, float] | None = None  # relative errors of us and of them, computing in bfloat16


def errors(ours, theirs) -> tuple[float, float]:
  """``(max |ours - theirs|, that over max |theirs|)``; shapes must agree."""
  ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
  if ours.shape != theirs.shape:
    raise ValueError(f'shapes differ: ours {ours.shape}, theirs {theirs.shape}')
  absolute = float(np.abs(ours - theirs).max())
  return absolute, absolute / float(np.abs(theirs).max())


def last(x: torch.Tensor) -> np.ndarray:
  """``[b c f h w]`` to ``[b f h w c]``."""
  return np.moveaxis(x.float().numpy(), 1, -1)


def first(x) -> torch.Tensor:
  """``[b f h w c]`` to ``[b c f h w]``."""
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
