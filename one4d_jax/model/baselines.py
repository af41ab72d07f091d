"""What One4D is compared with: the same frozen base and interface, other ways to join RGB and XYZ.

  dlc             One4D itself: a branch and a LoRA per modality, control links both ways
  channel_concat  one sequence; a token holds both modalities on its channels     (One4D, Fig. 2a; WVD)
  spatial_concat  one sequence; both modalities side by side in width             (One4D, Fig. 2b; 4DNeX)
  shared_lora     dlc with one LoRA for both branches
  no_links        dlc without control links: independent branches
  rgb_to_xyz      dlc with control links into the XYZ branch alone
  xyz_to_rgb      dlc with control links into the RGB branch alone
  full            dlc with the base itself trained, one copy for both branches, in the place of LoRA

``build`` makes the model of ``AdapterConfig.kind``. To models of one sequence and to ``no_links``,
``AdapterConfig.link_layers`` means nothing, to ``full`` its LoRA; how much the others train is a matter of ``rank``.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from one4d_jax.model import dlc
from one4d_jax.model.one4d import AdapterConfig, One4D, base_shapes, trained_copy
from one4d_jax.nn import lora
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig


def _one_lora(model: One4D, key: jax.Array) -> dict:
  """A single LoRA, ``[l, 1, ...]``."""
  blocks = base_shapes(model.cfg, model.precision)['blocks']
  return lora.init(key, blocks, rank=model.adapters.rank, modalities=1, targets=model.adapters.targets)


class OneSequence(One4D):
  """One token sequence for both modalities, through the base with one LoRA."""

  sequences = 1


class ChannelConcat(OneSequence):
  """A token holds both modalities: half the tokens of One4D, aligned by construction, one feature for two outputs.

  WVD (arXiv 2412.01821) trains a diffusion transformer on RGB and XYZ together and conditions it by inpainting. Here
  the base is frozen but for LoRA, as in One4D's comparison, and the condition is One4D's. The patch embedding is a
  trained copy with rows for the noisy XYZ, zero at first; the head has a second, trained projection, at first a copy
  of the frozen one. What the heads of a fresh model give is twice the base's.
  """

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """Fresh float32 adapters for ``base`` (unboxed), boxed."""
    shapes = base_shapes(self.cfg, self.precision)
    patch = trained_copy(base['embed']['patch'], shapes['embed']['patch'])
    kernel = patch['kernel']
    rows = jnp.zeros((self.cfg.out_channels * math.prod(self.cfg.patch), self.cfg.width))
    return {
      'lora': _one_lora(self, key),
      'patch': patch | {'kernel': kernel.replace_boxed(jnp.concatenate([kernel.value, rows]))},
      'out_xyz': trained_copy(base['head']['out'], shapes['head']['out']),
    }

  def tokens(self, base, adapters, z, given, context):
    """As ``One4D.tokens``. Channels of the input: noisy RGB, mask, condition latent, noisy XYZ."""
    x = self._embed(base, {'patch': adapters['patch']}, z[dlc.RGB], given, z[dlc.XYZ])
    return x[None], context

  def patches(self, base, adapters, x, e):
    """As ``One4D.patches``, by a head for each modality."""
    heads = base['head'], base['head'] | {'out': adapters['out_xyz']}
    return jnp.stack([dit.WanHead(self.cfg, self.precision).apply({'params': head}, x[0], e) for head in heads])


class SpatialConcat(OneSequence):
  """Every self-attention is over the tokens of both modalities, which costs twice One4D's.

  4DNeX (arXiv 2508.13154) joins RGB and XYZ in width with rotary positions shared, adds a learned embedding of the
  modality to either half, starts the XYZ half of its condition from a slanted plane and standardises XYZ latents by
  statistics of its data. Here the XYZ half alone has an embedding, zero at first, and the condition and the latents
  are One4D's. Attention does not see in which order tokens come, so the halves lie one after the other.

  A fresh model is not the base, for RGB attends to XYZ; it is the base where both halves are the same.
  """

  tokens_per_place = 2

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """Fresh float32 adapters, boxed; they depend on the shapes of ``base`` alone."""
    modality = nn.LogicallyPartitioned(jnp.zeros(self.cfg.width), ('embed',))
    return {'lora': _one_lora(self, key), 'modality_xyz': modality}

  def tokens(self, base, adapters, z, given, context):
    """As ``One4D.tokens``. The condition enters at the RGB tokens, with zeros at the XYZ tokens."""
    x = self._embed(base, {}, z, jnp.stack([given, jnp.zeros_like(given)]))  # 2 b s d
    x = jnp.concatenate([x[dlc.RGB], x[dlc.XYZ] + adapters['modality_xyz'].astype(x.dtype)], axis=1)
    cos, sin = (jnp.concatenate([table, table]) for table in (context.cos, context.sin))
    return x[None], context._replace(cos=cos, sin=sin)

  def patches(self, base, adapters, x, e):
    """As ``One4D.patches``."""
    return super().patches(base, adapters, jnp.stack(jnp.split(x[0], 2, axis=1)), e)


class SharedLora(One4D):
  """One LoRA for both branches; their inputs, links and cost are One4D's."""

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """As ``One4D.init_adapters``."""
    return super().init_adapters(key, base) | {'lora': _one_lora(self, key)}

  def used(self, base: dict, adapters: dict) -> tuple[dict, dict]:
    """As ``One4D.used``."""
    both = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=1), adapters['lora'])  # [l 1 …] to [l 2 …]
    return super().used(base, adapters | {'lora': both})


@dataclasses.dataclass(frozen=True)
class OneWay(One4D):
  """Control links into one branch alone; the other branch is all that it would be without links."""

  into: int = dlc.XYZ

  @property
  def linked(self) -> tuple[int, ...]:
    return (self.into,)

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """As ``One4D.init_adapters``."""
    links = dlc.init_links(self.cfg.width, self.adapters.link_layers, modalities=1)
    return super().init_adapters(key, base) | {'links': links}

  def used(self, base: dict, adapters: dict) -> tuple[dict, dict]:
    """As ``One4D.used``. The links that are not there are zeros, and cost as much."""
    links = [jnp.zeros_like(adapters['links'])] * 2
    links[self.into] = adapters['links']
    return super().used(base, adapters | {'links': jnp.concatenate(links, axis=1)})


class FullTuning(One4D):
  """All of the base is trained. One copy serves both branches, which differ by the XYZ patch embedding and the links.

  A copy for each branch would be two models; what LoRA has for each modality, one set of weights must learn for both.
  Weights, gradients and the optimizer's moments are float32 and as large as the base: for small sizes.
  """

  def init_adapters(self, key: jax.Array, base: dict) -> dict:
    """As ``One4D.init_adapters``, a trained copy of ``base`` in the place of LoRA."""
    adapters = super().init_adapters(key, base)
    del adapters['lora']
    return adapters | {'base': trained_copy(base, base_shapes(self.cfg, self.precision))}

  def used(self, base: dict, adapters: dict) -> tuple[dict, dict]:
    """As ``One4D.used``; of ``base`` nothing is used."""
    return super().used(adapters['base'], adapters | {'lora': {}})


def _unlinked(model: type[One4D], cfg: DiTConfig, adapters: AdapterConfig = AdapterConfig(), *args, **kwargs) -> One4D:
  """A model without control links, whatever ``adapters`` say."""
  return model(cfg, dataclasses.replace(adapters, link_layers=()), *args, **kwargs)


MODELS: Mapping[str, Callable[..., One4D]] = {
  'dlc': One4D,
  'channel_concat': functools.partial(_unlinked, ChannelConcat),
  'spatial_concat': functools.partial(_unlinked, SpatialConcat),
  'shared_lora': SharedLora,
  'no_links': functools.partial(_unlinked, One4D),
  'rgb_to_xyz': functools.partial(OneWay, into=dlc.XYZ),
  'xyz_to_rgb': functools.partial(OneWay, into=dlc.RGB),
  'full': FullTuning,
}


def build(cfg: DiTConfig, adapters: AdapterConfig, *args, **kwargs) -> One4D:
  """The model of ``adapters.kind``, a name of ``MODELS``. Takes what ``One4D`` takes."""
  return MODELS[adapters.kind](cfg, adapters, *args, **kwargs)
