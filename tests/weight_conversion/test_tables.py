"""The tables against the published lists of names at full size, and the sizes read off a file."""

import hashlib
import math

import numpy as np
import pytest
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from tests.weight_conversion import SMALL, described, fit, manifest, random, rows
from weight_conversion.rules import Tensor, convert
from weight_conversion.tables import TABLES, detect

LAYOUTS = 'native', 'diffusers'
FULL = {  # manifest: part, sizes, parameters, MD5 of the native list of names and shapes
  'dit_14b': ('base', DiTConfig(), 16_394_878_784, '6bfcfb3b342cb286ce886889d519a77e'),
  'dit_1_3b': (
    'base',
    DiTConfig(width=1536, ffn_width=8960, heads=12, layers=30),
    1_564_428_608,
    '6d6ccde6845b95ad9114ab993d917893',
  ),
  'vae': ('vae', VAEConfig(), 126_892_531, 'ccc42284ea13e1ad04693284c7a09be6'),
  'umt5': ('text', UMT5Config(), 5_680_910_336, '9c8818c2cbea55eca56c7b447df170da'),
  'clip': ('image', CLIPConfig(), 611_086_080, '5941c53e207d62f20f9025686193c40b'),
}
TENSORS = {  # in the file, and read of it
  'dit_14b': {'native': (1303, 1303), 'diffusers': (1303, 1303)},
  'dit_1_3b': {'native': (983, 983), 'diffusers': (983, 983)},
  'vae': {'native': (194, 194), 'diffusers': (194, 194)},
  'umt5': {'native': (242, 242), 'diffusers': (243, 242)},
  'clip': {'native': (784, 377), 'diffusers': (519, 501)},
}


@pytest.mark.parametrize('name', FULL)
def test_manifest_is_that_of_the_published_file(name):
  words = [w for n, t in manifest(name, 'native').items() for w in (n, n + ':' + '_'.join(map(str, t.shape)))]
  assert hashlib.md5(','.join(sorted(words)).encode()).hexdigest() == FULL[name][-1]


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', FULL)
def test_every_tensor_is_accounted_for(name, layout):
  part, cfg, parameters, _ = FULL[name]
  tensors = manifest(name, layout)
  assert detect(tensors) == (part, layout)
  assert TABLES[part].config(tensors, layout, {}) == cfg
  leaves = fit(part, cfg, layout, tensors)
  used = [source for leaf in leaves for sources in leaf.layers for source in sources]
  assert (len(tensors), len(used)) == TENSORS[name][layout] and len(set(used)) == len(used)
  assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
  assert sum(math.prod(tensors[source].shape) for source in used) == parameters


@pytest.mark.parametrize('name', FULL)
def test_layouts_name_the_same_tensors(name):
  part, cfg, *_ = FULL[name]
  published = {}
  for row in rows(name):
    published |= {native[0]: row.names('diffusers')[l] for l, native in enumerate(row.names('native')) if native}
  native, diffusers = (
    {leaf.target: leaf.layers for leaf in fit(part, cfg, layout, manifest(name, layout))} for layout in LAYOUTS
  )
  assert native.keys() == diffusers.keys()
  ours = {sources[0]: diffusers[target][l] for target in native for l, sources in enumerate(native[target])}
  assert ours == {source: published[source] for source in ours}
  if name.startswith('dit'):  # the swap that the shapes do not show
    assert native['blocks/cross_norm/scale'][7] == ('blocks.7.norm3.weight',)
    assert diffusers['blocks/cross_norm/scale'][7] == ('blocks.7.norm2.weight',)


@pytest.mark.parametrize('part', SMALL)
def test_layouts_give_the_same_tree(part):
  """The other layout is made from the published map alone: names, parts of fused tensors, axes of one."""
  cfg, table = SMALL[part], TABLES[part]
  native, diffusers = random(part, cfg, 'native'), {}
  for row in rows({'base': 'dit_14b', 'vae': 'vae', 'text': 'umt5', 'image': 'clip'}[part]):
    for name, theirs in zip(row.names('native'), row.names('diffusers'), strict=True):
      if name and name[0] in native:
        parts = np.split(native[name[0]], len(theirs))
        ndim = len(row.diffusers_shape)
        diffusers |= {n: w.reshape(w.shape[-ndim:]) for n, w in zip(theirs, parts, strict=True)}
  one, other = (
    traverse_util.flatten_dict(convert(tensors, table.rules(cfg, layout), ignore=table.ignored(cfg, layout)))
    for tensors, layout in ((native, 'native'), (diffusers, 'diffusers'))
  )
  assert one.keys() == other.keys()
  for path in one:
    np.testing.assert_array_equal(one[path], other[path], err_msg='/'.join(path))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
  ('part', 'cfg', 'says'),
  [
    *((part, cfg, {'num_heads': 2, 'num_attention_heads': 2} if part == 'base' else {}) for part, cfg in SMALL.items()),
    ('base', DiTConfig(width=256, ffn_width=8, heads=2, layers=1, patch=(1, 1, 2), text_len=7), {'text_len': 7}),
    ('vae', VAEConfig(width=4, mult=(1, 2, 2), res_blocks=1, temporal=(True, True)), {}),
    ('vae', VAEConfig(width=8, mult=(1, 2, 2), res_blocks=3, temporal=(True, False)), {}),
  ],
)
def test_sizes_are_read_off_a_file(part, cfg, says, layout):
  tensors = described(part, cfg, layout)
  found = TABLES[part].config(tensors, layout, says)
  assert found == cfg
  assert fit(part, found, layout, tensors)


def contradiction(part, name, layout, **says):
  with pytest.raises(CheckpointError) as error:
    TABLES[part].config(manifest(name, layout), layout, says)
  return str(error.value)


def test_a_config_file_of_another_network():
  message = contradiction('base', 'dit_1_3b', 'native', dim=5120, num_layers=30, num_heads=12, ffn_dim=13824)
  assert 'dim is 5120 there and 1536 in the weights' in message and 'ffn_dim is 13824' in message
  assert 'num_layers' not in message
  assert 'attention_head_dim is 64' in contradiction('base', 'dit_14b', 'diffusers', attention_head_dim=64)
  assert '1536 cannot be split into 7 heads' in contradiction('base', 'dit_1_3b', 'native', num_heads=7)
  assert 'model_type is t2v' in contradiction('base', 'dit_14b', 'native', model_type='t2v')
  assert 'dim_mult is [1, 2, 4]' in contradiction('vae', 'vae', 'diffusers', dim_mult=[1, 2, 4])
  assert "num_heads is '12'" in contradiction('base', 'dit_1_3b', 'native', num_heads='12')
  assert '3 values for 16 latent' in contradiction('vae', 'vae', 'diffusers', latents_std=[1, 2, 3])
  assert 'd_kv is 32' in contradiction('text', 'umt5', 'diffusers', d_kv=32)
  assert 'hidden_act is quick_gelu' in contradiction('image', 'clip', 'diffusers', hidden_act='quick_gelu')
  assert '1280 cannot be split into 7 heads' in contradiction('image', 'clip', 'diffusers', num_attention_heads=7)


PUBLISHED = {  # what the config.json files of the releases say, as far as it is of the architecture
  ('dit_14b', 'native'): {
    'model_type': 'i2v', 'dim': 5120, 'ffn_dim': 13824, 'freq_dim': 256, 'in_dim': 36, 'out_dim': 16, 'num_heads': 40,
    'num_layers': 40, 'text_len': 512, 'eps': 1e-6,
  },
  ('dit_14b', 'diffusers'): {
    'patch_size': [1, 2, 2], 'num_attention_heads': 40, 'attention_head_dim': 128, 'in_channels': 36,
    'out_channels': 16, 'text_dim': 4096, 'freq_dim': 256, 'ffn_dim': 13824, 'num_layers': 40, 'eps': 1e-6,
    'cross_attn_norm': True, 'qk_norm': 'rms_norm_across_heads', 'image_dim': 1280, 'added_kv_proj_dim': 5120,
    'rope_max_seq_len': 1024, 'pos_embed_seq_len': None,
  },
  ('vae', 'diffusers'): {
    'base_dim': 96, 'z_dim': 16, 'dim_mult': [1, 2, 4, 4], 'num_res_blocks': 2, 'attn_scales': [],
    'temperal_downsample': [False, True, True], 'dropout': 0.0, 'latents_mean': list(VAEConfig.latent_mean),
    'latents_std': list(VAEConfig.latent_std),
  },
  ('umt5', 'diffusers'): {
    'vocab_size': 256384, 'd_model': 4096, 'd_kv': 64, 'd_ff': 10240, 'num_layers': 24, 'num_heads': 64,
    'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128, 'layer_norm_epsilon': 1e-6,
    'feed_forward_proj': 'gated-gelu', 'is_gated_act': True, 'dense_act_fn': 'gelu_new',
  },
  ('clip', 'diffusers'): {
    'hidden_size': 1280, 'intermediate_size': 5120, 'num_hidden_layers': 32, 'num_attention_heads': 16,
    'image_size': 224, 'patch_size': 14, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5, 'projection_dim': 1024,
  },
}  # fmt: skip


@pytest.mark.parametrize(('name', 'layout'), PUBLISHED)
def test_config_files_of_the_releases_agree(name, layout):
  part, cfg, *_ = FULL[name]
  assert TABLES[part].config(manifest(name, layout), layout, PUBLISHED[name, layout]) == cfg


@pytest.mark.parametrize('name', ['dit_14b', 'umt5', 'clip'])
def test_a_few_wrong_tensors_do_not_change_the_sizes(name):
  """The message then is about them, and not about all others."""
  part, cfg, *_ = FULL[name]
  tensors = manifest(name, 'native')
  norm, ffn, prefix = {
    'dit_14b': ('norm3.weight', 'ffn.0.weight', 'blocks.'),
    'umt5': ('norm1.weight', 'ffn.fc1.weight', 'blocks.'),
    'clip': ('norm1.weight', 'mlp.0.weight', 'visual.transformer.'),
  }[name]
  found = tensors.pop(f'{prefix}0.{norm}')
  many = [f'{prefix}777777777.scale', f'{prefix}98.{norm}', f'{prefix}99.{norm}']
  tensors |= dict.fromkeys([*many, f'{prefix}0.{ffn}'], found)
  assert TABLES[part].config(tensors, 'native', {}) == cfg
  with pytest.raises(CheckpointError) as error:
    fit(part, cfg, 'native', tensors)
  assert f'(1 missing: {prefix}0.{norm}; 3 unexpected: {", ".join(many)}; ' in str(error.value)
  assert f'; 1 mis-shaped: {prefix}0.{ffn} ' in str(error.value)


def test_what_shapes_cannot_tell_comes_from_the_config_file():
  found = TABLES['vae'].config(manifest('vae', 'diffusers'), 'diffusers', {'latents_mean': list(range(16))})
  assert found == VAEConfig(latent_mean=tuple(range(16)))
  says = {'relative_attention_max_distance': 64, 'layer_norm_epsilon': 1e-5, 'decoder_layers': None}
  found = TABLES['text'].config(manifest('umt5', 'diffusers'), 'diffusers', says)
  assert found == UMT5Config(max_distance=64, eps=1e-5)
  found = TABLES['image'].config(manifest('clip', 'diffusers'), 'diffusers', {'num_attention_heads': 20})
  assert found == CLIPConfig(heads=20)
  # native files of the encoders lie beside the config.json of the DiT, which says nothing about them
  assert TABLES['text'].config(manifest('umt5', 'native'), 'native', {'num_layers': 40}) == UMT5Config()


def without(tensors, *parts):
  return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


def with_channels(tensors, channels):
  return tensors | {'patch_embedding.weight': Tensor((5120, channels, 1, 2, 2), 'bfloat16')}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_other_variants_of_wan_are_refused(layout):
  """One sentence that says what it is, instead of a hundred missing names."""
  tensors, extra = manifest('dit_14b', layout), lambda name: {name: Tensor((5120,), 'bfloat16')}
  text_only = without(tensors, '_img', 'img_emb', 'add_k_proj', 'add_v_proj', 'norm_added', 'image_embedder')
  both_frames = 'img_emb.emb_pos' if layout == 'native' else 'condition_embedder.image_embedder.pos_embed'
  cases = {
    'a text-to-video or Wan2.2 checkpoint (16 input channels': with_channels(text_only, 16),
    'a first-last-frame (FLF2V) checkpoint': tensors | extra(both_frames),
    'a Control checkpoint': tensors | extra('ref_conv.weight'),
    '52 input channels instead of 36': with_channels(tensors, 52),
    'a VACE checkpoint': with_channels(text_only, 16) | extra('vace_blocks.0.proj_out.bias'),
  }
  for words, variant in cases.items():
    assert detect(variant) == ('base', layout)
    with pytest.raises(CheckpointError, match=r'needs an image-to-video one, Wan2\.1-Fun-InP or Wan2\.1-I2V') as error:
      TABLES['base'].config(variant, layout, {})
    assert words in str(error.value)


@pytest.mark.parametrize(
  ('name', 'without', 'change', 'match'),
  [
    ('dit_14b', 'head.head.weight', {}, r"'head\.head\.weight' is missing"),
    ('dit_14b', None, {'head.head.weight': (64,)}, r'shape \[64\] and should have 2 axes'),
    ('dit_14b', None, {'patch_embedding.weight': (5120, 36, 1, 0, 2)}, 'none of them empty'),
    ('clip', None, {'visual.pos_embedding': (1, 250, 1280)}, '250 rows'),
    ('vae', None, {'encoder.conv1.weight': (96, 12, 3, 3, 3)}, r'not of Wan2\.2'),
    ('vae', 'encoder.downsamples.10.', {}, r'\[2, 2, 2, 1\] residual blocks'),
  ],
)
def test_files_that_do_not_tell_their_size(name, without, change, match):
  tensors = {n: t for n, t in manifest(name, 'native').items() if not (without and n.startswith(without))}
  tensors |= {n: Tensor(shape, 'bfloat16') for n, shape in change.items()}
  with pytest.raises(CheckpointError, match=match):
    TABLES[FULL[name][0]].config(tensors, 'native', {})


def test_foreign_files_are_not_detected():
  with pytest.raises(CheckpointError, match=r"no network of Wan2\.1: its tensors are \['a', 'b'\]"):
    detect({'a', 'b'})


@pytest.mark.parametrize('part', SMALL)
def test_norms_and_tables_stay_float32(part):
  table = TABLES[part]
  islands = {path for path, leaf in table.targets(SMALL[part], 'bfloat16').items() if leaf.dtype == np.float32}
  norms = {path for path in table.targets(SMALL[part], 'float32') if path.endswith(('/scale', '/gamma', '/modulation'))}
  biases = {path.replace('/scale', '/bias') for path in norms}
  assert norms <= islands <= norms | biases
