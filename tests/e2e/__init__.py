"""The commands as a user runs them, in processes of their own, on networks that take seconds."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent

DATA = ('data.clips=4', 'data.validation_clips=1', 'data.height=32', 'data.width=32', 'data.frames=5')
MODEL = (
  'model.vae.width=8',  # with Wan's resamplers and latent, which the tiny preset does without
  'model.vae.patch=1',
  'model.vae.mult=[1,1,1,1]',
  'model.vae.temporal=[false,true,true]',
  'model.vae.res_blocks=1',
  'model.vae.latent_channels=16',
  f'model.vae.latent_mean={[0.0] * 16}',
  f'model.vae.latent_std={[1.0] * 16}',
  'model.dit.in_channels=36',
  'model.dit.out_channels=16',
  'model.dit.patch=[1,2,2]',
  'model.dit.sigma_data=0.0',
  'model.dit.width=48',
  'model.dit.heads=2',
  'model.dit.ffn_width=64',
  'model.dit.layers=2',
  'model.dit.text_len=32',
  'model.adapters.link_layers=[0]',
  'model.adapters.rank=2',
)
TRAIN = ('train.batch=2', 'train.crop=[5,16]', 'train.log_every=1', 'train.validate_every=100', 'sample.steps=2')


def command(module: str, *arguments: str) -> list[str]:
  return [sys.executable, '-m', module, *arguments]


def train(stage: str, home: pathlib.Path, *changes: str) -> list[str]:
  """The command line that trains ``stage`` under ``home``."""
  before = {'vae': None, 'base': 'vae', 'one4d': 'base'}[stage]
  weights = [f'model.weights={home / before / "export"}'] if before else []
  values = [*DATA, *MODEL, *TRAIN, f'data.cache={home / "data"}', *weights, *changes]
  config = ['--config', f'configs/{stage}.py:tiny', '--workdir', str(home / stage)]
  return command('one4d_jax.train', *config, *(f'--config.{value}' for value in values))


def environment() -> dict[str, str]:
  """One CPU device, quick compilation, the test suite's cache of compiled programs."""
  cache = str(ROOT / '.cache' / 'jax')
  changes = {'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': cache, 'TF_CPP_MIN_LOG_LEVEL': '3'}
  return os.environ | changes | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}


def run(arguments: list[str], *, status: int = 0, timeout: int = 600) -> subprocess.CompletedProcess:
  """Runs a command from the project's root and checks its exit status."""
  done = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)
  assert done.returncode == status, f'exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
  return done
