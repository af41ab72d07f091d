"""Encode a prepared data set once, so that training needs no encoder.

python -m one4d_jax.encode --data data/omniworld/1.0.0 --weights weights/wan --out latents/omniworld
python -m one4d_jax.encode --data … --weights … --out … --process 2/8      the third of eight machines

Running the same command again continues; finished shards are kept. Machines that see the same --out take its shards in
turn, and whichever finds all of them there writes the index.

  encode.json               what was encoded, with which weights and how
  train-81x352x624/         one folder a split and clip size, for data.source: dataset.json, data-00000.array_record …
  train-81x352x624.png      samples decoded again, under their clips
  report.json               how well that went; clips that could not be encoded
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from one4d_jax import cli
from one4d_jax.errors import CheckpointError, DataError, UserError

SPLITS = ('train', 'test')
SETTINGS = 'encode.json'


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='python -m one4d_jax.encode', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--data', metavar='DIR', required=True, help='a version of a prepared data set')
  p.add_argument('--weights', metavar='BUNDLE', required=True, help='what training will start from')
  p.add_argument('--out', metavar='DIR', required=True, help='where the encoded set goes')
  p.add_argument('--sparse-masks', metavar='K', type=int, default=2,
                 help='drawn sets of observed frames a clip for the sparse task (default: %(default)s)')  # fmt: skip
  p.add_argument('--frames', action='store_true',
                 help='keep JPEG frames in place of conditions; training encodes those')  # fmt: skip
  p.add_argument('--process', metavar='I/N', help='take every N-th shard from the I-th on (default: as JAX says)')
  p.add_argument('--strict', action='store_true', help='stop at a clip that cannot be encoded; default: leave it out')
  return p


def main(args: argparse.Namespace) -> None:
  from one4d_jax.data import prepared

  splits = [split for split in SPLITS if split in prepared.splits(args.data)]
  sources = {split: prepared.open(args.data, split) for split in splits}
  encode(
    sources,
    args.weights,
    pathlib.Path(args.out),
    sparse_masks=args.sparse_masks,
    frames=args.frames,
    process=cli.process(args.process),
    strict=args.strict,
  )


def encode(
  sources: Mapping[str, Sequence],
  weights: str | os.PathLike,
  out: pathlib.Path,
  *,
  sparse_masks: int = 2,
  frames: bool = False,
  process: tuple[int, int] = (0, 1),
  strict: bool = False,
  shard_records: int | None = None,
  devices: Sequence | None = None,
  tell: Callable[[str], None] = print,
) -> None:
  """Encodes what this process has to, and finishes the set if nothing is left.

  Args:
    sources: by split, as of ``data/prepared.py``: clips, with ``rows`` (``id`` and ``size`` of each), ``fingerprint``.
    weights: a bundle.
    process: (which, of how many).
    shard_records: a file; by default about half a gigabyte.
    devices: default: all of this process.
    tell: takes lines for people.

  Raises:
    DataError: ``out`` holds another encoding; no clips; under ``strict`` a clip that cannot be encoded.
    CheckpointError: weights without the networks that encode.
  """
  from one4d_jax import compiler
  from one4d_jax.training import encoding, latents

  if sparse_masks < 1:
    raise UserError(f'--sparse-masks {sparse_masks}: a clip needs 1 or more')
  compiler.check()
  bundle = networks(weights)
  settings = {
    'data': {split: source.fingerprint for split, source in sources.items() if len(source)},
    'networks': latents.identity(bundle),
    'conditions': 'frames' if frames else f'{sparse_masks} sparse sets',
  }
  if not settings['data']:
    raise DataError('the data set holds no clips to encode')
  shards = encoding.plan(sources, out, shard_records=shard_records, conditions=1 + sparse_masks)
  settings['shards'] = len(shards)
  _claim(out, settings)
  make = lambda: latents.Encoder(bundle, sparse_masks=sparse_masks, frames=frames, devices=devices)
  encoder = functools.cache(make)  # loaded when there is something to do

  which, count = process
  own = [shard for shard in shards[which::count] if shard.done is None]
  encoding.write(own, sources, encoder, strict=strict)
  shards = [dataclasses.replace(shard) for shard in shards]  # look again
  missing = sum(shard.done is None for shard in shards)
  if missing:
    tell(f'{missing} of {len(shards)} shards are left to other processes; the last one to finish writes the index')
    return
  if not (out / encoding.REPORT).is_file():
    encoding.finish(shards, sources, encoder(), settings)
    encoding.check(out, shards, sources, encoder(), tell)
  tell(f'{out}: {sum(shard.done["count"] for shard in shards)} clips are encoded')


def networks(weights):
  """The bundle, with the parameters of trained parts; converted ones are read later, straight to the devices."""
  from one4d_jax.model import bundle as bundles
  from one4d_jax.training.latents import PARTS

  described = bundles.load(weights, parts=())
  if missing := [part for part in PARTS if part not in described.hashes]:
    raise CheckpointError(f'{weights} has no {" and no ".join(missing)} weights; encoding needs {", ".join(PARTS)}')
  return bundles.load(weights, parts=[part for part in PARTS if described.folders[part].is_file()])


def _claim(out: pathlib.Path, settings: dict) -> None:
  """The folder is for these settings, or for none. Raises DataError, naming what it was made with."""
  from one4d_jax.training.encoding import write_json

  path = out / SETTINGS
  if path.is_file():
    try:
      found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
      raise DataError(f'{path} is damaged ({error}); give another --out') from error
    if other := [name for name in settings if found.get(name) != settings[name]]:
      differ = '; '.join(f'{name} {found.get(name)}, now {settings[name]}' for name in other)
      raise DataError(f'{out} was encoded with {differ}; give another --out, or what it was begun with')
    return
  out.mkdir(parents=True, exist_ok=True)
  write_json(path, settings)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
