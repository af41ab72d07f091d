"""What the commands of this folder share."""

import os
import pathlib
import shutil

from tqdm import tqdm

from one4d_jax.errors import ConfigError

PARTS = {'dit': 'base', 'vae': 'vae', 'umt5': 'text', 'clip': 'image'}  # option -> part of the bundle
OWN_LORA = ('dlc', 'no_links', 'rgb_to_xyz', 'xyz_to_rgb')  # kinds of models with a LoRA for each branch
KINDS = {'merged': OWN_LORA, 'lora': OWN_LORA, 'control': ('dlc', 'no_links')}  # whose adapters these can hold
FIELDS = {'base': 'dit', 'vae': 'vae', 'text': 'text', 'image': 'image'}  # part -> its sizes in bundle.Sizes


def require_kind(bundle: pathlib.Path, kind: str, what: str) -> None:
  """Raises ConfigError where ``what`` cannot hold the adapters of a model of this kind."""
  if kind not in (kinds := KINDS.get(what, (kind,))):
    raise ConfigError(f'{bundle} is a {kind} model, and {what} holds the adapters of {", ".join(kinds)} alone')


def require_room(dst: pathlib.Path, need: int) -> None:
  """Raises OSError if the disk of ``dst``, which need not exist, has fewer than ``need`` bytes free."""
  existing = next(folder for folder in (dst, *dst.resolve().parents) if folder.exists())
  room = shutil.disk_usage(existing).free
  if need > room:
    raise OSError(28, f'needs {need / 1e9:.1f} GB, {room / 1e9:.1f} GB are free', str(dst))


def bar(total: int, name: str, *, quiet: bool) -> tqdm:
  """Progress in bytes; nothing is shown for nothing."""
  return tqdm(total=total, desc=name, unit='B', unit_scale=True, unit_divisor=1024, disable=quiet or not total)


def size_below(folder: str | os.PathLike) -> int:
  """Bytes of all files in a folder, 0 if there is none."""
  return sum(file.stat().st_size for file in pathlib.Path(folder).rglob('*') if file.is_file())
