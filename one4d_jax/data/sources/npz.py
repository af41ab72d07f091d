"""An .npz file read frame by frame: what a reconstructor made of a long video never fills memory. NumPy only."""

import contextlib
import math
import pathlib
import threading
import zipfile

import numpy as np

from one4d_jax.data.images import reading
from one4d_jax.data.kept import kept
from one4d_jax.errors import DataError


class Npz:
  """Arrays of one file by name. Members that are read by rows stay open; going backwards inflates one anew.

  Raises DataError naming the file and the array: missing, damaged, or pickled.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self._lock = threading.Lock()
    self._rows: dict[str, _Rows] = {}
    with self._damage():
      self._archive = zipfile.ZipFile(path)
    self.names = frozenset(name.removesuffix('.npy') for name in self._archive.namelist())

  def array(self, name: str) -> np.ndarray:
    """A whole array."""
    with self._damage(name), self._member(name) as file:
      return np.lib.format.read_array(file, allow_pickle=False)

  def shape(self, name: str) -> tuple[int, ...]:
    """As the array's header says."""
    return self._opened(name).shape

  def row(self, name: str, i: int) -> np.ndarray:
    """``array(name)[i]``."""
    rows = self._opened(name)
    with self._lock, self._damage(f'{name}[{i}]'):
      rows.file.seek(rows.start + i * rows.bytes)
      data = rows.file.read(rows.bytes)
      if len(data) < rows.bytes:
        raise EOFError('it ends early')
      return np.frombuffer(data, rows.dtype).reshape(rows.shape[1:])

  def _opened(self, name: str) -> '_Rows':
    if name not in self._rows:
      with self._damage(name):
        self._rows[name] = _Rows(self._member(name))
    return self._rows[name]

  def _member(self, name: str):
    if name not in self.names:
      raise DataError(f'{self.path} has no array {name}; it holds {", ".join(sorted(self.names)) or "nothing"}')
    return self._archive.open(f'{name}.npy')

  @contextlib.contextmanager
  def _damage(self, name: str = ''):
    place = f'{self.path}: array {name}' if name else f'{self.path}'
    try:
      with reading(self.path):
        yield
    except DataError:
      raise
    except Exception as error:  # zipfile, zlib and NumPy between them raise nearly every kind on damaged bytes
      raise DataError(f'{place} is damaged or no .npz data: {error}') from error


class _Rows:
  def __init__(self, file):
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    self.shape, fortran, self.dtype = header(file)
    if self.dtype.hasobject or not self.shape or (fortran and len(self.shape) > 1):
      raise ValueError(f'expected rows of numbers in C order, got {self.dtype} {list(self.shape)}')
    self.file, self.start = file, file.tell()
    self.bytes = self.dtype.itemsize * math.prod(self.shape[1:])


opened = kept(Npz)
