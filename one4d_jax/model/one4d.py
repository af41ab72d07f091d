"""One4D: one frozen video DiT, two branches, RGB frames and pointmaps from one denoising process.

``base`` is Wan's tree, loaded once. ``adapters = {'lora', 'links', 'patch_xyz'}`` is all that is trained:
LoRA on every linear of every block in both branches, the control links, and the XYZ branch's own copy of
the patch embedding. With the paper's sizes that is 981,160,960 parameters, its "935.7M" counted in 2^20.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from one4d_jax.checks import checked
from one4d_jax.model import dlc
from one4d_jax.model.umc import Condition
from one4d_jax.nn import lora, partition, remat
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
    *,
    keys: dit.Keys | None = None,
    stack: Callable | None = None,
  ) -> Float[Array, '2 b f h w c']:
    """Predicted velocity ``eps - z`` of both modalities (rgb, xyz), float32.

    Args:
      keys: those of ``keys``, for a sampler; the text and image of ``condition`` are then not looked at.
      stack: how tokens go through the layers, for a sampler; see ``dlc.run``.
    """
    base, adapters = self.used(base, adapters)
    cfg, grid = self.cfg, dit.token_grid(self.cfg, z.shape)
    e, context = dit.embed_inputs(cfg, base, grid, 1000 * sigma, condition.text, condition.image, self.precision)
    given = jnp.concatenate([condition.mask, condition.latent], axis=-1)
    x, context = self.tokens(base, adapters, z, given, context)
    x = dlc.run(
      cfg,
      base['blocks'],
      adapters,
      x,
      context,
      link_layers=self.adapters.link_layers,
      precision=self.precision,
      stack=stack or functools.partial(remat.stack, policy=self.remat),
      keys=keys,
    )
    out = self.patches(base, adapters, x, e)
    out = partition.constrain(out, 'modality', 'batch', None, None)  # whole again, for pixels do not follow tokens
    return dit.read_out(cfg, out, grid, z, sigma)

  def keys(self, base: dict, adapters: dict, condition: Condition) -> dit.Keys:
    """What ``velocity`` computes of the text and the image of a condition, by layer and branch: ``[l m b t n h]``."""
    base, adapters = self.used(base, adapters)
    text, image = dit.embed_context(self.cfg, base, condition.text, condition.image, self.precision)
    options = {'branches': self.sequences, 'precision': self.precision}
    return dlc.keys(self.cfg, base['blocks'], adapters['lora'], text, image, **options)

  def used(self, base: dict, adapters: dict) -> tuple[dict, dict]:
    """Both as the branches take them: an adapter for each, scaled."""
    scale = self.adapters.alpha / self.adapters.rank
    return base, adapters | {'lora': lora.scaled(adapters['lora'], scale)}

  def tokens(
    self, base: dict, adapters: dict, z: Array, given: Float[Array, 'b f h w c'], context: dit.Context
  ) -> tuple[Float[Array, 'm b s d'], dit.Context]:
    """The tokens that enter the layers, and their context.

    The condition enters the RGB branch alone: 16 noisy channels, 4 of mask, 16 of condition latent. The XYZ branch
    gets 20 zero channels instead (Fig. 4, "zero pad") and its own patch embedding.
    """
    branches = (
      self._embed(base, {}, z[dlc.RGB], given),
      self._embed(base, {'patch': adapters['patch_xyz']}, z[dlc.XYZ], jnp.zeros_like(given)),
    )
    return jnp.stack(branches), context

  def _embed(self, base: dict, own: dict, *channels: Array) -> Float[Array, '*m b s d']:
    """Patches of all channels to tokens, by the base's embedding with what is ``own`` in its place."""
    x = jnp.concatenate(channels, axis=-1)
    return dit.WanEmbed(self.cfg, self.precision).apply({'params': base['embed'] | own}, x, method='tokens')

  def patches(self, base: dict, adapters: dict, x: Float[Array, 'm b s d'], e: Array) -> Float[Array, '2 b s p']:
    """The latent patches of both modalities, of the tokens that leave the layers."""
    return dit.WanHead(self.cfg, self.precision).apply({'params': base['head']}, x, e)
