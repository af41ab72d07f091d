"""What readers find beside the pixels: JSON, rows of numbers, rigid poses. NumPy only."""

import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float64

from one4d_jax.data.images import reading
from one4d_jax.errors import DataError


def text(path: pathlib.Path) -> str:
  """A UTF-8 file. Raises DataError."""
  with reading(path):
    stored = path.read_bytes()
  try:
    return stored.decode()
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not a text file: {error}') from error


def parse_json(path: pathlib.Path) -> Any:
  """The value of a JSON file. Raises DataError."""
  stored = text(path)
  try:
    return json.loads(stored)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is damaged or no JSON: {error}') from error


def rows(path: pathlib.Path, columns: int) -> Float64[np.ndarray, 'N {columns}']:
  """The numbers of a text file, ``columns`` in each line; 'nan' is one of them. Raises DataError naming the line."""
  lines = [line.split() for line in text(path).splitlines() if line.strip()]
  if not lines:
    raise DataError(f'{path} is empty; expected {columns} numbers in each line')
  for number, line in enumerate(lines, 1):
    if len(line) != columns:
      raise DataError(f'{path}, row {number}: {len(line)} values, expected {columns}; is the file cut short?')
  try:
    return np.array(lines, np.float64)
  except ValueError as error:
    raise DataError(f'{path} holds something that is no number: {error}') from error


def rigid(
  quaternion: Float64[np.ndarray, 'N 4'], translation: Float64[np.ndarray, 'N 3']
) -> Float64[np.ndarray, 'N 4 4']:
  """Matrices of quaternions (x, y, z, w), of any length but 0, and translations; NaN where a row is not finite."""
  with np.errstate(invalid='ignore', divide='ignore'):
    x, y, z, w = (quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)).T
  matrix = np.zeros((len(quaternion), 4, 4))
  matrix[:, :3, :3] = np.moveaxis(
    np.array(
      [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
      ]
    ),
    -1,
    0,
  )
  matrix[:, :3, 3] = translation
  matrix[:, 3, 3] = 1
  matrix[~np.isfinite(matrix).all(axis=(1, 2))] = np.nan
  return matrix


def inverse(matrix: Float64[np.ndarray, 'N 4 4']) -> Float64[np.ndarray, 'N 4 4']:
  """Of rigid matrices; NaN stays NaN."""
  turned = np.swapaxes(matrix[:, :3, :3], 1, 2)
  result = matrix.copy()
  result[:, :3, :3] = turned
  result[:, :3, 3] = -(turned @ matrix[:, :3, 3:])[..., 0]
  return result
