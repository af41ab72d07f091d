"""Do the frames of a prediction tell of one world? Points of one frame are looked for in the next one, and back.

A pixel of frame i is lifted by its depth and camera, projected into frame j = i + 1 (and i - 1), and its depth there,
z, is compared with the depth D that frame j has at the pixel it falls into:

  reprojection   median |D - z| / z          consistency   share with |D - z| / z < 0.05

Only what stands still can be judged: pixels that the benchmark knows to move are left out, and where it does not say
all are taken. What is hidden in the next frame counts as a miss, so that 1 is not reached on true geometry either: the
method ``truth`` gives the value to compare with. No ground truth enters but the mask. NumPy float64.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float

WITHIN = 0.05
POINTS = 10_000  # of a frame, on a regular grid


def reprojection(
  depth: Float[np.ndarray, 'F h w'],
  usable: Bool[np.ndarray, 'F h w'],
  K: Float[np.ndarray, 'F 3 3'],
  world_from_cam: Float[np.ndarray, 'F 4 4'],
) -> dict[str, float | None]:
  """``reprojection`` and ``consistency`` over all pairs of neighbours; None where no point of one falls into another.

  Args:
    usable: pixels that show a surface which stands still.
  """
  height, width = depth.shape[1:]
  stride = int(np.ceil(np.sqrt(height * width / POINTS)))
  v, u = (a.ravel() for a in np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride])
  pixels = np.stack([u + 0.5, v + 0.5, np.ones(len(u))], axis=-1)
  poses, K = world_from_cam.astype(np.float64), K.astype(np.float64)
  errors = []
  for pair in itertools.pairwise(range(len(depth))):
    for i, j in (pair, pair[::-1]):
      from_i = pixels[usable[i, v, u]] @ np.linalg.inv(K[i]).T * depth[i, v, u][usable[i, v, u], None]
      motion = np.linalg.inv(poses[j]) @ poses[i]
      in_j = from_i @ motion[:3, :3].T + motion[:3, 3]
      z = in_j[:, 2]
      in_j, z = in_j[z > 0], z[z > 0]
      column, row = np.floor((in_j @ K[j].T)[:, :2] / z[:, None]).T
      inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
      column, row, z = column[inside].astype(int), row[inside].astype(int), z[inside]
      seen = usable[j, row, column]
      errors.append(np.abs(depth[j, row, column] - z)[seen] / z[seen])
  errors = np.concatenate(errors) if errors else np.zeros(0)
  if not len(errors):
    return {'reprojection': None, 'consistency': None}
  return {'reprojection': float(np.median(errors)), 'consistency': float(np.mean(errors < WITHIN))}
