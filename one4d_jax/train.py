"""Train one stage; running the same command again resumes it.

python -m one4d_jax.train --config configs/one4d.py:tiny
python -m one4d_jax.train --config configs/one4d.py --workdir runs/a --config.train.steps=1000
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

from one4d_jax import cli


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(prog='python -m one4d_jax.train', description=__doc__.split('\n')[0])
  cli.add_config(p, default='configs/one4d.py')
  p.add_argument('--workdir', metavar='DIR', help='checkpoints, metrics, pictures, export; default: from the config')
  return p


def main(args: argparse.Namespace) -> None:
  from one4d_jax import config as configs

  config = configs.load(args.config, args.overrides)
  workdir = pathlib.Path(args.workdir or config.workdir)
  require_inputs(config)
  workdir.mkdir(parents=True, exist_ok=True)
  train(config, workdir)


def require_inputs(config) -> None:
  """Before any work: are the weights and the data there?

  Raises:
    CheckpointError, ConfigError, DataError: naming what is missing or malformed and what needs neither.
  """
  from one4d_jax.errors import CheckpointError, DataError
  from one4d_jax.model import bundle

  tiny = 'python -m one4d_jax.train --config configs/one4d.py:tiny'
  if config.train.stage != 'vae':
    if not config.model.weights:
      raise CheckpointError(
        'no base weights: convert Wan2.1-Fun-V1.1-14B-InP with python weight_conversion/wan_to_flax.py and set '
        f'--config.model.weights=DIR; to train without weights or data, see {tiny} and the two stages before it'
      )
    try:
      bundle.locate(config.model.weights)
    except CheckpointError as error:
      before = {'base': 'vae', 'one4d': 'base'}[config.train.stage]
      raise CheckpointError(
        f'{error}; the stage before makes it: python -m one4d_jax.train --config configs/{before}.py:tiny'
      ) from error
  if not config.data.source:
    raise DataError(
      'no data: set --config.data.source to procedural, or to folders made by python -m one4d_jax.prepare or '
      f'python -m one4d_jax.encode, as DIR or DIR@3,DIR2@1; or start with {tiny}'
    )
  for source, _ in config.data.sources:
    if source != 'procedural':
      require_set(pathlib.Path(source))


def require_set(folder: pathlib.Path) -> None:
  """Raises DataError unless ``folder`` holds a prepared or an encoded set."""
  from one4d_jax.errors import DataError

  prepared, encoded = (folder / 'dataset_info.json').is_file(), any(folder.glob('*/dataset.json'))
  if not prepared and not encoded:
    why = 'is neither a prepared set nor an encoded one' if folder.is_dir() else 'is no folder'
    raise DataError(
      f'data.source: {folder} {why}; make a set with python -m one4d_jax.prepare or python -m one4d_jax.encode, or '
      'set --config.data.source=procedural'
    )


def train(config, workdir: pathlib.Path) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np
  from tqdm import tqdm

  from one4d_jax import config as configs
  from one4d_jax.data import pipeline
  from one4d_jax.errors import ConfigError, UserError
  from one4d_jax.model import bundle as bundles
  from one4d_jax.training import optimizer as optimizers
  from one4d_jax.training.checkpoint import Checkpoints
  from one4d_jax.training.metrics import Writer
  from one4d_jax.training.stages import STAGES
  from one4d_jax.training.step import init_state, make_step
  from one4d_jax.viewer.pictures import save_png

  settings, code = config.train, commit()
  say = lambda text: tqdm.write(text, file=sys.stderr)

  # -- What the stage builds on -----------------------------------------------------------------------------------
  before = bundles.Bundle({}, configs.sizes(config), {})
  if config.model.weights:
    loaded = bundles.load(config.model.weights)
    kept = dataclasses.replace(configs.sizes(config), vae=loaded.config.vae)
    if settings.stage == 'one4d':
      kept = dataclasses.replace(kept, dit=loaded.config.dit, text=loaded.config.text, image=loaded.config.image)
    if 'adapters' in loaded.params and loaded.config.adapters != kept.adapters:
      say(f'{config.model.weights} has other adapters than config.model.adapters: starting from fresh ones')
      loaded = loaded.without('adapters')
    before = dataclasses.replace(loaded, config=kept)
  say(
    f'{settings.stage}: {workdir}, weights {before.hash or "none"}, '
    f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  )

  # -- Data, parameters, optimizer ---------------------------------------------------------------------------------
  stage = STAGES[settings.stage](config, before)
  rate = dict(
    learning_rate=settings.learning_rate, warmup=settings.warmup, steps=settings.steps, kind=settings.schedule
  )
  optimizer = optimizers.make(**rate, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm)
  params = stage.given or jax.jit(stage.init)(jax.random.key(settings.seed))
  params = jax.tree.map(jnp.asarray, params)
  state = init_state(params, optimizer, seed=settings.seed, ema=settings.ema)
  step_fn = make_step(stage.loss, optimizer, accumulation=settings.accumulation, ema=settings.ema)
  frozen = jax.device_put(stage.frozen)
  say(f'{sum(x.size for x in jax.tree.leaves(params)):,} trainable parameters, '
      f'{sum(x.size for x in jax.tree.leaves(frozen)):,} frozen')  # fmt: skip

  # -- Resume: the newest whole checkpoint, else the beginning -----------------------------------------------------
  checkpoints = Checkpoints(workdir, every=settings.save_every, keep=settings.keep, weights_hash=before.hash)
  processes = jax.process_count()
  if settings.batch * settings.accumulation % processes:
    raise ConfigError(
      f'train.batch x train.accumulation = {settings.batch * settings.accumulation} samples must divide evenly among '
      f'{processes} processes'
    )
  batches = pipeline.batches(
    stage.components(),
    batch_size=settings.batch * settings.accumulation // processes,
    seed=settings.seed,
    process_index=jax.process_index(),
    process_count=processes,
    place=jax.device_put,
  )
  if checkpoints.latest is not None:
    state, position = checkpoints.restore(state)
    batches.set_state(position)
    say(f'resumed at step {int(state.step)}')
  (workdir / 'config.json').write_text(configs.to_json(config))
  writer = Writer(workdir)
  averaged = lambda state: state.average if settings.ema else state.params

  # -- Loop --------------------------------------------------------------------------------------------------------
  start = int(state.step)
  since, window = time.time(), []
  with tqdm(total=settings.steps, initial=start, desc=settings.stage, unit='step', smoothing=0.05) as bar:
    for step in range(start + 1, settings.steps + 1):
      state, metrics = step_fn(state, frozen, next(batches))
      window.append(metrics)
      bar.update()
      if step % settings.log_every == 0 or step == settings.steps:
        mean = {k: float(np.mean([float(m[k]) for m in window])) for k in metrics}
        if not np.isfinite(mean['loss']):
          raise UserError(f'loss is {mean["loss"]} near step {step} ({mean}); lower train.learning_rate and run again')
        samples = len(window) * settings.batch * settings.accumulation
        writer.scalars(step, mean | {'samples_per_second': samples / (time.time() - since)})
        bar.set_postfix({k: f'{v:.3g}' for k, v in mean.items()})
        since, window = time.time(), []
      checkpoints.save(state, batches.get_state(), step=step, force=step == settings.steps)
      if step % settings.validate_every == 0 or step == settings.steps:
        results, picture = stage.validate(averaged(state))
        writer.scalars(step, {f'validation/{k}': v for k, v in results.items()})
        writer.image(step, 'validation', picture)
        save_png(picture, workdir / f'validation-{step:06d}.png')
        say(f'step {step}: ' + ', '.join(f'{k} {v:.3g}' for k, v in results.items()))
        since = time.time()
  checkpoints.close()
  batches.close()
  writer.close()

  # -- What the next stage, or sampling, starts from ---------------------------------------------------------------
  finished = stage.finished(averaged(state))
  record = {
    'config': dataclasses.asdict(config),
    'steps': int(state.step),
    'metrics': last_metrics(workdir),
    'commit': code,
  }
  name = pathlib.Path(config.workdir).name  # of the preset's run: 'vae', 'vae_long', 'base', 'one4d'
  finished = dataclasses.replace(finished, record=before.record | {name: record})
  bundles.save(finished, workdir / 'export')
  print(workdir / 'export')


def commit() -> str:
  """The commit of the code that runs; empty where that is not a git checkout, or there is no git."""
  folder = pathlib.Path(__file__).parent
  try:
    found = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=folder, capture_output=True, text=True, check=False)
  except FileNotFoundError:
    return ''
  return found.stdout.strip()


def last_metrics(workdir: pathlib.Path) -> dict:
  """The last value of everything that was logged."""
  values = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    values |= json.loads(line)
  return {k: v for k, v in values.items() if k != 'time'}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
