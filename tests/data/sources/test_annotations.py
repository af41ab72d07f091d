import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from one4d_jax.data.sources import annotations
from one4d_jax.errors import DataError


def test_rigid_agrees_with_scipy():
  rng = np.random.default_rng(0)
  quaternions = rng.standard_normal((20, 4)) * rng.uniform(0.1, 9, (20, 1))
  translations = rng.standard_normal((20, 3))
  matrices = annotations.rigid(quaternions, translations)
  np.testing.assert_allclose(matrices[:, :3, :3], Rotation.from_quat(quaternions).as_matrix(), atol=1e-14)
  np.testing.assert_array_equal(matrices[:, :3, 3], translations)
  np.testing.assert_allclose(annotations.inverse(matrices), np.linalg.inv(matrices), atol=1e-14)


def test_rows_that_are_not_finite_become_nan_and_no_others():
  quaternions = np.tile([0.0, 0, 0, 1], (5, 1))
  translations = np.zeros((5, 3))
  quaternions[1], quaternions[2, 0], translations[3, 1] = 0, np.nan, np.inf
  matrices = annotations.inverse(annotations.rigid(quaternions, translations))
  assert np.isnan(matrices).all(axis=(1, 2)).tolist() == [False, True, True, True, False]
  np.testing.assert_array_equal(matrices[[0, 4]], np.tile(np.eye(4), (2, 1, 1)))


def test_rows(tmp_path):
  path = tmp_path / 'rows.txt'
  path.write_text('1 2\r\n\r\n nan\t-3e-2 \n')
  np.testing.assert_array_equal(annotations.rows(path, 2), [[1, 2], [np.nan, -0.03]])
  with pytest.raises(DataError, match=r'rows\.txt, row 1: 2 values, expected 3'):
    annotations.rows(path, 3)


def test_deep_or_foreign_json_is_an_error_of_the_file(tmp_path):
  path = tmp_path / 'deep.json'
  for content in (b'[' * 200_000, b'\xff\xfe{}', b''):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'deep\.json is '):
      annotations.parse_json(path)
  with pytest.raises(DataError, match='cannot be read'):
    annotations.parse_json(tmp_path)
