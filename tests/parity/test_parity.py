"""Our networks, read from releases, equal diffusers and transformers; so do the solvers and a whole denoising loop."""

import shutil

import jax
import numpy as np
import pytest

for package in ('torch', 'diffusers', 'transformers'):
  pytest.importorskip(package, reason=f'parity is against {package}, which is not installed')

from tests import golden  # noqa: E402
from tests.parity import cases, releases  # noqa: E402
from tests.parity.models import Models, settings  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore::DeprecationWarning:diffusers')]


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  folder = tmp_path_factory.mktemp('parity')
  with settings():
    yield Models(folder)
  shutil.rmtree(folder)  # a gigabyte


@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.full if n == 'loop' else ()) for n in cases.CASES])
def test_equals_the_original(models, name):
  results = list(cases.CASES[name](models))
  print(*results, sep='\n')
  assert results and all(np.isfinite(r.relative) for r in results)
  assert [r for r in results if r.absolute > r.tolerance] == []
  halves = [r.bfloat16 for r in results if r.bfloat16]
  assert all(ours < 3 * theirs for ours, theirs in halves), halves


@pytest.mark.parametrize(
  ('networks', 'layout', 'parts'),
  [('whole', 'diffusers', 4), ('whole', 'single', 1), ('odd', 'diffusers', 1)],
)
def test_every_layout_gives_the_same_weights(models, networks, layout, parts):
  """Equal to the bit: native files in float32 or bfloat16, whole or in shards, shards of diffusers, prefixed names."""
  native, other = models.bundle(networks, 'native'), models.bundle(networks, layout)
  assert len(other.params) == parts
  for part, tree in other.params.items():
    assert jax.tree.structure(tree) == jax.tree.structure(native.params[part])
    jax.tree.map(np.testing.assert_array_equal, tree, native.params[part])
    field = 'dit' if part == 'base' else part
    assert getattr(other.config, field) == getattr(native.config, field)


def test_releases_are_named_as_the_originals(models):
  """The names these tests write are those of the golden runs, which used Wan's own modules."""
  for file, module in zip(('dit', 'vae', 'umt5', 'clip'), models.whole, strict=True):
    written = {name.removeprefix('visual.') for name in releases.native_state(module)}
    assert written - {'log_scale', 'textual.token_embedding.weight'} == set(golden.load(file)[0]['shapes'])
