"""Curate a downloaded data set: clips with cameras and depth, filtered, in sharded files; or look into such a set.

python -m one4d_jax.prepare --source tartanair --root DOWNLOADS/tartanair --out DATA
python -m one4d_jax.prepare --source tartanair --root DOWNLOADS/tartanair --out DATA --config.limits.consistency=0.6
python -m one4d_jax.prepare --verify DATA/tartanair/1.0.0
python -m one4d_jax.prepare --inspect DATA/tartanair/1.0.0 --record 3 --out out/

The same command again goes on where the last one stopped. With other limits it sorts what is there into a new version;
the downloads are not read again.
"""

import argparse
import os
import pathlib
import sys

from one4d_jax import cli, locks
from one4d_jax.data import sources
from one4d_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.prepare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--source', choices=sources.NAMES, help='which data set; docs/datasets.md says what each one needs')
  p.add_argument('--root', metavar='DIR', help='where its downloads were unpacked')
  p.add_argument('--out', metavar='DIR', help='the set is written to DIR/SOURCE/VERSION; with --record: the scene')
  p.add_argument('--workers', type=int, default=os.cpu_count(), metavar='N', help='processes (default: %(default)s)')
  p.add_argument('--limit', type=int, metavar='N', help='only the first N recordings, for a first look')
  p.add_argument('--strict', action='store_true', help='stop at what cannot be read, instead of naming it at the end')
  p.add_argument('--captions', metavar='MODEL',
                 help='describe the clips that have no text: gemini[:MODEL] or transformers:FOLDER')  # fmt: skip
  p.add_argument('--captions-per-minute', type=float, metavar='N', help='requests to start at most (default: no limit)')
  p.add_argument('--beam', metavar='OPTIONS', help='run on Apache Beam, such as "--runner=FlinkRunner ..."')
  p.add_argument('--verify', metavar='DIR', help='recompute the checksums of a set')
  p.add_argument('--inspect', metavar='DIR', help='say what a set or one file of it holds')
  p.add_argument('--split', default='train', help='for --record (default: %(default)s)')
  p.add_argument('--record', type=int, metavar='I', help='with --inspect: write record I as a scene for the viewer')
  p.add_argument('--overwrite', action='store_true', help='with --record: replace a scene that is there')
  cli.add_config(p, about='clips, sizes, limits of the filters')
  return p


def main(args: argparse.Namespace) -> None:
  chosen = [name for name in ('source', 'verify', 'inspect') if getattr(args, name)]
  if len(chosen) != 1:
    raise UserError(f'give one of --source ({", ".join(sources.NAMES)}), --verify or --inspect; see --help')
  {'source': _prepare, 'verify': _verify, 'inspect': _inspect}[chosen[0]](args)


def _prepare(args: argparse.Namespace) -> None:
  from one4d_jax import presets
  from one4d_jax.data import captioners, curate, preparation, report

  missing = [f'--{name}' for name in ('root', 'out') if not getattr(args, name)]
  if missing:
    raise UserError(f'--source needs {" and ".join(missing)}; see --help')
  if args.workers < 1 or (args.limit is not None and args.limit < 1):
    raise UserError(f'--workers and --limit must be at least 1; got {args.workers} and {args.limit}')
  if args.captions_per_minute is not None and args.captions_per_minute <= 0:
    raise UserError(f'--captions-per-minute must be above 0; got {args.captions_per_minute:g}')
  curation = presets.read(args.config or '', args.overrides, curate.Curation)
  curation.check()
  captioner = captioners.make(args.captions) if args.captions else None
  out = pathlib.Path(args.out).absolute()
  job = preparation.Job(args.source, os.path.abspath(args.root), out, curation, args.strict)

  preparation.plan(job, limit=args.limit)
  with locks.hold(job.work):
    preparation.work_off(job, workers=args.workers, beam=args.beam)
    made = preparation.finish(job)
    if captioner is not None:
      made = preparation.caption(job, made, captioner, per_minute=args.captions_per_minute)
  page, lines = report.write(made)
  print(*lines, made, page, sep='\n')


def _verify(args: argparse.Namespace) -> None:
  from one4d_jax.data import prepared

  prepared.verify(args.verify)
  print(f'{args.verify}: every file matches its checksum')


def _inspect(args: argparse.Namespace) -> None:
  from one4d_jax.data import inspect

  if args.record is not None and not args.out:
    raise UserError('--record needs --out, the folder of the scene; see --help')
  print(inspect.describe(args.inspect))
  if args.record is not None:
    made = inspect.write_scene(args.inspect, args.record, args.out, split=args.split, overwrite=args.overwrite)
    print(*made, sep='\n')


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
