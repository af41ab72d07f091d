"""Readers of public data sets, one file a set; every one offers

  find(root) -> list[Listed]        what is under the folder, cheap: nothing but names is read

Each recording is opened on its own, so that a damaged one costs no more than itself.
"""

import importlib
from types import ModuleType

from one4d_jax.errors import DataError

NAMES = ('omniworld', 'bedlam', 'pointodyssey', 'tartanair', 'spatialvid', 'generic')


def load(name: str) -> ModuleType:
  """The reader called ``name``. Raises DataError for a name that is none of ``NAMES``."""
  if name not in NAMES:
    raise DataError(f'no data source {name!r}; choose from {", ".join(NAMES)}')
  return importlib.import_module(f'one4d_jax.data.sources.{name}')
