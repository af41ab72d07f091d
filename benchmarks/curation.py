"""Which faults do the filters of curation find, and how many good clips do they cost?

  python benchmarks/curation.py

Clips of the procedural world, 17 x 96 x 160, of all three levels: as they are, and with 1 % noise on depth, JPEG
colours and no mask of what moves. Faults are put into those whose camera moves. Prints the table, writes
``benchmarks/results/curation.json`` and replaces the table in ``docs/curation.md``.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file

from tqdm import tqdm

from benchmarks import page
from one4d_jax import cli

SEEDS = range(200, 208)
GOOD = 'none'


def main(args: argparse.Namespace) -> None:
  from tests.data.faults import FAULTS, SPLITS

  tasks = [(fault, level, seed) for fault in (GOOD, *FAULTS) for level in SPLITS for seed in SEEDS]
  with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context('spawn')) as pool:
    found = list(tqdm(pool.map(rejected, *zip(*tasks, strict=True)), total=len(tasks), unit='clip'))
  rows = {}
  for (fault, *_), pair in zip(tasks, found, strict=True):
    if pair is not None:
      rows.setdefault(fault, []).append(pair)
  results = {
    fault: {'clips': len(pairs), 'exact': sum(a for a, _ in pairs), 'noisy': sum(b for _, b in pairs)}
    for fault, pairs in rows.items()
  }
  page.record(args, results, tables)


def tables(results: dict) -> dict[str, str]:
  lines = ['| fault | clips | dropped, exact | dropped, noisy and unmasked |', '|---|---|---|---|']
  lines += [f'| {name} | {row["clips"]} | {row["exact"]} | {row["noisy"]} |' for name, row in results.items()]
  return {'curation': '\n'.join(lines)}


def rejected(fault: str, level: str, seed: int) -> tuple[bool, bool] | None:
  """Whether the filters of geometry drop the clip, exact and noisy; None where its camera is still and cannot tell."""
  from tests.data import faults

  clip = faults.clip(level, seed)
  if fault != GOOD and clip.meta['camera'] == 'stays still':
    return None
  spoil = faults.FAULTS.get(fault, lambda clip: clip)
  return tuple(bool(faults.rejected(spoil(c))) for c in (clip, faults.noisy(faults.unmarked(clip))))


if __name__ == '__main__':
  sys.exit(cli.run(main, page.parser('curation', __doc__, page='docs/curation.md')))
