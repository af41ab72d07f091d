"""Does the suite see a wrong sign, order or offset in one line? Each is planted in a copy of the sources.

  python benchmarks/mutations.py

A mutation is caught if a test fails that passes without it. Writes a table of docs/reliability.md.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchmarks import page
from one4d_jax import cli


class Mutation(NamedTuple):
  """One line made wrong."""

  what: str
  file: str  # under one4d_jax/
  old: str  # occurs once
  new: str
  tests: str  # of which one must fail


MUTATIONS = (
  Mutation(
    'condition before mask',
    'model/one4d.py',
    '[condition.mask, condition.latent]',
    '[condition.latent, condition.mask]',
    'tests/model',
  ),
  Mutation(
    'mask groups the first frame with those after it',
    'model/umc.py',
    'groups = jnp.concatenate([jnp.repeat(first, 4, axis=1), rest], axis=1)',
    'groups = jnp.concatenate([first, rest, jnp.repeat(rest[:, -1:], 3, axis=1)], axis=1)',
    'tests/model',
  ),
  Mutation(
    'the XYZ branch sees the condition',
    'model/one4d.py',
    'z[dlc.XYZ], jnp.zeros_like(given)',
    'z[dlc.XYZ], given',
    'tests/model',
  ),
  Mutation('velocity from noise to data', 'flow/rectified.py', 'return eps - z', 'return z - eps', 'tests/flow'),
  Mutation(
    'data where noise should be',
    'flow/rectified.py',
    'return (1 - sigma) * z + sigma * eps',
    'return sigma * z + (1 - sigma) * eps',
    'tests/flow',
  ),
  Mutation(
    'a link reads its own branch', 'model/dlc.py', "'mbsd,mde->mbse', x[::-1]", "'mbsd,mde->mbse', x", 'tests/model'
  ),
  Mutation(
    'guidance away from the prompt',
    'flow/guidance.py',
    'negative + weight * (positive - negative)',
    'positive + weight * (negative - positive)',
    'tests/flow',
  ),
  Mutation(
    'LoRA without its scale',
    'model/one4d.py',
    'scale = self.adapters.alpha / self.adapters.rank',
    'scale = 1.0',
    'tests/model',
  ),
  Mutation(
    'rotation by the negative angle',
    'nn/rope.py',
    'even * cos - odd * sin, even * sin + odd * cos',
    'even * cos + odd * sin, odd * cos - even * sin',
    'tests/nn tests/wan',
  ),
  Mutation(
    'axes of positions reversed', 'nn/rope.py', "indexing='ij'), -1)", "indexing='ij')[::-1], -1)", 'tests/nn tests/wan'
  ),
  Mutation(
    'attention without its scale', 'nn/attention.py', 'scale = q.shape[-1] ** -0.5', 'scale = 1.0', 'tests/nn tests/wan'
  ),
  Mutation(
    'latents not normalised', 'wan/vae.py', 'return (mean - shift) / scale', 'return mean', 'tests/wan/test_vae.py'
  ),
  Mutation(
    'pixel corners for centres',
    'model/pointmap.py',
    'np.arange(width) + 0.5',
    'np.arange(width)',
    'tests/model/test_pointmap.py',
  ),
  Mutation(
    'inverse pose',
    'postopt/problem.py',
    "'fpi,fij->fpj', offset",
    "'fpi,fji->fpj', offset",
    'tests/postopt/test_fit.py',
  ),
  Mutation(
    'anisotropic pointmap',
    'model/pointmap.py',
    '2 * np.abs(points[:, 0])',
    'np.abs(points[:, 0])',
    'tests/model/test_pointmap.py',
  ),
  Mutation(
    'origin of the pointmap not moved',
    'model/pointmap.py',
    'scaled[..., 2] -= 1',
    'scaled[..., 2] -= 0',
    'tests/model/test_pointmap.py',
  ),
  Mutation(
    'timestep in 0 to 1', 'model/one4d.py', '1000 * sigma, condition.text', 'sigma, condition.text', 'tests/model'
  ),
  Mutation(
    'steps end above zero noise',
    'flow/solvers.py',
    'sigmas = np.append(shift_time(u, shift), 0.0)',
    'sigmas = np.append(shift_time(u, shift), 0.01)',
    'tests/flow',
  ),
)


def parser() -> argparse.ArgumentParser:
  return page.parser('mutations', __doc__, page='docs/reliability.md')


def main(args: argparse.Namespace) -> None:
  from tqdm import tqdm

  names = subprocess.run(['git', 'ls-files'], cwd=page.ROOT, capture_output=True, text=True, check=True).stdout
  with tempfile.TemporaryDirectory() as temporary:
    copy = pathlib.Path(temporary)
    for name in names.splitlines():
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(page.ROOT / name, copy / name)
    for tests in sorted({mutation.tests for mutation in MUTATIONS}):
      if failed := failing(copy, tests):
        raise RuntimeError(f'{failed} fails without any mutation')
    rows = []
    for mutation in tqdm(MUTATIONS, unit='mutation'):
      file = copy / 'one4d_jax' / mutation.file
      text = file.read_text()
      if text.count(mutation.old) != 1:
        raise RuntimeError(f'{mutation.old!r} is {text.count(mutation.old)} times in {mutation.file}')
      file.write_text(text.replace(mutation.old, mutation.new))
      rows.append({'what': mutation.what, 'file': mutation.file, 'test': failing(copy, mutation.tests)})
      file.write_text(text)
  page.record(args, {'rows': rows}, tables)


def failing(copy: pathlib.Path, tests: str) -> str | None:
  """The first test that fails, or None."""
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *tests.split()]
  env = os.environ | {'PYTHONPATH': str(copy), 'OPENBLAS_NUM_THREADS': '1'}
  done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
  if done.returncode == 0:
    return None
  found = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.M)
  if not found:
    raise RuntimeError(f'pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}')
  return found[1]


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  lines = [(row['what'], f'`{row["file"]}`', f'`{row["test"]}`' if row['test'] else 'no') for row in results['rows']]
  return {'mutations': report.table(lines, ('planted', 'in', 'caught by'))}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
