"""Configuration: a file with presets, overrides from the command line, one frozen dataclass a section.

``load('configs/one4d.py:tiny', ['train.steps=10'])`` runs ``get_config('tiny')`` of the file, which starts from
``defaults()`` and states only what differs, applies the overrides and checks what must fit together. A default lives in
its dataclass and nowhere else.
"""

import dataclasses
import json
import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from one4d_jax import presets
from one4d_jax.errors import ConfigError
from one4d_jax.flow.solvers import SOLVERS
from one4d_jax.model import baselines, generate
from one4d_jax.model.bundle import Sizes
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.nn import remat
from one4d_jax.parallel import mesh, sequence
from one4d_jax.training import moments
from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig

STAGES = ('vae', 'base', 'one4d')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks, and where the weights that this run starts from lie."""

  weights: str = ''  # a bundle: what this stage builds on
  dit: DiTConfig = DiTConfig()
  vae: VAEConfig = VAEConfig()
  text: UMT5Config = UMT5Config()
  image: CLIPConfig = CLIPConfig()
  adapters: AdapterConfig = AdapterConfig()
  dtype: str = 'bfloat16'  # of arithmetic and stored base
  int8: bool = False  # the frozen base's linears, as they lie on the devices
  remat: str = 'block'  # what the backward pass keeps: none, block, attention_saved, offload (nn/remat.py)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Clips. ``source`` is a mixture, see ``sources``; size and length are those of ``procedural`` clips."""

  source: str = ''  # 'procedural', a folder, or 'DIR@3,DIR2@1'
  cache: str = 'runs/data'  # rendered clips and their latents
  frames: int = 81
  height: int = 352
  width: int = 624
  fps: float = 16.0
  clips: int = 34000
  validation_clips: int = 16
  levels: tuple[str, ...] = ('easy', 'medium')
  sparse_masks: int = 2  # drawn per clip when latents are made

  @property
  def sources(self) -> list[tuple[str, float]]:
    """The parts of ``source`` and their weights, shares of samples; a part without one weighs 1.

    Each is ``procedural`` or the folder of a prepared or encoded set.

    Raises:
      ConfigError: an empty part, or a weight that is no number above 0.
    """
    found = []
    for part, name, weight in self._parts():
      try:
        value = float(weight)
      except ValueError:
        value = math.nan
      if not name or not 0 < value < math.inf:
        raise ConfigError(
          f"data.source={self.source!r}: {part!r} must be 'procedural' or a folder, with a weight above 0 if "
          "it is not to be 1, as in 'DIR@3,DIR2@1'"
        )
      found.append((name, value))
    return found

  @property
  def is_procedural(self) -> bool:
    """Whether a part of ``source`` is, be the others well formed or not."""
    return any(name == 'procedural' for _, name, _ in self._parts())

  def _parts(self) -> list[tuple[str, str, str]]:
    """Each part of ``source``, its name and its weight, as written."""
    found = []
    for part in map(str.strip, self.source.split(',')):
      name, at, weight = part.rpartition('@')
      found.append((part, name, weight) if at else (part, weight, '1'))
    return found


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """How a run uses its devices."""

  mesh: str = 'fsdp'  # a preset (fsdp, fsdp_modality, fsdp_sequence, tensor), or sizes as in 'fsdp=-1,sequence=4'
  attention: str = 'ulysses'  # or 'ring', over the tokens of a sample where the mesh has sequence > 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The recipe of one stage; defaults are the paper's (Sec. 4.1) where it tells."""

  stage: str = 'one4d'
  steps: int = 5500
  batch: int = 8  # samples per microbatch, over all devices
  accumulation: int = 4  # microbatches per step
  learning_rate: float = 1e-4
  warmup: int = 100
  schedule: str = 'constant'  # or 'cosine', to a tenth
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  optimizer_state: str = 'float32'  # or 'bfloat16', 'int8'
  ema: float = 0.0  # decay of the averaged weights; 0 keeps none
  shift: float = 5.0
  shift_max: float = 0.0  # above 0: each sample's shift is drawn from `shift` to this, uniform in its logarithm
  tasks: tuple[float, ...] = (0.35, 0.30, 0.35)  # image, sparse, video
  text_only: float = 0.0  # of all samples: every frame unknown
  text_dropout: float = 0.1
  image_dropout: float = 0.1
  crop: tuple[int, int] = (9, 32)  # frames and side of what the VAE trains on
  kl: float = 1e-4
  seed: int = 0
  log_every: int = 10
  save_every: int = 250
  keep: int = 2  # newest checkpoints
  keep_every: int = 0  # and those of every so many steps, for good; 0: none
  validate_every: int = 500  # and at the end; 0: never
  spike: float = 10.0  # a gradient so many times longer than usual is skipped; 0: none is
  patience: int = 20  # steps skipped in a row that end the run
  hang_seconds: float = 3600.0  # without a step end the process; 0: never
  wandb: str = ''  # project that metrics also go to


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Defaults of sampling (Sec. 4.1)."""

  steps: int = 50
  guidance: float = 6.0
  shift: float = 5.0
  solver: str = 'euler'
  guidance_interval: tuple[float, float] = (0.0, 1.0)  # least and largest noise level with guidance
  cache: float = 0.0  # steps whose first layer changes by less are not computed (flow/caching.py); 0 is off
  tile: int = 0  # side in latent places of what is decoded at a time (wan/vae.py); 0: whole frames


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run is made of."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  parallel: ParallelConfig = ParallelConfig()
  train: TrainConfig = TrainConfig()
  sample: SampleConfig = SampleConfig()
  workdir: str = ''  # where the run lives when the command line does not say


def defaults() -> ml_collections.ConfigDict:
  """All defaults as a mutable, locked ``ConfigDict``: what a config file starts from."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config())).lock()


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
  """The checked configuration of ``'file.py:preset'`` with ``'section.key=value'`` overrides (values in YAML).

  Raises:
    ConfigError: as ``presets.read``, or values that do not fit together.
  """
  config = presets.read(spec, overrides, Config)
  check(config)
  return config


_NUMBERS = {  # what they must be, in words and as a test
  'above 0': (lambda v: v > 0, ('data.fps', 'sample.shift')),
  'at least 1': (
    lambda v: v >= 1,
    (
      *(f'train.{name}' for name in ('steps', 'batch', 'accumulation', 'log_every', 'save_every', 'keep', 'patience')),
      *(f'data.{name}' for name in ('clips', 'validation_clips', 'sparse_masks')),
      'model.adapters.rank',
      'sample.steps',
    ),
  ),
  '0 (off) or more': (
    lambda v: v >= 0,
    ('train.spike', 'train.hang_seconds', 'train.keep_every', 'train.validate_every'),
  ),
  'from 0 to 1': (lambda v: 0 <= v <= 1, ('train.text_only', 'train.text_dropout', 'train.image_dropout')),
  'from 0 to below 1': (lambda v: 0 <= v < 1, ('train.ema',)),
}


def check(config: Config) -> None:
  """What no single section can know.

  Raises:
    ConfigError: naming the value and the values that would do.
  """
  data, train, model = config.data, config.train, config.model
  problems = []
  for words, (fits, keys) in _NUMBERS.items():
    values = {key: operator.attrgetter(key)(config) for key in keys}
    problems += [f'{key}={value} must be {words}' for key, value in values.items() if not fits(value)]
  if train.stage not in STAGES:
    problems.append(f'train.stage={train.stage!r} must be one of {STAGES}')
  if data.frames < 1 or data.frames % 4 != 1:
    problems.append(f'data.frames={data.frames} must be 4n+1; nearest are {data.frames // 4 * 4 + 1} and '
                    f'{data.frames // 4 * 4 + 5}')  # fmt: skip
  for name in ('height', 'width'):
    size = getattr(data, name)
    if size < 16 or size % 16:
      problems.append(f'data.{name}={size} must be a multiple of 16; nearest is {max(16, round(size / 16) * 16)}')
  if data.is_procedural and data.frames == 1:
    problems.append('data.frames=1 must be at least 5: of a procedural clip some frames are given, not all')
  if train.stage == 'vae':
    frames, side = train.crop
    if frames < 5 or frames % 4 != 1 or side < 8 or side % 8:
      problems.append(f'train.crop={train.crop} must be 4n+1 frames, at least 5, and a side that is a multiple of 8')
    elif data.is_procedural and (frames > data.frames or side > min(data.height, data.width)):
      problems.append(f'train.crop={train.crop} must fit into {data.frames} frames of {data.height}x{data.width}')
  if model.dit.heads < 1 or model.dit.width % model.dit.heads or model.dit.width // model.dit.heads % 2:
    problems.append(f'model.dit.width={model.dit.width} must be an even multiple of heads={model.dit.heads}')
  if any(not 0 <= i < model.dit.layers for i in model.adapters.link_layers):
    problems.append(f'model.adapters.link_layers={model.adapters.link_layers} must lie in [0, {model.dit.layers})')
  try:
    re.compile(model.adapters.targets)
  except re.error as error:
    problems.append(f'model.adapters.targets={model.adapters.targets!r} is no regular expression ({error})')
  kind = model.adapters.kind
  if kind not in baselines.MODELS:
    problems.append(f'model.adapters.kind={kind!r} must be one of {", ".join(baselines.MODELS)}')
  elif kind in ('rgb_to_xyz', 'xyz_to_rgb') and not model.adapters.link_layers:
    problems.append(f'model.adapters.kind={kind} needs model.adapters.link_layers; without links it is no_links')
  if kind == 'full' and model.int8:
    problems.append('model.adapters.kind=full trains the base, which model.int8=True freezes; leave one of them out')
  if abs(sum(train.tasks) - 1) > 1e-6 or len(train.tasks) != 3 or min(train.tasks) < 0:
    problems.append(f'train.tasks={train.tasks} must be three shares (image, sparse, video) that sum to 1')
  if model.dtype not in ('bfloat16', 'float32'):
    problems.append(f"model.dtype={model.dtype!r} must be 'bfloat16' or 'float32'")
  chosen = {
    'model.remat': (model.remat, remat.POLICIES),
    'parallel.attention': (config.parallel.attention, sequence.METHODS),
    'train.schedule': (train.schedule, ('constant', 'cosine')),
    'train.optimizer_state': (train.optimizer_state, moments.KINDS),
    'sample.solver': (config.sample.solver, SOLVERS),
  }
  problems += [f'{k}={v!r} must be one of {", ".join(some)}' for k, (v, some) in chosen.items() if v not in some]
  try:
    axes = mesh.parse(config.parallel.mesh)
  except ConfigError as error:
    problems.append(f'parallel.mesh: {error}')
  else:
    heads = model.dit.heads
    if heads % axes['tensor'] or model.dit.ffn_width % axes['tensor']:
      problems.append(f'parallel.mesh={config.parallel.mesh!r}: tensor must divide model.dit.heads={heads} and '
                      f'ffn_width={model.dit.ffn_width}')  # fmt: skip
    if axes['modality'] > 1 and kind in ('channel_concat', 'spatial_concat'):
      problems.append(f'parallel.mesh={config.parallel.mesh!r}: the axis modality is for two branches, and '
                      f'model.adapters.kind={kind} has one sequence; use fsdp, sequence or tensor')  # fmt: skip
    if axes['cfg'] != 1:
      problems.append(f'parallel.mesh={config.parallel.mesh!r}: cfg is an axis of sampling; training has none')
  if not 0 < train.shift <= (train.shift_max or train.shift):
    problems.append(f'train.shift={train.shift} must be above 0, train.shift_max={train.shift_max} 0 (off) or no less')
  try:
    generate.with_defaults(sizes(config), {})
  except ConfigError as error:
    problems.append(f'sample.{error}')
  if problems:
    raise ConfigError('; '.join(problems))


def sizes(config: Config) -> Sizes:
  """What a bundle made by this run says of itself."""
  model, data, sample = config.model, config.data, config.sample
  return Sizes(
    dit=model.dit,
    vae=model.vae,
    text=model.text,
    image=model.image,
    adapters=model.adapters,
    dtype=model.dtype,
    frames=data.frames,
    height=data.height,
    width=data.width,
    fps=data.fps,
    **dataclasses.asdict(sample),
  )


def with_sizes(config: Config, found: Sizes) -> Config:
  """``config`` for the networks, clips and defaults of sampling that a bundle says of itself."""
  take = lambda section: dataclasses.replace(
    section, **{f.name: getattr(found, f.name) for f in dataclasses.fields(section) if hasattr(found, f.name)}
  )
  return dataclasses.replace(config, model=take(config.model), data=take(config.data), sample=take(config.sample))


def to_json(config: Any) -> str:
  """A dataclass as readable JSON; ``from_dict(json.loads(…))`` gives it back."""
  return json.dumps(dataclasses.asdict(config), indent=2)
