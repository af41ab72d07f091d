"""Load a public Wan LoRA (PEFT, diffusers or kohya names) into the RGB branch of a bundle.

  python weight_conversion/import_lora.py --lora style.safetensors --src weights/wan14b --dst weights/style

It replaces the RGB branch's own LoRA; the XYZ branch, the links and all other parts stay as they are. Only the
adapters are written: the new bundle refers to the other parts where they lie, so keep --src.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file, from anywhere
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing here needs an accelerator

from one4d_jax import cli
from weight_conversion import command


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python weight_conversion/import_lora.py',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument('--lora', metavar='FILE', help='a safetensors file, or a PEFT folder')
  p.add_argument('--src', metavar='DIR', help='the bundle to start from; default: the embedded tiny model')
  p.add_argument('--dst', metavar='DIR', help='the bundle to write')
  p.add_argument(
    '--scale',
    metavar='S',
    type=float,
    help='alpha / rank, also to weaken or strengthen; default: as the file says, 1 where it says nothing',
  )
  p.add_argument('--drop', metavar='A,B,...', default='', help='patterns of tensors to leave out, as in *.diff_b')
  p.add_argument('--overwrite', action='store_true', help='replace a bundle that is there')
  return p


def main(args: argparse.Namespace) -> None:
  if not args.lora or not args.dst:
    parser().print_help()
    return
  drop = [pattern.strip() for pattern in args.drop.split(',') if pattern.strip()]
  import_lora(
    args.lora, args.src, args.dst, scale=args.scale, drop=drop, overwrite=args.overwrite, quiet=False
  )  # fmt: skip


def import_lora(
  lora: str | os.PathLike,
  src: str | os.PathLike | None,
  dst: str | os.PathLike,
  *,
  scale: float | None = None,
  drop: Sequence[str] = (),
  overwrite: bool = False,
  quiet: bool = True,
) -> pathlib.Path:
  """Writes the bundle ``dst``: that of ``src`` (None: the embedded one) with ``lora`` in the RGB branch's adapters.

  A bundle without adapters gets fresh ones, whose XYZ branch and links change nothing.

  Raises:
    CheckpointError: as ``weight_conversion.lora``; no base in ``src``; ``dst`` in use, or what ``src`` refers to.
    ConfigError: ``src`` is a model without a LoRA for each branch.
  """
  import dataclasses

  from one4d_jax.errors import CheckpointError
  from one4d_jax.model import bundle
  from one4d_jax.model.files import DESCRIPTION
  from weight_conversion import lora as formats
  from weight_conversion.reader import sha256

  folder, dst = bundle.locate(src), pathlib.Path(dst)
  if dst.exists() and not (overwrite and (dst / DESCRIPTION).is_file() and not dst.samefile(folder)):
    way = 'it is no bundle, or the one to start from' if overwrite else '--overwrite replaces a bundle'
    raise CheckpointError(f'{dst} exists; give another --dst ({way})')
  public = formats.read(lora, scale=scale, drop=drop)
  found = bundle.load(folder, parts=('adapters',))
  if inside := [part for part, place in found.folders.items() if dst.resolve() in place.resolve().parents]:
    raise CheckpointError(
      f'{dst} holds {", ".join(inside)} of {folder}, and the new bundle refers to them there; give another --dst'
    )
  cfg = found.config
  command.require_kind(folder, cfg.adapters.kind, 'lora')
  adapters, changed = formats.into_adapters(
    found.params['adapters'] if found.params else fresh(found), public, cfg.adapters, cfg.dit
  )
  file = formats.locate(lora)
  about = {'file': file.name, 'sha256': sha256(file), 'modules': len(public.modules), 'scale': public.scales}
  made = found.replace(
    {'adapters': adapters},
    config=dataclasses.replace(cfg, adapters=changed),
    record=found.record | {'rgb_lora': about},
  )
  bundle.save(made, dst)
  if not quiet:
    missing = '' if public.stated or scale is not None else ' (the file states no alpha: --scale changes this)'
    scales = ', '.join(f'{value:g}' for value in public.scales)
    print(f'{len(public.modules)} modules, rank {public.rank}, alpha / rank {scales}{missing}')
    print(f'{dst}: adapters of rank {changed.rank}, alpha {changed.alpha:g}')
  return dst


def fresh(bundle) -> dict:
  """New adapters for a base that has none; reads its patch embedding alone."""
  import flax.linen as nn
  import jax

  from one4d_jax.errors import CheckpointError
  from weight_conversion import leaves

  if 'base' not in bundle.folders:
    raise CheckpointError(f'the bundle {bundle.name} has no base and no adapters; convert a release first')
  base = leaves.open_part(bundle.folders['base'])
  patch = {leaf: base[f'embed/patch/{leaf}'][...] for leaf in ('kernel', 'bias')}
  return nn.unbox(bundle.model.init_adapters(jax.random.key(0), {'embed': {'patch': patch}}))


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
