"""Benchmarks: ``python -m one4d_jax.evaluate --config configs/eval.py:sintel --root DIR``.

Scores the embedded weights (or ``--weights``), or what another method has written (``--predictions``): one protocol,
one code path. The procedural benchmark needs no ``--root``; beside the model it has two methods that must be worse, the
mean pointmap of the training clips, and the same model before its adapters were trained. Every sequence is saved when
it is done, so an interrupted evaluation continues where it stopped.

``--config configs/eval.py:table5`` makes the runs of one of the paper's tables and prints them beside its numbers;
``--export-vbench DIR`` makes videos of single images and lets VBench score them; ``--compare A B`` makes a page of two
runs or more.
"""

import argparse
import sys

from one4d_jax import cli


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser('python -m one4d_jax.evaluate', description=__doc__.split('\n\n')[0])
  cli.add_config(p)
  p.add_argument('--compare', nargs='+', metavar='DIR', help='a page about two runs or more, instead of a run')
  p.add_argument(
    '--export-vbench', metavar='DIR', help='videos of single images, as VBench reads them, instead of a run'
  )
  made = p.add_mutually_exclusive_group()
  made.add_argument(
    '--weights', '--checkpoint', nargs='+', metavar='DIR', help='a bundle; default: the embedded tiny model'
  )
  made.add_argument('--predictions', metavar='DIR', help="another method's: a folder for each sequence")
  p.add_argument(
    '--root', metavar='DIR', help='where the benchmark was unpacked, for a table all of them; the procedural needs none'
  )
  p.add_argument('--out', metavar='DIR', help='rows, tables, plots (default: runs/eval or, of --compare, runs/compare)')
  return p


def main(args: argparse.Namespace) -> None:
  from one4d_jax.evaluation import run

  run.main(args)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
