"""LoRA files of the PyTorch world, and our adapters.

Theirs adds ``alpha / rank * up @ down`` to a weight ``[out, in]``; ours adds ``alpha / rank * a @ b`` to a kernel
``[in, out]``. So ``down [r, in] = a.T`` and ``up [out, r] = b.T``.

  names      a tensor of it                                            alpha
  native     base_model.model.blocks.0.self_attn.q.lora_A.weight      adapter_config.json (PEFT)
  diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight            the header's ``lora_adapter_metadata``
  kohya      lora_unet__blocks_0_self_attn_q.lora_down.weight         lora_unet__blocks_0_self_attn_q.alpha

Read are all of these, with or without their prefixes, ``diffusion_model.`` (ComfyUI) or an adapter's name
(``lora_A.default.weight``).
"""

import dataclasses
import fnmatch
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.model.dlc import RGB
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.wan.config import DiTConfig
from weight_conversion.stream import Lazy
from weight_conversion.tables import dit as table

NAMES = ('native', 'diffusers', 'kohya')
METADATA = 'lora_adapter_metadata'  # where diffusers keeps a LoRA's configuration in the header of a file
_PREFIXES = (
  'base_model.model.',
  'model.diffusion_model.',
  'diffusion_model.',
  'transformer.',
  'lora_unet__',
  'lora_unet_',
)
_HALVES = {
  'down': re.compile(r'(.+)\.(?:lora_A|lora_down)(?:\.[^.]+)?\.weight'),
  'up': re.compile(r'(.+)\.(?:lora_B|lora_up)(?:\.[^.]+)?\.weight'),
  'alpha': re.compile(r'(.+)\.alpha'),
}


class Pair(NamedTuple):
  """The adapter of one module: ``W += alpha / r * up @ down``."""

  down: np.ndarray  # [r in]
  up: np.ndarray  # [out r]
  alpha: float

  @property
  def scale(self) -> float:
    return self.alpha / self.down.shape[0]


@dataclasses.dataclass(frozen=True)
class Public:
  """A LoRA by native module path, ``blocks.0.self_attn.q``."""

  modules: dict[str, Pair]
  stated: bool  # the file says what alpha is

  @property
  def rank(self) -> int:
    """The largest."""
    return max(pair.down.shape[0] for pair in self.modules.values())

  @property
  def scales(self) -> list[float]:
    """All that occur."""
    return sorted({pair.scale for pair in self.modules.values()})


@functools.cache
def modules(layout: str) -> dict[str, str]:
  """Our path of every linear layer of the DiT, ``blocks/self_q``, to its name, ``blocks.{l}.self_attn.q``."""
  kernels = [rule for rule in table.rules(DiTConfig(), layout) if rule.target.endswith('/kernel')]
  return {rule.target.removesuffix('/kernel'): rule.sources[0].removesuffix('.weight') for rule in kernels}


# ---- out


def tensors(leaves: Mapping[str, Any], modality: int, names: str, alpha: float) -> dict[str, Lazy]:
  """The adapters of one branch in the names of one format.

  Args:
    leaves: ``self_q/a`` [l m din r] and ``self_q/b`` [l m r dout]: anything with shape, dtype and ``leaf[layer]``.
    modality: RGB or XYZ.
    names: one of NAMES.
    alpha: of the contribution, ``alpha / r``.
  """
  style = modules('diffusers' if names == 'diffusers' else 'native')
  down, up = ('lora_down', 'lora_up') if names == 'kohya' else ('lora_A', 'lora_B')
  found = {}
  for layer in range(next(iter(leaves.values())).shape[0]):
    for path in dict.fromkeys(leaf.rpartition('/')[0] for leaf in leaves):
      module = style[f'blocks/{path}'].format(l=layer)
      match names:
        case 'native':
          module = f'base_model.model.{module}'
        case 'diffusers':
          module = f'transformer.{module}'
        case 'kohya':
          module = 'lora_unet__' + module.replace('.', '_')
      for half, name in (('a', down), ('b', up)):
        leaf = leaves[f'{path}/{half}']
        read = lambda leaf=leaf, layer=layer: leaf[layer][modality].T
        found[f'{module}.{name}.weight'] = Lazy(leaf.shape[:1:-1], leaf.dtype.name, read)
      if names == 'kohya':
        found[f'{module}.alpha'] = Lazy((), 'float32', lambda: np.asarray(alpha, np.float32))
  return found


def description(paths: Iterable[str], rank: int, alpha: float, names: str) -> dict[str, Any]:
  """``adapter_config.json`` of PEFT for the modules at ``paths`` (``self_q``) of every block."""
  style = modules('diffusers' if names == 'diffusers' else 'native')
  return {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': None,
    'r': rank,
    'lora_alpha': alpha,
    'target_modules': sorted(style[f'blocks/{path}'].removeprefix('blocks.{l}.') for path in paths),
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }


def metadata(paths: Iterable[str], rank: int, alpha: float) -> dict[str, str]:
  """The same for the header of a diffusers file, where it is one text and every key names the network."""
  stated = {f'transformer.{key}': value for key, value in description(paths, rank, alpha, 'diffusers').items()}
  return {METADATA: json.dumps(stated, indent=2, sort_keys=True)}


# ---- in


def locate(path: str | os.PathLike) -> pathlib.Path:
  """The safetensors file at ``path``, or alone in that folder.

  Raises:
    CheckpointError: there is none, or more than one.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = sorted(path.glob('*.safetensors'))
    if len(found) != 1:
      raise CheckpointError(f'{path} holds {len(found)} safetensors files; give the path of the LoRA itself')
    return found[0]
  if path.suffix != '.safetensors' or not path.is_file():
    raise CheckpointError(f'no LoRA at {path}: expected a safetensors file, or a PEFT folder that holds one')
  return path


def read(path: str | os.PathLike, *, scale: float | None = None, drop: Iterable[str] = ()) -> Public:
  """A public LoRA for Wan: a safetensors file, or a folder that holds one (PEFT).

  Args:
    scale: ``alpha / rank`` of every module, whatever the file says. By default what it says, and 1 where it says
      nothing: files by VideoX-Fun's PEFT path carry no alpha, and VideoX-Fun, diffusers and ComfyUI then use 1.
    drop: patterns (``*.diff_b``) of tensors that are left out knowingly.

  Raises:
    CheckpointError: not a LoRA of Wan's linear layers; names every tensor that cannot be used, layers as ``*``.
  """
  path = locate(path)
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      header = file.metadata() or {}
    content = safetensors.numpy.load_file(path)
    stated = _stated(path, header)
  except (safetensors.SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
    raise CheckpointError(f'{path} cannot be read ({error}); download it again') from error
  halves, named, problems = {}, {}, []
  for name, value in content.items():
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in drop):
      continue
    kind, module = _parse(name)
    native = _native(module)
    if native is None:
      problems.append(f'{_any_layer(name)}: no linear layer of Wan')
    elif kind in halves.setdefault(native, {}):
      problems.append(f'{_any_layer(name)}: a second {kind}')
    else:
      halves[native][kind], named[native] = value, module
  pairs = {}
  for native, found in halves.items():
    down, up = found.get('down'), found.get('up')
    where = _any_layer(named[native])
    if down is None or up is None:
      problems.append(f'{where}: without {"down (A)" if down is None else "up (B)"}')
      continue
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.size:
      problems.append(f'{where}: down {down.shape} and up {up.shape} are not [r, in] and [out, r]')
      continue
    if not all(np.isfinite(half.astype(np.float32)).all() for half in (down, up)):
      problems.append(f'{where}: values that are not finite')
    rank = down.shape[0]
    due = stated.rank(named[native])
    if due is not None and due != rank:
      problems.append(f'{where}: rank {rank}, its configuration says {due}')
    if 'alpha' in found and found['alpha'].size != 1:
      problems.append(f'{where}: alpha {found["alpha"].shape} is not one number')
      continue
    alpha = float(found['alpha'].item()) if 'alpha' in found else stated.alpha(named[native], rank)
    pairs[native] = Pair(down, up, rank if alpha is None else alpha), alpha is not None
  if problems:
    listed = list(dict.fromkeys(problems))
    raise CheckpointError(
      f'{path} does not fit Wan ({len(problems)} tensors): {"; ".join(listed)}. --drop leaves out what is not needed'
    )
  if not pairs:
    raise CheckpointError(f'{path} holds no LoRA: no tensor is named lora_A, lora_B, lora_down or lora_up')
  result = {
    native: pair if scale is None else pair._replace(alpha=scale * pair.down.shape[0])
    for native, (pair, _) in pairs.items()
  }
  return Public(result, all(known for _, known in pairs.values()))


def into_adapters(adapters: dict, public: Public, cfg: AdapterConfig, dit: DiTConfig) -> tuple[dict, AdapterConfig]:
  """Adapters whose RGB branch is ``public``, and their configuration; links, XYZ patch and XYZ branch compute the same.

  The RGB branch's own LoRA is replaced; modules that ``public`` lacks contribute nothing. If its rank is above ours,
  both branches grow to it. Where a rank is to spare, ``b`` is zero and ``a`` is kept (or drawn, where it is new), so
  that training can still use it. ``alpha / rank`` of ours does not change: what differs is folded into ``b``.

  Args:
    adapters: ``{'lora', 'links', 'patch_xyz'}``; NumPy or JAX arrays, not changed.
    cfg: what they were made with.
    dit: of the base.

  Raises:
    CheckpointError: modules of ``public`` that have no adapter or another width, all of them.
  """
  flat = {path: np.asarray(value) for path, value in traverse_util.flatten_dict(adapters['lora'], sep='/').items()}
  targets = {modules('native')[f'blocks/{path}']: path for path in {name.rpartition('/')[0] for name in flat}}
  places, problems = {}, []
  for module, pair in public.modules.items():
    layer = re.match(r'blocks\.(\d+)\.', module)
    path = targets.get(_any_layer(module, '{l}'))
    if path is None:
      problems.append(f'{_any_layer(module)}: no adapter here')
    elif int(layer[1]) >= dit.layers:
      problems.append(f'{module}: this base has {dit.layers} layers')
    elif (due := (flat[f'{path}/a'].shape[2], flat[f'{path}/b'].shape[3])) != (pair.down.shape[1], pair.up.shape[0]):
      problems.append(
        f'{_any_layer(module)}: width {pair.down.shape[1]} to {pair.up.shape[0]}, here {due[0]} to {due[1]}'
      )
    else:
      places[module] = path, int(layer[1])
  if problems:
    raise CheckpointError(f'the LoRA does not fit this base: {"; ".join(dict.fromkeys(problems))}')

  rank = max(cfg.rank, public.rank)
  scale = cfg.alpha / cfg.rank
  rng = np.random.default_rng(0)
  grown = {}
  for path in targets.values():
    a, b = flat[f'{path}/a'], flat[f'{path}/b'].copy()
    bound = a.shape[2] ** -0.5  # as fresh adapters are drawn
    fresh = rng.uniform(-bound, bound, (*a.shape[:3], rank - cfg.rank)).astype(a.dtype)
    b[:, RGB] = 0
    grown[f'{path}/a'] = np.concatenate([a, fresh], axis=3)
    grown[f'{path}/b'] = np.pad(b, ((0, 0), (0, 0), (0, rank - cfg.rank), (0, 0)))
  for module, (path, layer) in places.items():
    pair = public.modules[module]
    r = pair.down.shape[0]
    grown[f'{path}/a'][layer, RGB, :, :r] = pair.down.T
    grown[f'{path}/b'][layer, RGB, :r] = pair.up.T.astype(np.float32) * np.float32(pair.scale / scale)
  lora = traverse_util.unflatten_dict(grown, sep='/')
  return adapters | {'lora': lora}, dataclasses.replace(cfg, rank=rank, alpha=scale * rank)


def _parse(name: str) -> tuple[str, str]:
  """``(down | up | alpha, module)`` of a tensor; the kind is empty where it is no part of a LoRA."""
  for kind, pattern in _HALVES.items():
    if found := pattern.fullmatch(name):
      return kind, _plain(found[1])
  return '', name


def _plain(module: str) -> str:
  for prefix in _PREFIXES:
    module = module.removeprefix(prefix)
  return module


@functools.cache
def _spellings() -> dict[str, str]:
  """Every known name of a module, with ``{l}`` for its layer, to its native one. Underscores are ambiguous
  (``k_img``), so that kohya's names can only be looked up."""
  native, diffusers = modules('native'), modules('diffusers')
  both = {**{name: name for name in native.values()}, **{diffusers[ours]: name for ours, name in native.items()}}
  return {**both, **{name.replace('.', '_'): plain for name, plain in both.items()}}


def _native(module: str) -> str | None:
  layer = re.match(r'blocks[._](\d+)[._]', module)
  known = _spellings().get(_any_layer(module, '{l}'))
  return known.format(l=layer[1]) if known and layer else known


def _any_layer(name: str, sign: str = '*') -> str:
  return re.sub(r'(\bblocks[._]|_blocks_)\d+', rf'\g<1>{sign}', name, count=1)


@dataclasses.dataclass(frozen=True)
class _Stated:
  """What a configuration says of ranks and alphas; ``{}`` says nothing."""

  config: Mapping[str, Any]

  def rank(self, module: str) -> int | None:
    return self._look_up('rank_pattern', module, self.config.get('r'))

  def alpha(self, module: str, rank: int) -> float | None:
    alpha = self._look_up('alpha_pattern', module, self.config.get('lora_alpha'))
    if alpha is None:
      return None
    return alpha * rank**0.5 if self.config.get('use_rslora') else alpha  # rslora divides by sqrt(rank)

  def _look_up(self, patterns: str, module: str, default):
    for pattern, value in (self.config.get(patterns) or {}).items():
      if re.match(rf'(.*\.)?({pattern})$', module):
        return value
    return default


def _stated(path: pathlib.Path, header: Mapping[str, str]) -> _Stated:
  """From ``adapter_config.json`` beside the file, or from the header of diffusers."""
  beside = path.with_name('adapter_config.json')
  if beside.is_file():
    place, text = beside, beside.read_text()
  else:
    place, text = f'{METADATA} of {path}', header.get(METADATA, '{}')
  config = json.loads(text)
  if not isinstance(config, dict):
    raise CheckpointError(f'{place} holds {str(config)[:40]!r} in place of an object; download it again')
  config = {key.removeprefix('transformer.'): value for key, value in config.items()}  # diffusers' name of the network
  if config.get('peft_type', 'LORA') != 'LORA' or config.get('use_dora'):
    kind = 'DoRA' if config.get('use_dora') else config['peft_type']
    raise CheckpointError(f'{path} is {kind}, not LoRA: it cannot become an adapter here; merge it into a base instead')
  numbers = [(name, config.get(name)) for name in ('r', 'lora_alpha')]
  for name in ('rank_pattern', 'alpha_pattern'):
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns)):
      raise CheckpointError(f'{place}: {name} is {str(patterns)[:40]!r}, not numbers by patterns; download it again')
    numbers += patterns.items()
  for name, value in numbers:
    if not (value is None or (isinstance(value, int | float) and math.isfinite(value))):
      raise CheckpointError(f'{place}: {name} is {str(value)[:40]!r}, not a number; download it again')
  return _Stated(config)


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True
