"""Convert a Wan2.1 release (Fun-InP or official image-to-video, 14B or 1.3B) into the weights that one4d_jax reads.

  python weight_conversion/wan_to_flax.py --src Wan2.1-Fun-V1.1-14B-InP --dst weights/wan14b --verify

The result is a folder for --config.model.weights= and sample --weights. Run the same command again after an
interruption: it continues.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file, from anywhere
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing here needs an accelerator

from one4d_jax import cli
from weight_conversion import command

DTYPES = {'base': 'bfloat16', 'text': 'bfloat16', 'vae': 'float32', 'image': 'float32'}  # what --dtype replaces


LOOKED_FOR = """looked for in --src (what a file holds is told by the names of its tensors):
  dit   diffusion_pytorch_model.safetensors, or shards and their index; transformer/ of diffusers
  vae   Wan2.1_VAE.pth; vae/ of diffusers
  umt5  models_t5_umt5-xxl-enc-bf16.pth with google/umt5-xxl/spiece.model; text_encoder/ with tokenizer/
  clip  models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth; image_encoder/ of diffusers"""


def parser() -> argparse.ArgumentParser:
  first, *rest = __doc__.split('\n\n')
  p = argparse.ArgumentParser(
    prog='python weight_conversion/wan_to_flax.py',
    description=first,
    epilog='\n\n'.join(rest) + '\n' + LOOKED_FOR,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument('--src', metavar='DIR', help='the release: a folder, or one safetensors file')
  p.add_argument('--dst', metavar='DIR', help='the folder to write; parts that are already there are kept')
  p.add_argument(
    '--part', choices=[*command.PARTS, 'all'], default='all', help='what to convert (default: %(default)s)'
  )
  p.add_argument(
    '--dtype',
    choices=('bfloat16', 'float16', 'float32'),
    help='of the stored weights (default: bfloat16 for dit and umt5, float32 for vae and clip)',
  )
  p.add_argument('--int8', action='store_true', help="the DiT's block matrices as int8 with a scale per output channel")
  p.add_argument('--raw-prompts', action='store_true', help='never clean prompts, as VideoX-Fun (default: as Wan does)')
  p.add_argument('--verify', action='store_true', help='afterwards compare every tensor with its source, run a forward')
  p.add_argument('--overwrite', action='store_true', help='replace parts that were converted from something else')
  return p


def main(args: argparse.Namespace) -> None:
  if not args.src or not args.dst:
    parser().print_help()
    return
  convert_release(
    args.src,
    args.dst,
    tuple(command.PARTS.values()) if args.part == 'all' else (command.PARTS[args.part],),
    dtype=args.dtype,
    int8=args.int8,
    raw_prompts=args.raw_prompts,
    verify=args.verify,
    overwrite=args.overwrite,
    quiet=False,
  )


@dataclasses.dataclass(frozen=True)
class Planned:
  """One part: where it comes from, what becomes of it, and what its manifest will say besides the files."""

  source: Any  # reader.Source
  config: Any
  leaves: tuple
  dtypes: dict[str, str]  # of each leaf
  about: dict[str, Any]
  int8: bool
  bytes: int

  @property
  def part(self) -> str:
    return self.source.part


def convert_release(
  src: str | os.PathLike,
  dst: str | os.PathLike,
  parts: Sequence[str] = tuple(command.PARTS.values()),
  *,
  dtype: str | None = None,
  int8: bool = False,
  raw_prompts: bool = False,
  verify: bool = False,
  overwrite: bool = False,
  quiet: bool = True,
) -> pathlib.Path:
  """Converts ``parts`` (names of ``one4d_jax.model.files.PARTS``) of the release at ``src`` into the bundle ``dst``.

  Everything that can be known beforehand is checked before anything is written: files, names, shapes, room on the
  disk, published sums.

  Raises:
    CheckpointError: saying what is missing, does not fit or is damaged.
  """
  from one4d_jax.model import bundle
  from weight_conversion import reader, writer
  from weight_conversion import verify as verification

  src, dst = pathlib.Path(src), pathlib.Path(dst)
  say = (lambda *_: None) if quiet else print
  sources = find_all(src, parts)
  everything = [plan_part(source, dtype=dtype, int8=int8, raw_prompts=raw_prompts) for source in sources]
  tokenizer = reader.find_tokenizer(src) if any(source.part == 'text' for source in sources) else None
  check_widths(dst, {p.part: p.config for p in everything})
  planned = [p for p in everything if not _there_already(p, dst, overwrite, say)]
  # An interrupted run left files that this one may go on from.
  command.require_room(dst, sum(p.bytes - command.size_below(dst / f'{p.part}.partial') for p in planned))

  for p in planned:
    with command.bar(p.source.bytes_to_check, f'check {p.part}', quiet=quiet) as bar:
      for name, value in p.source.check(bar.update).items():
        p.about['source']['files'][name]['sha256'] = value
  dst.mkdir(parents=True, exist_ok=True)
  for p in planned:
    with command.bar(p.bytes, p.part, quiet=quiet) as bar:
      manifest = writer.write(
        p.source, p.leaves, p.dtypes, dst / p.part, about=p.about, int8=p.int8, progress=bar.update
      )  # fmt: skip
    say(f'{dst / p.part}: {len(p.source.tensors)} tensors, {p.bytes / 1e9:.2f} GB, sha256 {manifest["sha256"]}')
  for p in everything:
    describe(dst, p)
  if tokenizer is not None:
    (dst / bundle.TOKENIZER).mkdir(exist_ok=True)
    shutil.copy(tokenizer, dst / bundle.TOKENIZER / tokenizer.name)
  if verify:
    for p in everything:
      with command.bar(p.bytes, f'verify {p.part}', quiet=quiet) as bar:
        found = verification.verify(p.source, p.leaves, p.dtypes, dst / p.part, p.config, progress=bar.update)
      say(found)
  return dst


def find_all(src: pathlib.Path, parts: Sequence[str]) -> list:
  """The sources of ``parts``; raises CheckpointError naming all that are missing."""
  from one4d_jax.errors import CheckpointError
  from weight_conversion import reader

  if not src.exists():
    raise CheckpointError(f'{src} does not exist; --src is a folder with a Wan2.1 release, or one safetensors file')
  found = {part: reader.find(src, part) for part in parts}
  if src.is_file() and any(found.values()):
    found = {part: source for part, source in found.items() if source}
  option = {part: name for name, part in command.PARTS.items()}
  missing = [f'{option[part]} ({reader.expected(part)})' for part, source in found.items() if source is None]
  if missing:
    raise CheckpointError(f'{src} lacks {"; ".join(missing)}; convert what is there with --part')
  return list(found.values())


def plan_part(source, *, dtype: str | None, int8: bool, raw_prompts: bool) -> Planned:
  """Names and shapes of one part, all checked; reads no data."""
  from one4d_jax.errors import CheckpointError
  from weight_conversion import rules, tables, writer

  table, part = tables.TABLES[source.part], source.part
  try:
    config = table.config(source.tensors, source.layout, source.described)
    config = dataclasses.replace(config, clean=False) if raw_prompts and part == 'text' else config
    targets = table.targets(config, dtype or DTYPES[part])
    leaves = rules.plan(
      source.tensors,
      table.rules(config, source.layout),
      {name: struct.shape for name, struct in targets.items()},
      ignore=table.ignored(config, source.layout),
    )
  except CheckpointError as error:
    raise CheckpointError(f'{source.files[0].path}: {error}') from error
  dtypes = {name: str(struct.dtype) for name, struct in targets.items()}
  about = {
    'part': part,
    'config': json.loads(json.dumps(dataclasses.asdict(config))),  # as the manifest gives it back
    'dtype': dtype or DTYPES[part],
    'source': {
      'layout': source.layout,
      'files': {f.path.name: {'bytes': f.path.stat().st_size, 'sha256': None} for f in source.files},
    },
  }
  int8 = int8 and part == 'base'
  return Planned(source, config, leaves, dtypes, about, int8, writer.total_bytes(leaves, dtypes, int8=int8))


def _there_already(p: Planned, dst: pathlib.Path, overwrite: bool, say) -> bool:
  """True if ``dst`` holds this very conversion."""
  from one4d_jax.errors import CheckpointError
  from one4d_jax.model import weights

  folder = dst / p.part
  if not folder.exists() or overwrite:
    return False
  manifest = weights.read_manifest(folder)
  sizes = lambda about: {name: file['bytes'] for name, file in about['source']['files'].items()}
  same = all(manifest[key] == p.about[key] for key in ('config', 'dtype')) and manifest['int8'] == p.int8
  if not same or sizes(manifest) != sizes(p.about):
    raise CheckpointError(f'{folder} holds another conversion; give another --dst, or --overwrite to replace it')
  say(f'{folder}: already there')
  return True


def check_widths(dst: pathlib.Path, configs: dict[str, Any]) -> None:
  """Whether the encoders feed the DiT, of the parts to convert and those that are there already.

  Raises:
    CheckpointError: parts of different models.
  """
  from one4d_jax.errors import CheckpointError
  from one4d_jax.model import bundle

  if (dst / bundle.DESCRIPTION).is_file():
    sizes, record = bundle.describe(dst)
    there = [part for part in command.FIELDS if part in record]  # the record also tells of training
    configs = {part: getattr(sizes, command.FIELDS[part]) for part in there} | configs
  if 'base' in configs:
    cfg = configs['base']
    for part, due in (('text', cfg.text_width), ('image', cfg.image_width)):
      if part in configs and configs[part].width != due:
        raise CheckpointError(
          f'the DiT takes {part} features of width {due}, the {part} encoder makes {configs[part].width}: '
          'these parts are not of one model'
        )


def describe(dst: pathlib.Path, p: Planned) -> None:
  """Enters one part into ``bundle.json``."""
  from one4d_jax.model import bundle, weights

  manifest = weights.read_manifest(dst / p.part)
  sizes, record = bundle.describe(dst) if (dst / bundle.DESCRIPTION).is_file() else (bundle.WAN, {})
  changed = {command.FIELDS[p.part]: p.config}
  if p.part == 'base':
    changed['adapters'] = dataclasses.replace(sizes.adapters, link_layers=bundle.link_layers(p.config.layers))
  made = record | {p.part: manifest['source'] | {'sha256': manifest['sha256']}}
  bundle.write_description(dst, dataclasses.replace(sizes, **changed), made)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
