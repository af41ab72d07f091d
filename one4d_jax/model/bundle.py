"""A bundle: a folder with everything that sampling needs, one safetensors file or one converted folder a network.

  bundle.json          sizes of the networks and of the clips, sampling defaults, the record of the training
  vae.safetensors      base.safetensors (the DiT)    text.safetensors    image.safetensors    adapters.safetensors
  vae/ base/ text/ image/    in their stead, if converted from a Wan release (``weights.py``)    tokenizer/

Each training stage reads the bundle of the one before and writes one with its own network added. Converted parts are
referred to, not copied.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.model import baselines, weights
from one4d_jax.model.files import DESCRIPTION, EMBEDDED, PARTS, find_parts, read_references, replace_folder, write_whole
from one4d_jax.model.one4d import AdapterConfig, One4D
from one4d_jax.nn import partition
from one4d_jax.structs import from_dict
from one4d_jax.wan import dit, tokenizer
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from one4d_jax.wan.umt5 import UMT5Encoder
from one4d_jax.wan.vae import WanVAE

TOKENIZER = 'tokenizer'  # folder of a bundle with spiece.model


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The networks of a bundle, the clips it was trained on and its defaults of sampling."""

  dit: DiTConfig
  vae: VAEConfig
  text: UMT5Config
  image: CLIPConfig
  adapters: AdapterConfig
  dtype: str  # of the DiT's arithmetic
  frames: int
  height: int
  width: int
  fps: float
  steps: int
  guidance: float
  shift: float
  solver: str
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  cache: float = 0.0
  tile: int = 0


WAN = Sizes(
  dit=DiTConfig(),
  vae=VAEConfig(),
  text=UMT5Config(),
  image=CLIPConfig(),
  adapters=AdapterConfig(),
  dtype='bfloat16',
  frames=81,
  height=352,
  width=624,
  fps=16.0,
  steps=50,
  guidance=6.0,
  shift=5.0,
  solver='euler',
)
"""What a bundle of converted Wan weights says of itself; sampling as in the paper (Sec. 4.1)."""


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Parameters by part (``PARTS``, as far as they exist), the networks they belong to, and their history.

  Parameters from files are float32, those of converted folders as they are stored.
  """

  params: dict[str, dict]
  config: Sizes
  record: dict[str, Any]  # how it was made: config, steps, metrics, commit of each run, in order
  hashes: dict[str, str] = dataclasses.field(default_factory=dict)  # of the weights of each part
  name: str = ''
  folders: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # of parts that save() refers to
  tokenizer_folder: pathlib.Path | None = None
  layout: partition.Layout | None = None  # of the mesh on which the parameters lie, if they do

  @property
  def hash(self) -> str:
    """Of all weights, 16 hex digits; empty where nothing was loaded."""
    return _short(''.join(f'{part}{value}' for part, value in sorted(self.hashes.items()))) if self.hashes else ''

  @property
  def vae(self) -> WanVAE:
    return WanVAE(self.config.vae)

  @property
  def precision(self) -> dit.Precision:
    return dit.FLOAT32 if self.config.dtype == 'float32' else dit.BFLOAT16

  @property
  def text(self) -> UMT5Encoder:
    return UMT5Encoder(self.config.text, self.precision.dtype, self.precision.param_dtype)

  @property
  def image(self) -> CLIPEncoder:
    return CLIPEncoder(self.config.image, self.precision.dtype, self.precision.param_dtype)

  @property
  def model(self) -> One4D:
    return baselines.build(self.config.dit, self.config.adapters, self.precision)

  @property
  def tokenizer(self) -> tokenizer.Tokenizer:
    text = self.config.text
    name = text.tokenizer if self.tokenizer_folder is None else self.tokenizer_folder
    found = tokenizer.load(name, self.config.dit.text_len, clean=text.clean)
    if found.vocab > text.vocab:
      raise CheckpointError(
        f'{name} has {found.vocab} tokens, the text encoder {text.vocab}: they are not of one model'
      )
    return found

  def without(self, *parts: str) -> 'Bundle':
    """The bundle as if ``parts`` were not in it."""
    kept = lambda known: {part: value for part, value in known.items() if part not in parts}
    return dataclasses.replace(
      self, params=kept(self.params), hashes=kept(self.hashes), folders=kept(self.folders)
    )  # fmt: skip

  def replace(self, params: dict[str, dict], **changes) -> 'Bundle':
    """With new parameters for some parts; what was known of the old ones is forgotten. Other fields by name."""
    rest = self.without(*params)
    return dataclasses.replace(rest, params=rest.params | params, **changes)

  def untrained(self) -> 'Bundle':
    """The same base with fresh adapters: both branches are the frozen RGB model."""
    fresh = nn.unbox(self.model.init_adapters(jax.random.key(0), self.params['base']))
    return self.replace({'adapters': fresh}, name=f'{self.name}-untrained')


def save(bundle: Bundle, folder: str | os.PathLike, *, dtype: str = 'float32') -> None:
  """Writes the folder under a temporary name, then renames it over whatever was there."""
  folder = pathlib.Path(folder)
  temporary = folder.with_name(folder.name + '.partial')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for part, tree in bundle.params.items():
    if part not in bundle.folders:
      flat = traverse_util.flatten_dict(jax.device_get(tree), sep='/')
      safetensors.numpy.save_file(
        {k: np.asarray(v, dtype, order='C') for k, v in flat.items()}, temporary / f'{part}.safetensors'
      )
  references = {
    part: {'path': os.path.relpath(path, folder), 'sha256': bundle.hashes[part]}
    for part, path in bundle.folders.items()
  }
  if bundle.tokenizer_folder is not None:
    shutil.copytree(bundle.tokenizer_folder, temporary / TOKENIZER)
  write_description(temporary, bundle.config, bundle.record, references)
  replace_folder(temporary, folder)


def write_description(
  folder: pathlib.Path, config: Sizes, record: dict[str, Any], references: dict[str, Any] | None = None
) -> None:
  """Writes ``bundle.json``."""
  description = {'sizes': dataclasses.asdict(config), 'record': record, 'references': references or {}}
  write_whole(folder / DESCRIPTION, json.dumps(description, indent=1))


def describe(folder: pathlib.Path) -> tuple[Sizes, dict[str, Any]]:
  """Sizes and record of ``bundle.json``.

  Raises:
    CheckpointError: it cannot be read, or is of a kind of model that this version does not have.
  """
  try:
    description = json.loads((folder / DESCRIPTION).read_text())
    sizes, record = from_dict(description['sizes'], Sizes), description['record']
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f'weights at {str(folder)!r} cannot be read ({error}); export or convert them again'
    ) from error
  if (kind := sizes.adapters.kind) not in baselines.MODELS:
    raise CheckpointError(
      f'weights at {str(folder)!r} are of a model {kind!r}; this version has {", ".join(baselines.MODELS)}'
    )
  return sizes, record


def link_layers(layers: int) -> tuple[int, ...]:
  """Five evenly spaced layers, the last one among them: (7, 15, 23, 31, 39) of Wan's 40."""
  return tuple(sorted({max(0, (i + 1) * layers // 5 - 1) for i in range(5)}))


def _short(content: str | bytes) -> str:
  return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def _parse(content: bytes) -> dict:
  """A tree of float32 arrays from a safetensors file."""
  flat = {name: value.astype(np.float32) for name, value in safetensors.numpy.load(content).items()}
  return traverse_util.unflatten_dict(flat, sep='/')


def locate(folder: str | os.PathLike | None = None) -> pathlib.Path:
  """The bundle's folder, the embedded one for ``None``; cheap, for checks before work is spent.

  Raises:
    CheckpointError: there is no bundle.
  """
  path = EMBEDDED if folder is None else pathlib.Path(folder)
  if not (path / DESCRIPTION).is_file():
    raise CheckpointError(
      f'no weights at {str(path)!r}: expected a folder with bundle.json, as training or conversion writes it'
    )
  return path


def load(folder: str | os.PathLike | None = None, parts: Sequence[str] = PARTS) -> Bundle:
  """Reads a bundle, or those of its ``parts`` that are there: files to the host, converted folders to the first device.

  Parts that are not read are still referred to: ``save`` points to where they lie.

  Raises:
    CheckpointError: no bundle, a file of it that cannot be read, or a reference to weights that are others by now.
  """
  path = locate(folder)
  try:
    sizes, record = describe(path)
    places = find_parts(path)
    contents = {part: place.read_bytes() for part, place in places.items() if place.is_file()}
    hashes = {
      part: _short(contents[part]) if part in contents else weights.identity(weights.check(place))
      for part, place in places.items()
    }
    for part, reference in read_references(path).items():  # before gigabytes are read for nothing
      if hashes.get(part) != reference['sha256']:
        raise CheckpointError(
          f'{path} was made with {part} weights {reference["sha256"]} at {reference["path"]}, '
          f'now there are {hashes.get(part, "none")}; put them back, or train again'
        )
    params, folders = {}, {}
    for part, place in places.items():
      if part in parts:
        params[part] = _parse(contents[part]) if part in contents else weights.load(place)
      if part not in contents or part not in parts:
        folders[part] = place
  except (safetensors.SafetensorError, KeyError) as error:
    raise CheckpointError(f'weights at {str(path)!r} cannot be read ({error}); export or convert them again') from error
  pieces = path / TOKENIZER
  return Bundle(params, sizes, record, hashes, path.name, folders, pieces if pieces.is_dir() else None)


def on_device(bundle: Bundle) -> Bundle:
  """The bundle with all parameters on the default device: from the host each call of a program would copy them."""
  return dataclasses.replace(bundle, params=jax.device_put(bundle.params))
