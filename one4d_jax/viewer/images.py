"""Arrays as pictures, for people: contact sheets of videos."""

import numpy as np
from PIL import Image


def to_uint8(video: np.ndarray) -> np.ndarray:
  """Values in [-1, 1] as 0..255, rounded."""
  return np.round((np.clip(video, -1, 1) + 1) * 127.5).astype(np.uint8)


def sheet(videos: list[np.ndarray], *, columns: int = 6, zoom: int = 2) -> np.ndarray:
  """One row a video, ``columns`` frames of each spread over its length; uint8 ``[H W 3]``."""
  rows = []
  for video in videos:
    chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    rows.append(np.concatenate([np.pad(to_uint8(video[i]), ((1, 1), (1, 1), (0, 0))) for i in chosen], axis=1))
  return np.kron(np.concatenate(rows), np.ones((zoom, zoom, 1), np.uint8))


def save_png(picture: np.ndarray, path) -> None:
  """Writes uint8 ``[H W 3]`` under a temporary name, then renames."""
  temporary = path.with_name(path.name + '.partial')
  Image.fromarray(picture).save(temporary, format='PNG')
  temporary.rename(path)
