"""Train one stage, or all three; running the same command again resumes it.

python -m one4d_jax.train --recipe tiny
python -m one4d_jax.train --config configs/one4d.py:tiny
python -m one4d_jax.train --config configs/one4d.py --workdir runs/a --config.train.steps=1000
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys

from one4d_jax import cli, locks
from one4d_jax.errors import UserError
from one4d_jax.parallel import distributed


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(prog='python -m one4d_jax.train', description=__doc__.split('\n')[0])
  cli.add_config(p, default='configs/one4d.py')
  p.add_argument('--recipe', choices=('tiny', 'small'), help='from nothing: the presets of this name, VAE, base, One4D')
  p.add_argument(
    '--workdir', metavar='DIR', help='checkpoints, metrics, pictures, export; of a recipe a folder for each stage'
  )
  p.add_argument('--resume', action='store_true', help='stop unless the workdir holds a checkpoint to go on from')
  p.add_argument('--profile', action='store_true', help='trace steps 3 to 5 into WORKDIR/profile, for Perfetto')
  p.add_argument('--no-plan-check', action='store_true', help='begin even if the memory cannot suffice')
  distributed.add_flags(p)
  return p


def main(args: argparse.Namespace) -> None:
  from one4d_jax import config as configs
  from one4d_jax.training.interrupt import Interrupt

  chosen = recipe(args) if args.recipe else [configs.load(args.config, args.overrides)]
  require_inputs(chosen[0])
  with distributed.start(args), Interrupt() as interrupt:
    for config in chosen:
      with distributed.main_first():  # which exports what the next stage starts from
        require_inputs(config)
      workdir = pathlib.Path(config.workdir if args.recipe else args.workdir or config.workdir)
      workdir.mkdir(parents=True, exist_ok=True)
      options = {'must_resume': args.resume, 'plan_check': not args.no_plan_check, 'profile': args.profile}
      with locks.hold(workdir) if distributed.is_main() else contextlib.nullcontext():
        if not train(config, workdir, interrupt, **options):
          return


def recipe(args: argparse.Namespace) -> list:
  """The configurations of the three stages, each on what the one before makes."""
  from one4d_jax import config as configs

  if args.config != parser().get_default('config'):
    raise UserError(f'--config {args.config} and --recipe {args.recipe} both choose configurations; use one')
  home, before, chosen = pathlib.Path(args.workdir or f'runs/{args.recipe}'), [], []
  for stage in configs.STAGES:
    values = [f'data.cache={home / "data"}', *args.overrides, f'workdir={home / stage}', *before]
    chosen.append(configs.load(f'configs/{stage}.py:{args.recipe}', values))
    before = [f'model.weights={home / stage / "export"}']
  return chosen


def require_inputs(config) -> None:
  """Before any work: are the weights and the data there?

  Raises:
    CheckpointError, ConfigError, DataError: naming what is missing or malformed and what needs neither.
  """
  from one4d_jax.errors import CheckpointError, DataError
  from one4d_jax.model import bundle
  from one4d_jax.training import metrics

  if config.train.wandb:
    metrics.require_wandb()
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


def train(
  config,
  workdir: pathlib.Path,
  interrupt,
  *,
  must_resume: bool = False,
  plan_check: bool = True,
  profile: bool = False,
) -> bool:
  """One run, to its end and export; False if it was asked to stop before."""
  import jax
  from tqdm import tqdm

  from one4d_jax import compiler
  from one4d_jax import config as configs
  from one4d_jax.data import pipeline
  from one4d_jax.errors import CheckpointError
  from one4d_jax.model import bundle as bundles
  from one4d_jax.model.files import write_whole
  from one4d_jax.parallel import load
  from one4d_jax.parallel import mesh as meshes
  from one4d_jax.parallel.layout import MeshLayout, batch_sharding, check_batch, rows
  from one4d_jax.planning import guard
  from one4d_jax.profile import Steps
  from one4d_jax.training import allocator, flops, latents, metrics
  from one4d_jax.training.checkpoint import Checkpoints, difference
  from one4d_jax.training.journal import Journal
  from one4d_jax.training.setup import setup
  from one4d_jax.training.stages import STAGES
  from one4d_jax.training.watchdog import Watchdog
  from one4d_jax.viewer.pictures import save_png

  settings, code, main = config.train, commit(), distributed.is_main()
  say = lambda text: tqdm.write(text, file=sys.stderr) if main else None

  # -- The mesh ----------------------------------------------------------------------------------------------------
  compiler.check()
  mesh = meshes.make(config.parallel.mesh)
  layout = MeshLayout(mesh, config.parallel.attention)
  if layout.platform == 'cpu':
    allocator.keep_freed_memory()

  # -- What the stage builds on -----------------------------------------------------------------------------------
  before = bundles.Bundle({}, configs.sizes(config), {})
  if config.model.weights:
    loaded = load.open_bundle(config.model.weights)
    kept = dataclasses.replace(configs.sizes(config), vae=loaded.config.vae)
    if settings.stage == 'one4d':
      kept = dataclasses.replace(kept, dit=loaded.config.dit, text=loaded.config.text, image=loaded.config.image)
    if 'adapters' in loaded.params and loaded.config.adapters != kept.adapters:
      say(f'{config.model.weights} has other adapters than config.model.adapters: starting from fresh ones')
      loaded = loaded.without('adapters')
    before = dataclasses.replace(loaded, config=kept)
  check_batch(mesh, settings.batch, heads=before.config.dit.heads, attention=config.parallel.attention)
  weights_hash = before.hash + '-int8' * config.model.int8
  say(f'{settings.stage}: {workdir}, weights {weights_hash or "none"}, {meshes.describe(mesh)}')

  if plan_check and settings.stage == 'one4d':
    guard.check('train', configs.with_sizes(config, before.config), config.parallel.mesh, jax.devices())

  # -- Data, parameters, optimizer ---------------------------------------------------------------------------------
  with distributed.main_first():  # it may have data to render and to encode
    stage = STAGES[settings.stage](config, before)
  frozen = {name: load.part(before, name, mesh, int8=config.model.int8 and name == 'base') for name in stage.frozen}
  run = setup(config, stage, layout, frozen)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  say(f'{count(run.state.params):,} trainable parameters, {count(frozen):,} frozen')

  which, of = rows(mesh)
  samples = settings.batch * settings.accumulation

  def place(batch: dict) -> dict:
    put = lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x, (samples, *x.shape[1:]))
    return batch | {name: put(value) for name, value in latents.arrays(batch).items()}

  batches = pipeline.batches(
    stage.components(), batch_size=samples // of, seed=settings.seed, process_index=which, process_count=of, place=place
  )

  # -- Resume: the newest whole checkpoint, else the beginning -----------------------------------------------------
  values = json.loads(configs.to_json(config))
  checkpoints = Checkpoints(
    workdir,
    every=settings.save_every,
    keep=settings.keep,
    keep_every=settings.keep_every,
    weights_hash=weights_hash,
    config=values,
  )
  if checkpoints.latest is not None:
    state, about = checkpoints.restore(run.state, say)
    batches.set_state(about['data'])
    say(f'resumed at step {int(state.step)}')
    for line in difference(about['config'], values):
      say(f'changed since then: {line}')
  elif must_resume:
    raise CheckpointError(f'no checkpoint in {workdir}; leave --resume out to begin there, or name another --workdir')
  else:
    state = run.begin()
  start = int(state.step)
  if main:
    write_whole(workdir / 'config.json', configs.to_json(config))
  peak = flops.peak(mesh.devices.flat[0].device_kind)
  journal = Journal(workdir, settings.patience, peak and peak * mesh.size, jax.process_index())
  averaged = lambda state: state.average if settings.ema else state.params

  # -- Loop --------------------------------------------------------------------------------------------------------
  stopped, step = False, start
  with (
    contextlib.closing(metrics.Writer(workdir, resume_step=start, enabled=main, wandb=settings.wandb)) as writer,
    Watchdog(settings.hang_seconds, say) as watchdog,
    Steps(workdir / 'profile' if profile else None, start + 3) as traced,
    tqdm(
      total=settings.steps, initial=start, desc=settings.stage, unit='step', smoothing=0.05, disable=not main
    ) as bar,
  ):
    for step in range(start + 1, settings.steps + 1):
      batch = next(batches)
      traced.before(step)
      state, found = run.step(state, frozen, latents.arrays(batch))
      traced.after(step, state)
      journal.add(step, found, batch['id'].tolist(), stage.work(batch))
      watchdog.beat(step)
      bar.update()
      last, stopped = step == settings.steps, interrupt.stops(step)
      validating = settings.validate_every and (step % settings.validate_every == 0 or last)
      if step % settings.log_every == 0 or last or validating:
        means = journal.drain()
        writer.scalars(step, means | stage.observe(state.params) | metrics.memory())
        bar.set_postfix({k: f'{v:.3g}' for k, v in means.items() if 'loss' in k and '/' not in k})
      with watchdog.paused():
        if checkpoints.due(step) or last or stopped:
          checkpoints.save(state, batches.get_state(), step=step)
        if stopped and not last:
          break
        if validating:
          params = averaged(state)
          results, picture = stage.validate(params, frozen, layout)
          results |= stage.validation_loss(params, frozen, layout)
          writer.scalars(step, {f'validation/{k}': v for k, v in results.items()})
          writer.image(step, 'validation', picture)
          if main:
            save_png(picture, workdir / f'validation-{step:06d}.png')
          say(f'step {step}: ' + ', '.join(f'{k} {v:.3g}' for k, v in results.items() if '@' not in k))
          journal.pause()
  checkpoints.close()
  batches.close()
  if stopped and step < settings.steps:
    say(f'asked to stop: step {step} is saved; the same command continues')
    return False

  # -- What the next stage, or sampling, starts from ---------------------------------------------------------------
  params = load.gathered(averaged(state))
  if not main:
    return True
  finished = stage.finished(params)
  record = {
    'config': dataclasses.asdict(config),
    'steps': int(state.step),
    'metrics': metrics.last(workdir),
    'commit': code,
  }
  name = pathlib.Path(config.workdir).name  # of the preset's run: 'vae', 'base', 'one4d'
  finished = dataclasses.replace(finished, record=before.record | {name: record})
  bundles.save(finished, workdir / 'export')
  print(workdir / 'export')
  return True


def commit() -> str:
  """The commit of the code that runs; empty where that is not a git checkout, or there is no git."""
  folder = pathlib.Path(__file__).parent
  try:
    found = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=folder, capture_output=True, text=True, check=False)
  except FileNotFoundError:
    return ''
  return found.stdout.strip()


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
