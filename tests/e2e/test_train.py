"""Three stages from nothing to a model that samples; and training that survives being killed."""

import json
import pathlib
import re
import signal
import subprocess
import time

import pytest

from one4d_jax import cli
from one4d_jax import train as trainer
from one4d_jax.viewer.scene import load
from tests import small
from tests.e2e import DATA, MODEL, ROOT, TRAIN, command, environment, run, train


def steps(workdir: pathlib.Path) -> list[int]:
  """Those whose loss was logged."""
  rows = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [row['step'] for row in rows if 'loss' in row]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A bundle made by the three stages, two steps each, by one command."""
  home = tmp_path_factory.mktemp('runs')
  values = (*DATA, *MODEL, *TRAIN, 'train.steps=2', 'train.accumulation=2')
  arguments = ('--recipe', 'tiny', '--workdir', str(home), *(f'--config.{value}' for value in values))
  done = run(command('one4d_jax.train', *arguments))
  stages = ('vae', 'base', 'one4d')
  assert done.stdout.split() == [str(home / stage / 'export') for stage in stages]
  for stage in stages:
    assert (home / stage / 'validation-000002.png').is_file()
    assert list((home / stage / 'tensorboard').iterdir())
  return home


@pytest.mark.slow
def test_three_stages_make_a_bundle_with_its_record(trained):
  bundle = json.loads((trained / 'one4d' / 'export' / 'bundle.json').read_text())
  assert set(bundle['record']) == {'vae', 'base', 'one4d'} and bundle['record']['one4d']['steps'] == 2
  assert {'loss_rgb', 'loss_xyz', 'validation/psnr_xyz'} <= set(bundle['record']['one4d']['metrics'])


@pytest.mark.slow
def test_the_bundle_samples_a_scene(trained, tmp_path):
  arguments = ('--weights', str(trained / 'one4d' / 'export'), '--prompt', 'a red box', '--out', str(tmp_path / 'out'))
  done = run(command('one4d_jax.sample', *arguments))
  assert str(tmp_path / 'out' / 'scene.html') in done.stdout
  assert load(tmp_path / 'out').rgb.shape == (5, 32, 32, 3)
  assert '--overwrite' in run(command('one4d_jax.sample', *arguments), status=2).stderr


@pytest.mark.slow
def test_other_weights_than_the_checkpoint_was_trained_on_are_refused(trained):
  other = f'model.weights={trained / "one4d" / "export"}'
  error = run(train('one4d', trained, 'train.steps=3', other), status=2).stderr
  assert 'was trained on weights' in error and error.strip().count('\n') <= 3


@pytest.mark.slow
def test_other_data_than_the_checkpoint_was_trained_on_is_refused(trained):
  error = run(train('vae', trained, 'train.steps=3', 'data.clips=3'), status=2).stderr
  assert 'procedural has another number of records (4 before, 3 now)' in error and 'another --workdir' in error


@pytest.mark.slow
def test_killed_between_and_during_saves_training_continues(trained, tmp_path):
  """SIGKILL while a checkpoint is being written, then between two; the same command ends the run."""
  arguments = train('vae', tmp_path, f'data.cache={trained / "data"}', 'train.steps=60', 'train.save_every=3')
  workdir = tmp_path / 'vae'

  log = tmp_path / 'log.txt'

  def killed(when) -> list[int]:
    """Starts training, kills it when ``when()``, returns the checkpoints that are whole."""
    with log.open('a') as file:
      process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=file)
    deadline = time.time() + 300
    while not when():
      assert process.poll() is None and time.time() < deadline, 'ended before it could be killed'
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return small.whole(workdir)

  whole = lambda: small.whole(workdir)
  unfinished = lambda: list((workdir / 'checkpoints').glob('*tmp*'))
  first = killed(lambda: len(whole()) >= 2 and unfinished())
  assert unfinished(), 'the kill came too late to interrupt a save'
  second = killed(lambda: max(whole(), default=0) > max(first) + 6 and not unfinished())
  assert max(second) > max(first)
  done = run(arguments)
  assert max(whole()) == 60 and not unfinished()

  resumed = [int(step) for step in re.findall(r'resumed at step (\d+)', log.read_text() + done.stderr)]
  assert resumed == [max(first), max(second)], 'each start continued from the newest whole checkpoint'
  assert steps(workdir) == list(range(1, 61)), 'every step was taken, and is told of once'


@pytest.mark.slow
def test_asked_to_stop_training_saves_and_goes_on(trained, tmp_path):
  """SIGTERM, twice; then the same command with --resume; elsewhere --resume finds nothing."""
  arguments = train('vae', tmp_path, f'data.cache={trained / "data"}', 'train.steps=40', 'train.save_every=30')
  workdir, log = tmp_path / 'vae', tmp_path / 'log.txt'
  with log.open('w') as file:
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=file)
  deadline = time.time() + 300
  while not (workdir / 'metrics.jsonl').exists() or not steps(workdir):
    assert process.poll() is None and time.time() < deadline
    time.sleep(0.01)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
  assert process.wait(timeout=120) == 0
  saved = max(small.whole(workdir))
  assert f'asked to stop: step {saved} is saved' in log.read_text() and saved < 40
  again = run([*arguments, '--resume', '--config.train.learning_rate=2e-4'])
  assert f'resumed at step {saved}' in again.stderr
  assert 'changed since then: train.learning_rate: 0.0001 -> 0.0002' in again.stderr
  error = run([*arguments, '--resume', '--workdir', str(tmp_path / 'elsewhere')], status=2).stderr
  assert 'no checkpoint in' in error and '--resume' in error


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config', 'configs/one4d.py'], 'no base weights.*configs/one4d.py:tiny'),
    (['--config', 'configs/one4d.py:nano'], 'choose from paper, one_gpu, pod, tiny'),
    (['--config', 'configs/one4d.py:tiny', '--config.train.stepz=1'], "unknown config key 'train.stepz'"),
    (['--config', 'configs/one4d.py:tiny', '--config.model.remat=all'], "model.remat='all' must be one of none, block"),
    (['--config', 'configs/one4d.py:tiny', '--config.parallel.mesh=fsdp=2,fsdb=2'], "'fsdb=2' is no part of one"),
    (['--config', 'configs/one4d.py:tiny', '--config.parallel.mesh=cfg=2'], 'cfg is an axis of sampling'),
    (['--config', 'configs/one4d.py:tiny', '--config.train.optimizer_state=int4'], 'must be one of float32, bfloat16'),
    (['--config', 'configs/one4d.py:tiny', '--config.data.frames=18'], 'nearest are 17 and 21'),
    (['--config', 'configs/one4d.py:tiny', '--config.model.weights=nowhere'], "no weights at 'nowhere'.*base.py:tiny"),
    (['--config', 'configs/vae.py:tiny', '--config.data.source=folder'], 'data.source: folder is no folder'),
    (['--config', 'configs/vae.py:tiny', '--config.data.source=procedural@2,tests'], 'tests is neither a prepared set'),
    (['--config', 'configs/vae.py:tiny', '--config.data.source=a@0,b'], "data.source='a@0,b': 'a@0' must be"),
    (['--config', 'configs/vae.py:tiny', "--config.data.source=''"], 'no data: set --config.data.source'),
  ],
)
def test_a_mistake_is_one_line_before_any_work(arguments, message, capsys, tmp_path):
  workdir = tmp_path / 'run'
  assert cli.run(trainer.main, trainer.parser(), [*arguments, '--workdir', str(workdir)]) == 2
  error = capsys.readouterr().err
  assert re.search(message, error) and error.count('\n') == 1 and not workdir.exists()
