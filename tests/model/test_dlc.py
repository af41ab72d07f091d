"""Properties that decoupled LoRA control must keep, whatever the stacking strategy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.model import dlc
from one4d_jax.model.one4d import AdapterConfig, One4D
from one4d_jax.model.umc import Condition
from one4d_jax.nn import lora
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig

TINY = DiTConfig(width=48, ffn_width=80, heads=4, layers=6, text_width=24, image_width=20, freq_width=16)
LINKS = (1, 4)


def model(links=LINKS) -> One4D:
  return One4D(TINY, AdapterConfig(rank=4, alpha=2.0, link_layers=links), dit.FLOAT32)


@pytest.fixture(scope='module')
def state():
  base = nn.unbox(model().init_base(jax.random.key(0)))
  return base, nn.unbox(model().init_adapters(jax.random.key(1), base))


def inputs(seed=0):
  """A latent of both modalities, its time and a condition."""
  k = jax.random.split(jax.random.key(seed), 6)
  normal = jax.random.normal
  condition = Condition(
    latent=normal(k[1], (3, 2, 4, 4, 16)),
    mask=(normal(k[2], (3, 2, 4, 4, 4)) > 0).astype(jnp.float32),
    text=normal(k[3], (3, 8, 24)),
    image=normal(k[4], (3, 5, 20)),
  )
  return normal(k[0], (2, 3, 2, 4, 4, 16)), jnp.asarray([0.1, 0.5, 0.9]), condition


def noisy(tree, scale=0.05):
  return jax.tree.map(lambda a: a + scale * jax.random.normal(jax.random.key(a.size), a.shape), tree)


velocity = jax.jit(model().velocity)


@jax.jit
def alone(base, z, sigma, condition, given):
  """The base model on one branch."""
  x = jnp.concatenate([z, given], -1)
  return dit.velocity(TINY, base, x, 1000 * sigma, condition.text, condition.image, precision=dit.FLOAT32)


def test_fresh_adapters_leave_both_branches_equal_to_the_base(state):
  base, adapters = state
  z, sigma, condition = inputs()
  v = velocity(base, adapters, z, sigma, condition)
  given = jnp.concatenate([condition.mask, condition.latent], -1)
  np.testing.assert_allclose(v[dlc.RGB], alone(base, z[0], sigma, condition, given), atol=1e-5)
  np.testing.assert_allclose(v[dlc.XYZ], alone(base, z[1], sigma, condition, 0 * given), atol=1e-5)


def test_the_condition_reaches_xyz_only_through_the_links(state):
  base, adapters = state
  z, sigma, condition = inputs()

  def xyz(condition, links):
    return model().velocity(base, adapters | {'links': links}, z, sigma, condition)[dlc.XYZ].sum()

  gradient = jax.jit(jax.grad(xyz))
  through = lambda links: gradient(condition, links).latent
  assert np.all(through(adapters['links']) == 0)
  assert np.any(through(noisy(adapters['links'])) != 0)


def test_links_learn_from_the_first_step(state):
  base, adapters = state
  grad = jax.jit(jax.grad(lambda a: jnp.mean(model().velocity(base, a, *inputs()) ** 2)))(adapters)
  assert np.all(np.any(grad['links'] != 0, axis=(2, 3)))
  assert np.any(grad['patch_xyz']['kernel'] != 0)
  for g in grad['lora'].values():  # LoRA's usual first step
    assert np.all(g['a'] == 0) and np.any(g['b'] != 0)


@pytest.mark.parametrize('m', [dlc.RGB, dlc.XYZ])
def test_merged_weights_reproduce_the_branch(state, m):
  base, adapters = state
  adapters = adapters | {'lora': noisy(adapters['lora'])}
  z, sigma, condition = inputs()
  v = velocity(base, adapters, z, sigma, condition)
  merged = base | {'blocks': lora.merge(base['blocks'], adapters['lora'], m, scale=0.5)}
  given = jnp.concatenate([condition.mask, condition.latent], -1) * float(m == dlc.RGB)
  np.testing.assert_allclose(v[m], alone(merged, z[m], sigma, condition, given), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('links', [(), (0,), (0, 2, 3)])
def test_any_set_of_layers_may_be_linked(state, links):
  base, adapters = state
  adapters = {'lora': adapters['lora'], 'links': noisy(dlc.init_links(48, links).value)}
  x = jax.random.normal(jax.random.key(7), (2, 3, 8, 48))
  context = dit.embed_inputs(TINY, base, (2, 2, 2), jnp.ones(3), inputs()[2].text, inputs()[2].image, dit.FLOAT32)[1]
  run = jax.jit(lambda *a: dlc.run(TINY, *a, link_layers=links, precision=dit.FLOAT32))
  block_alone = jax.jit(dit.WanBlock(TINY, dit.FLOAT32).apply)
  y = run(base['blocks'], adapters, x, context)
  for i in range(TINY.layers):
    block = {'params': jax.tree.map(lambda w, i=i: w[i], base['blocks'])}
    x = jnp.stack([block_alone(block, branch, context) for branch in x])
    if i in links:
      kernel = adapters['links'][links.index(i)]
      x = jnp.stack([x[0] + x[1] @ kernel[0], x[1] + x[0] @ kernel[1]])  # both read what was there before
  np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('bad', [(4, 1), (1, 1), (6,), (-1,)])
def test_bad_link_layers_are_named(bad):
  with pytest.raises(ConfigError, match='link_layers must be increasing'):
    dlc.link_slots(bad, 6)


def test_unknown_target_names_the_choices():
  base = jax.eval_shape(model().init_base, jax.random.key(0))
  with pytest.raises(ConfigError, match=r"targets='attn'.*cross_k"):
    lora.init(jax.random.key(1), base['blocks'], rank=4, targets='attn')


def count(tree) -> int:
  return sum(a.size for a in jax.tree.leaves(nn.unbox(tree)))


@pytest.fixture(scope='module')
def full_size():
  paper = One4D(DiTConfig())
  base = jax.eval_shape(paper.init_base, jax.random.key(0))
  adapters = jax.eval_shape(paper.init_adapters, jax.random.key(0), nn.unbox(base))
  return paper, base, adapters


def test_parameter_counts_match_the_paper(full_size):
  _, _, adapters = full_size
  assert count(adapters['lora']) == 718_274_560  # 685.0 x 2^20, Sec. 4.1's "685M"
  assert count(adapters['links']) == 262_144_000  # 250.0 x 2^20
  assert count(adapters['patch_xyz']) == 742_400
  assert count(adapters) == 981_160_960  # 935.7 x 2^20, the paper's total


def test_adapters_inherit_the_sharding_of_their_kernel(full_size):
  spec = nn.get_partition_spec(full_size[2])
  assert tuple(spec['lora']['ffn_in']['a']) == ('layers', 'modality', 'embed', None)
  assert tuple(spec['lora']['ffn_in']['b']) == ('layers', 'modality', None, 'ffn')
  assert tuple(spec['links']) == ('link', 'modality', 'embed', 'heads')


def test_backward_keeps_no_copy_of_the_base(full_size):
  """At 14B a second copy of the base costs 30 GiB; the residual meter sees it without a device."""
  paper, base, adapters = (full_size[0], *map(nn.unbox, full_size[1:]))
  s, bf16 = jax.ShapeDtypeStruct, jnp.bfloat16
  x = s((2, 1, 512, 5120), bf16)
  half = s((512, 64), jnp.float32)
  context = dit.Context(s((1, 6, 5120), jnp.float32), s((1, 8, 5120), bf16), s((1, 4, 5120), bf16), half, half)

  def residuals(adapters, blocks, x, context):
    run = lambda a: dlc.run(paper.cfg, blocks, a, x, context, link_layers=paper.adapters.link_layers)
    return jax.tree.leaves(jax.vjp(run, adapters)[1])

  jaxpr = jax.make_jaxpr(residuals)(adapters, base['blocks'], x, context).jaxpr
  given = set(jaxpr.invars)
  held = sum(v.aval.size * v.aval.dtype.itemsize for v in jaxpr.outvars if not hasattr(v, 'val') and v not in given)
  activations = 40 * 2 * 512 * 5120 * 2
  assert held < 1.2 * activations, f'{held / 2**30:.2f} GiB held'


def test_a_base_kernel_is_read_once_for_both_branches(state):
  """Under the modality map a base kernel meets one product with both branches folded into its rows."""
  base, adapters = state
  text = str(jax.make_jaxpr(lambda *a: model().velocity(*a))(base, adapters, *inputs()))
  assert 'f32[2,48,80]' not in text  # no per-branch copy of ffn_in
  assert 'f32[6,2,48,80]' not in text
