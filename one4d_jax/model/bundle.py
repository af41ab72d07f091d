"""A bundle: a folder with everything that sampling needs, one safetensors file a network.

  bundle.json          sizes of the networks and of the clips, sampling defaults, the record of the training
  vae.safetensors      base.safetensors (the DiT)    text.safetensors    image.safetensors    adapters.safetensors

Each training stage reads the bundle of the one before and writes one with its own network added.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.model.files import EMBEDDED, PARTS
from one4d_jax.model.one4d import AdapterConfig, One4D
from one4d_jax.structs import from_dict
from one4d_jax.wan import dit, tokenizer
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from one4d_jax.wan.umt5 import UMT5Encoder
from one4d_jax.wan.vae import WanVAE


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


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Parameters by part (``PARTS``, as far as they exist; float32), the networks they belong to, and their history."""

  params: dict[str, dict]
  config: Sizes
  record: dict[str, Any]  # how it was made: config, steps, metrics, commit of each run, in order
  hashes: dict[str, str] = dataclasses.field(default_factory=dict)  # of the weight file of each part
  name: str = ''

  @property
  def hash(self) -> str:
    """Of all weights, 16 hex digits; empty where nothing was loaded."""
    return _short(''.join(f'{part}{value}' for part, value in sorted(self.hashes.items()))) if self.hashes else ''

  @property
  def vae(self) -> WanVAE:
    return WanVAE(self.config.vae)

  @property
  def text(self) -> UMT5Encoder:
    return UMT5Encoder(self.config.text, jnp.float32, jnp.float32)

  @property
  def image(self) -> CLIPEncoder:
    return CLIPEncoder(self.config.image, jnp.float32, jnp.float32)

  @property
  def model(self) -> One4D:
    precision = dit.FLOAT32 if self.config.dtype == 'float32' else dit.BFLOAT16
    return One4D(self.config.dit, self.config.adapters, precision)

  @property
  def tokenizer(self) -> tokenizer.Tokenizer:
    return tokenizer.load(self.config.text.tokenizer, self.config.dit.text_len)

  def untrained(self) -> 'Bundle':
    """The same base with fresh adapters: both branches are the frozen RGB model."""
    fresh = nn.unbox(self.model.init_adapters(jax.random.key(0), self.params['base']))
    hashes = {part: value for part, value in self.hashes.items() if part != 'adapters'}
    params = self.params | {'adapters': fresh}
    return dataclasses.replace(self, params=params, hashes=hashes, name=f'{self.name}-untrained')


def save(bundle: Bundle, folder: str | os.PathLike, *, dtype: str = 'float32') -> None:
  """Writes the folder under a temporary name, then renames it over whatever was there."""
  folder = pathlib.Path(folder)
  temporary = folder.with_name(folder.name + '.partial')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for part, tree in bundle.params.items():
    flat = traverse_util.flatten_dict(jax.device_get(tree), sep='/')
    safetensors.numpy.save_file(
      {k: np.asarray(v, dtype, order='C') for k, v in flat.items()}, temporary / f'{part}.safetensors'
    )
  description = {'sizes': dataclasses.asdict(bundle.config), 'record': bundle.record}
  (temporary / 'bundle.json').write_text(json.dumps(description, indent=1))
  if folder.exists():
    shutil.rmtree(folder)
  temporary.rename(folder)


def _short(content: str | bytes) -> str:
  return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def locate(folder: str | os.PathLike | None = None) -> pathlib.Path:
  """The bundle's folder, the embedded one for ``None``; cheap, for checks before work is spent.

  Raises:
    CheckpointError: there is no bundle.
  """
  path = EMBEDDED if folder is None else pathlib.Path(folder)
  if not (path / 'bundle.json').is_file():
    raise CheckpointError(f'no weights at {str(path)!r}: expected a folder with bundle.json, as training exports it')
  return path


def load(folder: str | os.PathLike | None = None) -> Bundle:
  """Reads a bundle; floating weights of any width become float32.

  Raises:
    CheckpointError: no bundle, or a file of it that cannot be read.
  """
  path = locate(folder)
  try:
    description = json.loads((path / 'bundle.json').read_text())
    params, hashes = {}, {}
    for part in PARTS:
      file = path / f'{part}.safetensors'
      if file.exists():
        content = file.read_bytes()
        flat = {k: v.astype(np.float32) for k, v in safetensors.numpy.load(content).items()}
        params[part], hashes[part] = traverse_util.unflatten_dict(flat, sep='/'), _short(content)
    sizes = from_dict(description['sizes'], Sizes)
    return Bundle(params, sizes, description['record'], hashes, path.name)
  except (safetensors.SafetensorError, json.JSONDecodeError, KeyError) as error:
    raise CheckpointError(f'weights at {str(path)!r} cannot be read ({error}); export or convert them again') from error
