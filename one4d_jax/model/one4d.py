"""One4D: one frozen video DiT, two branches, RGB frames and pointmaps from one denoising process.

``base`` is Wan's tree, loaded once. ``adapters = {'lora', 'links', 'patch_xyz'}`` is all that is trained:
LoRA on every linear of every block in both branches, the control links, and the XYZ branch's own copy of
the patch embedding. With the paper's sizes that is 981,160,960 parameters, its "935.7M" counted in 2^20.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.model import dlc
from one4d_jax.model.umc import Condition
from one4d_jax.nn import lora, partition
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """What is trained beside the base. Link layers are not published: these are evenly spaced over 40 layers."""

  kind: str = 'dlc'  # how RGB and XYZ are joined: One4D itself, or a name of model/baselines.py
  rank: int = 64
  alpha: float = 32.0
  targets: str = '.*'
  link_layers: tuple[int, ...] = (7, 15, 23, 31, 39)


@functools.cache
def base_shapes(cfg: DiTConfig, precision: dit.Precision) -> dict:
  """The base as shapes, boxed with logical axes."""
  return jax.eval_shape(lambda key: dit.init_base(key, cfg, precision), jax.random.key(0))


def trained_copy(base: dict, boxed: dict) -> dict:
  """Frozen weights as adapters to start from: float32, with the logical axes of ``boxed``."""
  return jax.tree.map(lambda value, box: box.replace_boxed(value.astype(jnp.float32)), base, boxed)


@dataclasses.dataclass(frozen=True)
class One4D:
  """The two-branch model as functions over ``base`` and ``adapters``."""

  sequences: ClassVar[int] = 2  # of tokens, for each sample
  tokens_per_place: ClassVar[int] = 1  # of a sequence, in each place of the token grid

  cfg: DiTConfig
  adapters: AdapterConfig = AdapterConfig()
  precision: dit.Precision = dit.BFLOAT16
  remat: str = 'block'  # of nn/remat.py

  @property
  def linked(self) -> tuple[int, ...]:
    """The branches that control links lead into, in the order of the second axis of ``adapters['links']``."""
    return dlc.RGB, dlc.XYZ

  def init_base(self, key: jax.Array) -> dict:
    """A random base, boxed with logical axes. Real runs load converted Wan weights of the same shapes."""
    return dit.init_base(key, self.cfg, self.precision)

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """Fresh float32 adapters for ``base`` (unboxed), boxed: the model they make equals the base in both branches."""
    shapes = base_shapes(self.cfg, self.precision)
    adapters = {
      'lora': lora.init(key, shapes['blocks'], rank=self.adapters.rank, targets=self.adapters.targets),
      'patch_xyz': trained_copy(base['embed']['patch'], shapes['embed']['patch']),
    }
    if self.adapters.link_layers:  # checkpoints hold no empty arrays
      adapters['links'] = dlc.init_links(self.cfg.width, self.adapters.link_layers)
    return adapters

  @checked
  def velocity(
    self,
    base: dict,
    adapters: dict,
    z: Float[Array, '2 b f h w c'],
    sigma: Float[Array, 'b'],
    condition: Condition,
  ) -> Float[Array, '2 b f h w c']:
    """Predicted velocity ``eps - z`` of both modalities (rgb, xyz), float32.

    The condition enters the RGB branch alone: 16 noisy channels, 4 of mask, 16 of condition latent. The XYZ
    branch gets 20 zero channels instead (Fig. 4, "zero pad") and its own patch embedding.
    """
    cfg, precision = self.cfg, self.precision
    grid = dit.token_grid(cfg, z.shape)
    e, context = dit.embed_inputs(cfg, base, grid, 1000 * sigma, condition.text, condition.image, precision)
    given = jnp.concatenate([condition.mask, condition.latent], axis=-1)
    embed_patches = lambda params, z, given: dit.WanEmbed(cfg, precision).apply(
      {'params': params}, jnp.concatenate([z, given], axis=-1), method='tokens'
    )
    x = jnp.stack(
      [
        embed_patches(base['embed'], z[dlc.RGB], given),
        embed_patches(base['embed'] | {'patch': adapters['patch_xyz']}, z[dlc.XYZ], jnp.zeros_like(given)),
      ]
    )
    scaled = adapters | {'lora': lora.scaled(adapters['lora'], self.adapters.alpha / self.adapters.rank)}
    x = dlc.run(
      cfg,
      base['blocks'],
      scaled,
      x,
      context,
      link_layers=self.adapters.link_layers,
      precision=precision,
      policy=self.remat,
    )
    out = dit.WanHead(cfg, precision).apply({'params': base['head']}, x, e)
    return self.read_out(out, grid, z, sigma)

  def read_out(self, out: Float[Array, '2 b s p'], grid: tuple[int, int, int], z: Array, sigma: Array) -> Array:
    """The velocity of both modalities, from the patches that the head gives."""
    out = partition.constrain(out, 'modality', 'batch', None, None)  # whole again, for pixels do not follow tokens
    return dit.read_out(self.cfg, out, grid, z, sigma)
