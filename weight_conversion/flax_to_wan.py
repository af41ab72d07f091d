"""Give the weights of a bundle back to the PyTorch world.

python weight_conversion/flax_to_wan.py --src weights/one4d --dst out/wan --what merged,lora,control
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # run as a file, from anywhere
os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing here needs an accelerator

from one4d_jax import cli
from weight_conversion import command

WHAT = ('merged', 'lora', 'control', *command.PARTS)
MODALITIES = ('rgb', 'xyz')  # in the order of the adapters' axis
NAMES = ('native', 'diffusers', 'kohya')
RECORD = 'export.json'

WRITTEN = """what it writes into --dst, all as safetensors:
  merged   merged-{rgb,xyz}-{native,diffusers}/
           the DiT with one branch's LoRA folded in; XYZ has its own patch embedding
  lora     lora-{rgb,xyz}-native/       PEFT: adapter_model.safetensors, adapter_config.json
           lora-{rgb,xyz}-diffusers/    pytorch_lora_weights.safetensors, for load_lora_weights
           lora-{rgb,xyz}-kohya/        one4d.safetensors, for ComfyUI and VideoX-Fun
  control  control/one4d_control.safetensors
           links between the branches and the XYZ patch embedding; no other program knows them
  dit, vae, umt5, clip
           native/ or diffusers/        the parts as they were converted, laid out like a release

native names: one file a network; where a release has .pth, a .safetensors with the same stem. diffusers names:
folders with config.json and shards of 5 GB (transformers' for umt5 and clip).

A merged DiT lacks the control links, which tie two branches and fit no single network: it is what one branch
computes on its own. docs/conversion.md describes the formats."""


def parser() -> argparse.ArgumentParser:
  """The command line."""
  p = argparse.ArgumentParser(
    prog='python weight_conversion/flax_to_wan.py',
    description=__doc__,
    epilog=WRITTEN,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  p.add_argument('--src', metavar='DIR', help='a bundle; default: the embedded tiny model')
  p.add_argument('--dst', metavar='DIR', help='the folder to write')
  p.add_argument('--what', metavar='A,B,...', help=', '.join(WHAT))
  p.add_argument('--modality', metavar='A,B', default='rgb,xyz', help='of merged and lora (default: %(default)s)')
  p.add_argument(
    '--names', metavar='A,B,...', default='native', help=f'{", ".join(NAMES)} (lora only) (default: %(default)s)'
  )
  p.add_argument('--overwrite', action='store_true', help='replace an earlier export')
  return p


def main(args: argparse.Namespace) -> None:
  if not args.what or not args.dst:
    parser().print_help()
    return
  chosen = functools.partial(_chosen, args)
  export(
    args.src,
    args.dst,
    chosen('what', WHAT),
    modalities=chosen('modality', MODALITIES),
    names=chosen('names', NAMES),
    overwrite=args.overwrite,
    quiet=False,
  )


@dataclasses.dataclass(frozen=True)
class Product:
  """Files of one folder: tensors under one stem, and what lies beside them."""

  stem: str  # in --dst, without suffix
  tensors: dict[str, Any]  # name -> stream.Lazy
  beside: dict[str, Mapping | pathlib.Path] = dataclasses.field(default_factory=dict)  # contents, or a file to copy
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  sharded: bool = False

  @property
  def bytes(self) -> int:
    return sum(tensor.bytes for tensor in self.tensors.values())

  def write(self, root: pathlib.Path, progress) -> None:
    from weight_conversion.stream import write_safetensors, write_shards

    path = root / self.stem
    path.parent.mkdir(parents=True, exist_ok=True)
    if self.sharded:
      write_shards(path.parent, path.name, self.tensors, progress=progress)
    else:
      file = path.with_name(path.name + '.safetensors')
      write_safetensors(file, self.tensors, metadata=self.metadata, progress=progress)
    for name, content in self.beside.items():
      target = path.parent / name
      target.parent.mkdir(parents=True, exist_ok=True)
      if isinstance(content, pathlib.Path):
        shutil.copy(content, target)
      else:
        target.write_text(json.dumps(content, indent=2) + '\n')


def export(
  src: str | os.PathLike | None,
  dst: str | os.PathLike,
  what: Sequence[str],
  *,
  modalities: Sequence[str] = MODALITIES,
  names: Sequence[str] = ('native',),
  overwrite: bool = False,
  quiet: bool = True,
) -> pathlib.Path:
  """Writes ``what`` of the bundle ``src`` (None: the embedded one) as the folder ``dst``, whole or not at all.

  Everything is planned and checked before the first byte; then one tensor at a time is in memory.

  Raises:
    UserError: unknown or impossible choices, parts that the bundle lacks, ``dst`` in use.
    OSError: no room.
  """
  from one4d_jax.errors import CheckpointError
  from one4d_jax.model import bundle
  from one4d_jax.model.files import replace_folder

  folder, dst = bundle.locate(src), pathlib.Path(dst)
  if dst.exists() and not (overwrite and (dst / RECORD).is_file()):
    way = 'it is no earlier export' if overwrite else '--overwrite replaces an earlier export'
    raise CheckpointError(f'{dst} exists; give another --dst ({way})')
  products = plan(folder, what, modalities, names)
  need = sum(product.bytes for product in products)
  command.require_room(dst, need)
  partial = dst.with_name(dst.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    with command.bar(need, 'write', quiet=quiet) as bar:
      for product in products:
        product.write(partial, bar.update)
    _, record = bundle.describe(folder)
    about = {'bundle': folder.name, 'what': what, 'modalities': modalities, 'names': names, 'record': record}
    (partial / RECORD).write_text(json.dumps(about, indent=1))
    replace_folder(partial, dst)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  if not quiet:
    for product in products:
      print(f'{dst / product.stem}: {len(product.tensors)} tensors, {product.bytes / 1e6:.1f} MB')
  return dst


def plan(folder: pathlib.Path, what: Sequence[str], modalities: Sequence[str], names: Sequence[str]) -> list[Product]:
  """Everything that is to be written; reads no weights.

  Raises:
    UserError: a part that the bundle lacks, adapters or names that a product does not have.
  """
  from one4d_jax.errors import CheckpointError, ConfigError
  from one4d_jax.model import bundle
  from one4d_jax.model.files import find_parts
  from weight_conversion import leaves

  layouts = [name for name in names if name != 'kohya']
  networks = [name for name in what if name not in ('lora', 'control')]
  if networks and not layouts:
    raise ConfigError(f'kohya names are for lora alone; choose native or diffusers for {", ".join(networks)}')
  needed = {command.PARTS[name] for name in what if name in command.PARTS}
  needed |= {'base', 'adapters'} if 'merged' in what else set()
  needed |= {'adapters'} if {'lora', 'control'} & set(what) else set()
  sizes, _ = bundle.describe(folder)
  own = {
    'vae': sizes.vae.patch > 1 and f'takes patches of {sizes.vae.patch} x {sizes.vae.patch} pixels',
    'dit': sizes.dit.sigma_data and f'has a preconditioned head (sigma_data={sizes.dit.sigma_data:g})',
  }
  for name in what:
    command.require_kind(folder, sizes.adapters.kind, name)
    if reason := own.get('dit' if name == 'merged' else name):
      raise CheckpointError(f'{name} of {folder} {reason}, which no other program knows; leave {name} out of --what')
  places = find_parts(folder)
  if missing := sorted(needed - set(places)):
    raise CheckpointError(f'{folder} has no {", ".join(missing)}, which {", ".join(what)} need; it has {list(places)}')
  arrays = {part: leaves.open_part(places[part]) for part in needed}

  products = []
  for modality in (name for name in MODALITIES if name in modalities):
    if 'merged' in what:
      for layout in layouts:
        base = merged(arrays['base'], arrays['adapters'], sizes.adapters, MODALITIES.index(modality))
        products.append(network('base', sizes.dit, base, layout, f'merged-{modality}-{layout}'))
    if 'lora' in what:
      products += [lora(arrays['adapters'], sizes.adapters, modality, style) for style in names]
  if 'control' in what:
    products.append(control(arrays['adapters'], sizes))
  for name in (name for name in what if name in command.PARTS):
    part = command.PARTS[name]
    cfg = getattr(sizes, command.FIELDS[part])
    products += [network(part, cfg, arrays[part], layout, layout) for layout in layouts]
  pieces = folder / bundle.TOKENIZER / 'spiece.model'
  if 'umt5' in what and pieces.is_file():
    products = [_with_tokenizer(product, pieces) for product in products]
  return products


def network(part: str, cfg, arrays: Mapping, layout: str, folder: str) -> Product:
  """One network in a published layout, under ``folder``."""
  from weight_conversion import describe, leaves, reader, tables

  place = reader.PLACES[part][layout == 'diffusers']
  tensors = leaves.tensors(arrays, tables.TABLES[part].rules(cfg, layout))
  if part == 'image':
    tensors |= never_run(cfg, layout, tensors)
    tensors = {('vision_model.' if layout == 'diffusers' else '') + name: lazy for name, lazy in tensors.items()}
  config = describe.CONFIGS.get((part, layout))
  beside = {'config.json': config(cfg)} if config else {}
  return Product(f'{folder}/{place}', tensors, beside, sharded=layout == 'diffusers')


def merged(base: Mapping, adapters: Mapping, cfg, modality: int) -> dict:
  """The arrays of the DiT that one branch is without control links: ``W + alpha / r * a b``."""
  import numpy as np

  from one4d_jax.model.dlc import XYZ
  from weight_conversion.leaves import Array

  scale = np.float32(cfg.alpha / cfg.rank)
  found = dict(base)

  def folded(kernel: Array, a: Array, b: Array) -> Array:
    def fetch(layer):
      weight = a[layer][modality].astype(np.float32) @ b[layer][modality].astype(np.float32)
      weight *= scale  # in place: at 14B each of these is 0.3 GB
      weight += kernel[layer]
      return weight

    dtypes = {layer: kernel.written(layer) for layer in range(kernel.shape[0])}
    return Array(kernel.shape, np.dtype('float32'), fetch, dtypes)

  for path in {name.removeprefix('lora/').rpartition('/')[0] for name in adapters if name.startswith('lora/')}:
    name = f'blocks/{path}/kernel'
    found[name] = folded(base[name], adapters[f'lora/{path}/a'], adapters[f'lora/{path}/b'])
  for leaf in ('kernel', 'bias') if modality == XYZ else ():
    own, name = adapters[f'patch_xyz/{leaf}'], f'embed/patch/{leaf}'
    found[name] = dataclasses.replace(own, released={...: base[name].written(...)})
  return found


def lora(adapters: Mapping, cfg, modality: str, style: str) -> Product:
  """One branch's LoRA in the names of one format."""
  from weight_conversion import lora as formats

  found = {name.removeprefix('lora/'): array for name, array in adapters.items() if name.startswith('lora/')}
  paths = sorted({name.rpartition('/')[0] for name in found})
  tensors = formats.tensors(found, MODALITIES.index(modality), style, cfg.alpha)
  folder = f'lora-{modality}-{style}'
  match style:
    case 'native':
      described = formats.description(paths, cfg.rank, cfg.alpha, style)
      return Product(f'{folder}/adapter_model', tensors, {'adapter_config.json': described})
    case 'diffusers':
      metadata = formats.metadata(paths, cfg.rank, cfg.alpha)
      return Product(f'{folder}/pytorch_lora_weights', tensors, metadata=metadata)
    case _:
      return Product(f'{folder}/one4d', tensors)


def control(adapters: Mapping, sizes) -> Product:
  """Links and XYZ patch embedding."""
  from one4d_jax.model import bundle
  from weight_conversion import control as schema

  layers = bundle.Bundle({}, sizes, {}).model.adapters.link_layers  # of no_links none, whatever the sizes say
  found = {name: array for name, array in adapters.items() if not name.startswith('lora/')}
  return Product('control/one4d_control', schema.tensors(found, sizes.dit, layers), metadata=schema.metadata(layers))


def never_run(cfg, layout: str, tensors: Mapping) -> dict:
  """CLIP's last block and final norm, which Wan does not use and our tree does not keep: zeros.

  A block of zeros changes nothing. Readers count blocks and take the output of the last but one, so it must be there.
  """
  import numpy as np

  from weight_conversion.tables import clip

  zeros = lambda lazy: lazy._replace(read=lambda: np.zeros(lazy.shape, lazy.dtype))
  stacked = [rule for rule in clip.rules(cfg, layout) if rule.stacked]
  pairs = [pair for rule in stacked for pair in zip(rule.names(cfg.layers - 1), rule.names(0), strict=True)]
  first, last = ('visual.pre_norm', 'visual.post_norm') if layout == 'native' else ('pre_layrnorm', 'post_layernorm')
  pairs += [(f'{last}.{leaf}', f'{first}.{leaf}') for leaf in ('weight', 'bias')]
  return {name: zeros(tensors[like]) for name, like in pairs}


def _with_tokenizer(product: Product, pieces: pathlib.Path) -> Product:
  """Beside UMT5, at its place in a release."""
  places = {
    'native/models_t5_umt5-xxl-enc-bf16': 'google/umt5-xxl/spiece.model',
    'diffusers/text_encoder/model': '../tokenizer/spiece.model',
  }
  if product.stem not in places:
    return product
  return dataclasses.replace(product, beside=product.beside | {places[product.stem]: pieces})


def _chosen(args: argparse.Namespace, option: str, allowed: Sequence[str]) -> list[str]:
  from one4d_jax.errors import ConfigError

  given = [item.strip() for item in getattr(args, option).split(',') if item.strip()]
  unknown = [item for item in given if item not in allowed]
  if unknown or not given:
    raise ConfigError(f'--{option} {",".join(unknown) or "is empty"}: choose from {", ".join(allowed)}')
  return list(dict.fromkeys(given))


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
