"""Is this installation sound? One line for each thing that a run leans on, and what to do where it is not.

  python -m one4d_jax.doctor
  python -m one4d_jax.doctor --weights weights/one4d --data data/tartanair/1.0.0 --json

Ends with status 1 where something is wrong, not for what is only worth knowing. Belongs into every report of a fault.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import sys
from collections.abc import Callable
from typing import NamedTuple

from one4d_jax import cli

_GIB = 2**30
_NETWORK = ('nfs', 'nfs4', 'cifs', 'smb3', 'smbfs', 'lustre', 'gpfs', 'beegfs', 'ceph', 'glusterfs', '9p', 'afs')
_CODECS = {'h264': 'most films', 'hevc': 'films of telephones', 'vp9': 'WebM', 'av1': 'newer WebM and MP4'}
_EXTRAS = {'app': 'gradio', 'convert': 'torch', 'captions': 'transformers', 'beam': 'apache_beam', 'wandb': 'wandb',
           'lpips': 'lpips'}  # fmt: skip


class Finding(NamedTuple):
  """What one look found."""

  state: str  # 'ok'; 'note': some uses suffer; 'wrong': do not go on
  text: str
  remedy: str = ''


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(
    prog='one4d_jax.doctor', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--weights', metavar='DIR', help='a bundle to look at (default: the embedded model)')
  p.add_argument('--data', metavar='DIR', help='a prepared set, or latents, to compare with its checksums')
  p.add_argument('--workdir', metavar='DIR', default='.', help='where runs are to write (default: here)')
  p.add_argument('--json', action='store_true', help='print a list of findings instead of lines')
  return p


def main(args: argparse.Namespace) -> None:
  found = {}
  for about, look in LOOKS.items():
    if about == 'data' and not args.data:
      continue
    try:
      found[about] = look(args)
    except Exception as error:  # no look keeps another from happening
      found[about] = Finding('wrong', cli.one_line(error))
    if not args.json:
      remedy = f'; {found[about].remedy}' if found[about].remedy else ''
      print(f'{found[about].state:<6} {about:<17} {found[about].text}{remedy}', flush=True)
  if args.json:
    print(json.dumps({about: finding._asdict() for about, finding in found.items()}, indent=1))
  if any(finding.state == 'wrong' for finding in found.values()):
    sys.exit(1)


def _python(args: argparse.Namespace) -> Finding:
  return Finding('ok', f'{platform.python_version()} on {platform.platform()}')


def _packages(args: argparse.Namespace) -> Finding:
  from packaging.requirements import Requirement

  from one4d_jax import __version__

  wanted = [Requirement(text) for text in importlib.metadata.requires('one4d_jax') or ()]
  wanted = [one for one in wanted if one.marker is None]
  others = []
  for one in wanted:
    there = [d.version for d in importlib.metadata.distributions(name=one.name)]
    if not there or not one.specifier.contains(there[0], prereleases=True):
      others.append(f'{one.name} {there[0] if there else "missing"} for {one.specifier}')
  if others:
    return Finding('note', ', '.join(others), 'tests ran with the pins: pip install -r requirements.txt')
  return Finding('ok', f'one4d_jax {__version__}, {len(wanted)} as pinned')


def _compiler(args: argparse.Namespace) -> Finding:
  import jaxlib

  from one4d_jax import compiler

  compiler.check(always=True)
  return Finding('ok', f'jaxlib {jaxlib.__version__} computes what NumPy does')


def _devices(args: argparse.Namespace) -> Finding:
  import jax

  some = jax.local_devices()
  limit = (some[0].memory_stats() or {}).get('bytes_limit')
  each = f', {limit / _GIB:.0f} GiB each for JAX' if limit else ''
  count = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()  # not on macOS
  cores = f', {count} cores' if some[0].platform == 'cpu' else ''
  return Finding('ok', f'{len(some)} x {some[0].device_kind}{each}{cores}')


def _memory(args: argparse.Namespace) -> Finding:
  import psutil

  from one4d_jax.planning.guard import host_memory

  free = min(psutil.virtual_memory().available, host_memory())
  return _enough(free, 2, f'of {host_memory() / _GIB:.0f} GiB free', 'end other programs: samples need 2 GiB')


def _descriptors(args: argparse.Namespace) -> Finding:
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < 1024:
    most = 'unlimited' if hard == resource.RLIM_INFINITY else hard
    return Finding('note', f'{soft} allowed', f'ulimit -n {most}: data workers open many shards')
  return Finding('ok', f'{"any number" if soft == resource.RLIM_INFINITY else soft} allowed')


def _shared_memory(args: argparse.Namespace) -> Finding:
  if not os.path.isdir('/dev/shm'):
    return Finding('ok', 'none on this system')
  import psutil

  remedy = 'enlarge /dev/shm (docker run --shm-size=8g): data workers hand clips over in it'
  return _enough(psutil.disk_usage('/dev/shm').free, 1, 'free', remedy)


def _disk(args: argparse.Namespace) -> Finding:
  import psutil

  whole = pathlib.Path(args.workdir).resolve()
  place = next(path for path in (whole, *whole.parents) if path.exists())
  if not os.access(place, os.W_OK):
    return Finding('wrong', f'{place} cannot be written', 'choose another --workdir')
  free = psutil.disk_usage(str(place)).free
  return _enough(free, 5, f'free in {place}', 'make room: a run keeps several checkpoints')


def _file_system(args: argparse.Namespace) -> Finding:
  import psutil

  place = str(pathlib.Path(args.workdir).resolve())
  mounts = [part for part in psutil.disk_partitions(all=True) if pathlib.Path(place).is_relative_to(part.mountpoint)]
  kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else 'unknown'
  if kind in _NETWORK or kind.startswith('fuse'):
    return Finding('note', f'{kind}, over a network or slow', 'keep compiled programs and data on a local disk')
  return Finding('ok', kind)


def _cache(args: argparse.Namespace) -> Finding:
  folder = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  with contextlib.suppress(OSError):  # it is then not there to be written
    folder.mkdir(parents=True, exist_ok=True)
  if not (folder.is_dir() and os.access(folder, os.W_OK)):
    remedy = 'every start compiles again; set JAX_COMPILATION_CACHE_DIR'
    return Finding('note', f'{folder} cannot be written', remedy)
  sizes = [file.stat().st_size for file in folder.rglob('*') if file.is_file()]
  return Finding('ok', f'{sum(sizes) / _GIB:.1f} GiB in {folder}')


def _codecs(args: argparse.Namespace) -> Finding:
  import av

  missing = [f'{name} ({use})' for name, use in _CODECS.items() if not _has(name, 'r')]
  if not _has('libx264', 'w'):
    missing.append('libx264 (videos that are written)')
  version = '.'.join(map(str, av.library_versions['libavcodec']))
  if missing:
    return Finding('note', f'libavcodec {version} lacks {", ".join(missing)}', 'install the wheel of av')
  return Finding('ok', f'libavcodec {version} reads {", ".join(_CODECS)}, writes h264')


def _has(codec: str, mode: str) -> bool:
  import av

  try:
    av.Codec(codec, mode)
  except av.error.FFmpegError:
    return False
  return True


def _weights(args: argparse.Namespace) -> Finding:
  from one4d_jax.model import bundle
  from one4d_jax.model.files import find_parts

  places = find_parts(bundle.locate(args.weights))
  # Folders have a manifest to compare with, and may be larger than this machine's memory; files are read.
  found = bundle.load(args.weights, [part for part, place in places.items() if place.is_file()])
  return Finding('ok', f'{args.weights or "embedded"}: {", ".join(places)}; {found.hash}')


def _data(args: argparse.Namespace) -> Finding:
  from one4d_jax.data import prepared, shards

  kind = shards if (pathlib.Path(args.data) / shards.INDEX).is_file() else prepared
  kind.verify(args.data)
  return Finding('ok', f'{args.data} matches its checksums')


def _extras(args: argparse.Namespace) -> Finding:
  there = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module)]
  missing = [name for name in _EXTRAS if name not in there]
  text = f'{", ".join(there) or "none"} installed' + (f'; not {", ".join(missing)}' if missing else '')
  return Finding('ok', text)


def _enough(there: float, needed: float, of: str, remedy: str) -> Finding:
  text = f'{there / _GIB:.1f} GiB {of}'
  return Finding('ok', text) if there >= needed * _GIB else Finding('note', text, remedy)


LOOKS: dict[str, Callable[[argparse.Namespace], Finding]] = {
  'python': _python,
  'packages': _packages,
  'compiler': _compiler,
  'devices': _devices,
  'memory': _memory,
  'open files': _descriptors,
  'shared memory': _shared_memory,
  'disk': _disk,
  'file system': _file_system,
  'compiled programs': _cache,
  'codecs': _codecs,
  'weights': _weights,
  'data': _data,
  'extras': _extras,
}


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
