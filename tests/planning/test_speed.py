"""Operations against XLA's count, bytes against the arrays they are of, and the arithmetic of a recipe."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from one4d_jax import config as configs
from one4d_jax.model.bundle import Bundle
from one4d_jax.parallel import load
from one4d_jax.planning import hardware, operations, speed
from one4d_jax.training import flops
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.config import CLIPConfig, UMT5Config, VAEConfig
from one4d_jax.wan.umt5 import UMT5Encoder
from one4d_jax.wan.vae import WanVAE

f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
EIGHT = hardware.parse('h100:8')


def counted(network, function, *inputs) -> float:
  params = jax.eval_shape(lambda: nn.unbox(network.init(jax.random.key(0))))
  return jax.jit(function).lower(params, *inputs).cost_analysis()['flops']


PATCHES = {'patch': 8, 'mult': (1, 1, 1), 'temporal': (True, True), 'res_blocks': 1}


@pytest.mark.parametrize(('size', 'values'), [((9, 64, 96), {}), ((17, 64, 64), {}), ((5, 512, 512), PATCHES)])
def test_operations_of_the_vae(size, values):
  vae = WanVAE(VAEConfig(width=24, **values))
  latent = f32(1, (size[0] - 1) // 4 + 1, size[1] // 8, size[2] // 8, 16)
  assert operations.encode(vae.cfg, size) == pytest.approx(counted(vae, vae.encode, f32(1, *size, 3)), rel=0.05)
  assert operations.decode(vae.cfg, size) == pytest.approx(counted(vae, vae.decode, latent), rel=0.05)


def test_operations_of_the_encoders():
  """Of one layer, for XLA counts the body of a scan once."""
  text = UMT5Encoder(UMT5Config(layers=1, width=256, ffn_width=640, heads=4, vocab=300))
  tokens = [jax.ShapeDtypeStruct((1, 512), kind) for kind in (jnp.int32, jnp.bool_)]
  assert operations.text(text.cfg, 512) == pytest.approx(counted(text, text.encode, *tokens), rel=0.05)
  image = CLIPEncoder(CLIPConfig(layers=2, width=768, mlp_width=3072, heads=12))
  assert operations.image(image.cfg) == pytest.approx(counted(image, image.encode, f32(1, 224, 224, 3)), rel=0.05)


def paper(*values):
  return configs.load('configs/one4d.py', values)


def test_a_pass_gathers_every_kernel_of_the_base_and_every_adapter_once():
  config = paper()
  boxed = load.abstract_base(config.model.dit, 'bfloat16')
  kernels = sum(x.size * 2 for x in jax.tree.leaves(nn.unbox(boxed)['blocks']) if x.ndim > 2)
  assert speed._weights(config) == pytest.approx(kernels, rel=1e-3)
  adapters = nn.unbox(load.boxed(Bundle({}, configs.sizes(config), {}), 'adapters'))
  matrices = sum(x.size for part in ('lora', 'links') for x in jax.tree.leaves(adapters[part]))
  assert speed._adapters(config) == pytest.approx(matrices, rel=1e-3)


def test_roofs_and_range_of_a_step():
  found = speed.speed('train', paper(), 'fsdp', EIGHT)
  count = flops.one4d(paper().model.dit, paper().model.adapters, flops.Sizes(1, (21, 22, 39), 512, 257))
  own, again = sum(count.step.values()), sum(count.forward.values())
  assert found.count == 32 and sum(found.operations.values()) == 32 * own and found.executed == 32 * (own + again)
  peak = 8 * 989.4e12
  assert found.roofs['compute'] == pytest.approx(32 * (own + again) / peak)
  assert [found.fastest, found.slowest] == pytest.approx([32 * own / (share * peak) for share in (0.54, 0.296)])
  saved = speed.speed('train', paper('model.remat=attention_saved'), 'fsdp', EIGHT)
  assert found.executed - saved.executed == 32 * count.forward['attention']
  assert speed.speed('train', paper('model.remat=none'), 'fsdp', EIGHT).executed == 32 * own
  slow = dataclasses.replace(EIGHT, kind=dataclasses.replace(EIGHT.kind, link=1e9))
  assert speed.speed('train', paper(), 'fsdp', slow).fastest == pytest.approx(found.roofs['network'] * 450)


def test_bytes_by_axis():
  one = speed.speed('train', paper('train.batch=1', 'train.accumulation=32'), 'fsdp', hardware.parse('h100:1'))
  assert one.traffic == {} and one.roofs['network'] == 0
  four = ('train.batch=4', 'train.accumulation=8')
  tokens, width = 18018, 5120
  sequence = speed.speed('train', paper(*four), 'fsdp=4,sequence=2', EIGHT).traffic
  # queries, keys, values and the output of both branches in each of 40 layers, half of each leaves the device
  assert sequence['sequence'] == 8 * 3 * 40 * 4 * (2 * tokens // 2 * width * 2) // 2
  modality = speed.speed('train', paper(*four), 'fsdp=4,modality=2', EIGHT).traffic
  assert modality['modality'] == 8 * 3 * 5 * tokens * width * 2 and 'sequence' not in modality
  ring = speed.speed('train', paper(*four, 'parallel.attention=ring'), 'fsdp=4,sequence=2', EIGHT).traffic
  assert ring['sequence'] == sequence['sequence']  # of two devices; of more, a ring sends more
  tensor = speed.speed('train', paper(*four), 'fsdp=4,tensor=2', EIGHT).traffic
  assert tensor['tensor'] == 8 * 3 * 40 * 3 * 2 * tokens * width * 2
  assert tensor['fsdp'] < modality['fsdp']


def test_more_than_one_machine_is_as_fast_as_its_network():
  two = speed.speed('train', paper(), 'fsdp=8,data=2', hardware.parse('h100:16'))
  far = speed.speed('train', paper('train.batch=16', 'train.accumulation=2'), 'fsdp=16', hardware.parse('h100:16'))
  sent = far.traffic['fsdp']
  assert far.roofs['network'] == pytest.approx(sent / (8 * 50e9))
  assert two.roofs['network'] == pytest.approx(two.traffic['fsdp'] / 450e9)


def test_a_scene_and_its_share_of_guidance():
  both, alone = (
    speed.speed('sample', paper(f'sample.guidance={g}'), 'fsdp', hardware.parse('h200:1')) for g in (6.0, 1.0)
  )
  assert (
    both.operations['linear'] == 2 * alone.operations['linear'] and both.operations['vae'] == alone.operations['vae']
  )
  assert math.isclose(both.operations['attention'], 50 * 2 * 2 * 40 * 4 * 18018 * 5120 * (18018 + 512 + 257))


def test_recipe_and_price():
  found = speed.speed('train', paper(), 'fsdp', EIGHT)
  whole = speed.recipe(paper(), found, EIGHT, price=2.0)
  assert whole['hours'] == pytest.approx([5500 * s / 3600 for s in (found.fastest, found.slowest)])
  assert whole['price'] == pytest.approx([16 * h for h in whole['hours']])
  assert 'price' not in speed.recipe(paper(), found, EIGHT)
