"""What ``flax_to_wan.py`` and ``import_lora.py`` write."""

import dataclasses
import functools
import json
import pathlib
import shutil
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from one4d_jax import cli
from one4d_jax.errors import CheckpointError, ConfigError
from one4d_jax.model import bundle as bundles
from one4d_jax.model.dlc import RGB, XYZ
from one4d_jax.model.one4d import AdapterConfig, One4D
from one4d_jax.model.umc import Condition
from one4d_jax.wan import dit
from one4d_jax.wan.config import DiTConfig, VAEConfig
from one4d_jax.wan.vae import WanVAE
from weight_conversion import command, control, describe, flax_to_wan, import_lora, leaves, lora, rules, stream, tables
from weight_conversion.reader import Safetensors
from weight_conversion.wan_to_flax import convert_release

TINY = DiTConfig(width=24, ffn_width=40, heads=2, layers=2, text_width=12, image_width=10, freq_width=8)
ADAPTERS = AdapterConfig(rank=3, alpha=1.5, link_layers=(1,))
MODEL = One4D(TINY, ADAPTERS, dit.FLOAT32, remat='none')
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # compiles 4x faster


def random(tree, seed):
  """Normal values of the same shapes and dtypes, as NumPy."""
  rng = np.random.default_rng(seed)
  draw = lambda leaf: (0.3 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)
  return jax.tree.map(draw, nn.unbox(tree))


@functools.cache
def base():
  return random(jax.eval_shape(MODEL.init_base, jax.random.key(0)), 0)


@functools.cache
def adapters():
  return random(jax.eval_shape(MODEL.init_adapters, jax.random.key(0), base()), 1)


@pytest.fixture
def bundle(tmp_path):
  """A small trained model: base and adapters, float32."""
  sizes = dataclasses.replace(bundles.WAN, dit=TINY, adapters=ADAPTERS, dtype='float32')
  bundles.save(bundles.Bundle({'base': base(), 'adapters': adapters()}, sizes, {'made': 'here'}), tmp_path / 'bundle')
  return tmp_path / 'bundle'


def release(folder, dtype, layout='native'):
  """``base()`` as a release of that dtype."""
  flat = traverse_util.flatten_dict(base(), sep='/')
  arrays = {k: leaves.Array(v.shape, np.dtype(dtype), v.astype(dtype).__getitem__) for k, v in flat.items()}
  place = folder / ('diffusion_pytorch_model' if layout == 'native' else 'transformer/diffusion_pytorch_model')
  place.parent.mkdir(parents=True)
  stream.write_safetensors(f'{place}.safetensors', leaves.tensors(arrays, tables.dit.rules(TINY, layout)))
  place.with_name('config.json').write_text(json.dumps(describe.CONFIGS['base', layout](TINY)))
  return folder


def same(a: pathlib.Path, b: pathlib.Path):
  """Both files hold the same tensors, bit for bit."""
  a, b = Safetensors(a), Safetensors(b)
  assert a.tensors() == b.tensors()
  for name in a.tensors():
    np.testing.assert_array_equal(a.read(name, None).view(np.uint8), b.read(name, None).view(np.uint8), err_msg=name)


def lazy(**arrays):
  return {name: stream.Lazy(v.shape, v.dtype.name, lambda v=v: v) for name, v in arrays.items()}


# ---- files


def test_a_streamed_file_is_read_by_the_library(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    'half': rng.standard_normal(3).astype(np.float16),
    'brain': rng.standard_normal((5, 4)).astype(ml_dtypes.bfloat16).T,  # not contiguous
    'scalar': np.array(1.5, np.float32),
    'single': rng.standard_normal((2, 3, 4)).astype(np.float32),
    'empty': np.zeros((0, 4), np.float32),
  }
  written = []
  stream.write_safetensors(tmp_path / 'x.safetensors', lazy(**arrays), metadata={'a': 'b'}, progress=written.append)
  again = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
  assert again.keys() == arrays.keys() and sum(written) == sum(v.nbytes for v in arrays.values())
  for name, value in arrays.items():
    assert again[name].dtype == value.dtype
    np.testing.assert_array_equal(again[name], value)
  with safetensors.safe_open(tmp_path / 'x.safetensors', 'numpy') as file:
    assert file.metadata() == {'format': 'pt', 'a': 'b'}


@pytest.mark.parametrize('length', range(8))
def test_tensors_start_at_multiples_of_their_width(length, tmp_path):
  """So that a reader may map the file; whatever the length of the header."""
  arrays = {'half': np.zeros(3, np.float16), 'single': np.zeros(2, np.float32), 'double': np.zeros(1)}
  stream.write_safetensors(tmp_path / 'x.safetensors', lazy(**arrays), metadata={'a': 'b' * length})
  content = (tmp_path / 'x.safetensors').read_bytes()
  size = int.from_bytes(content[:8], 'little')
  header = json.loads(content[8 : 8 + size])
  for name, value in arrays.items():
    assert (8 + size + header[name]['data_offsets'][0]) % value.itemsize == 0


def test_a_failed_file_leaves_what_was_there(tmp_path):
  path = tmp_path / 'x.safetensors'
  stream.write_safetensors(path, lazy(a=np.zeros(3)))
  before = path.read_bytes()
  with pytest.raises(ValueError, match=r'a is float64 \(3,\), announced was \(\(4,\)'):
    stream.write_safetensors(path, {'a': stream.Lazy((4,), 'float64', lambda: np.zeros(3))})
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_shards_stay_below_the_limit(tmp_path):
  arrays = {f'w{i}': np.full(size, i, np.float32) for i, size in enumerate([10, 20, 30, 5, 5, 60])}
  stream.write_shards(tmp_path, 'model', lazy(**arrays), limit=160)
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  assert index['metadata']['total_size'] == 4 * 130 and index['weight_map'].keys() == arrays.keys()
  files = sorted(path.name for path in tmp_path.glob('*.safetensors'))
  assert files == [f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)]
  for file in files[:2]:  # the last has one tensor that is too large for any
    assert sum(t.nbytes for t in safetensors.numpy.load_file(tmp_path / file).values()) <= 160
  for name, value in arrays.items():
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / index['weight_map'][name])[name], value)
  stream.write_shards(tmp_path / '..', 'whole', lazy(**arrays))
  assert not (tmp_path / '../whole.safetensors.index.json').exists()


# ---- networks


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
@pytest.mark.parametrize('layout', ['native', 'diffusers'])
def test_a_converted_release_comes_back_bit_for_bit(dtype, layout, tmp_path):
  """In bfloat16 the norms are float32 in between."""
  src = release(tmp_path / 'release', dtype, layout)
  converted = convert_release(src, tmp_path / 'bundle', ['base'], dtype=dtype)
  out = flax_to_wan.export(converted, tmp_path / 'out', ['dit'], names=[layout]) / layout
  for path in src.rglob('*.*'):
    if path.suffix == '.safetensors':
      same(path, out / path.relative_to(src))
    else:
      assert json.loads(path.read_text()) == json.loads((out / path.relative_to(src)).read_text())


def test_what_conversion_rounded_is_written_as_it_is_kept(tmp_path):
  src = release(tmp_path / 'release', 'float32')
  for name, options in (('narrow', {'dtype': 'bfloat16'}), ('int8', {'int8': True, 'dtype': 'float32'})):
    converted = convert_release(src, tmp_path / name, ['base'], **options)
    out = (
      flax_to_wan.export(converted, tmp_path / f'{name}-out', ['dit']) / 'native/diffusion_pytorch_model.safetensors'
    )
    given, kept = safetensors.numpy.load_file(src / out.name), safetensors.numpy.load_file(out)
    weight, gain = 'blocks.1.ffn.0.weight', 'blocks.1.norm3.weight'
    assert kept[gain].dtype == np.float32
    np.testing.assert_array_equal(kept[gain], given[gain])
    if name == 'narrow':
      np.testing.assert_array_equal(kept[weight], given[weight].astype(ml_dtypes.bfloat16))
    else:
      step = np.abs(given[weight]).max(axis=1, keepdims=True) / 127
      assert kept[weight].dtype == np.float32 and np.all(np.abs(kept[weight] - given[weight]) <= 0.501 * step)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The embedded model, but a VAE and a head that Wan's layouts have a place for."""
  cfg, embedded = VAEConfig(width=8, res_blocks=1), bundles.load()
  params = nn.unbox(jax.jit(WanVAE(cfg).init)(jax.random.key(0)))
  folder = tmp_path_factory.mktemp('trained') / 'bundle'
  sizes = dataclasses.replace(embedded.config, vae=cfg, dit=dataclasses.replace(embedded.config.dit, sigma_data=0.0))
  bundles.save(embedded.replace({'vae': params}, config=sizes), folder)
  return folder


def test_what_no_other_program_knows_is_refused(tmp_path):
  for name, why in (('vae', 'patches of 8 x 8 pixels'), ('dit', 'sigma_data=0.6'), ('merged', 'sigma_data=0.6')):
    with pytest.raises(CheckpointError, match=f'^{name} of .*{why}.*leave {name} out'):
      flax_to_wan.export(None, tmp_path / 'out', ['umt5', name])


def test_a_model_trained_here_goes_out_and_in_again(trained, tmp_path):
  """All four networks, whose sizes are none of Wan's: what they need is in their config.json."""
  out = flax_to_wan.export(trained, tmp_path / 'out', list(command.PARTS), names=['diffusers']) / 'diffusers'
  (out / 'tokenizer').mkdir()
  (out / 'tokenizer/spiece.model').write_bytes(b'pieces')
  again = convert_release(out, tmp_path / 'bundle', dtype='float32')
  given, (sizes, _) = bundles.load(trained), bundles.describe(again)
  for part, field in (('base', 'dit'), ('vae', 'vae'), ('text', 'text'), ('image', 'image')):
    due = getattr(given.config, field)
    due = dataclasses.replace(due, tokenizer='umt5') if part == 'text' else due
    due = (
      dataclasses.replace(due, text_len=DiTConfig.text_len) if part == 'base' else due
    )  # diffusers has no word for it
    assert getattr(sizes, field) == due
    arrays = leaves.open_part(again / part)
    flat = traverse_util.flatten_dict(given.params[part], sep='/')
    assert arrays.keys() == flat.keys()
    for name, value in flat.items():
      np.testing.assert_array_equal(arrays[name][...], value, err_msg=name)
  twice = flax_to_wan.export(again, tmp_path / 'twice', list(command.PARTS), names=['diffusers']) / 'diffusers'
  for path in out.rglob('*.safetensors'):
    same(path, twice / path.relative_to(out))
  assert (twice / 'tokenizer/spiece.model').read_bytes() == b'pieces'


@pytest.mark.parametrize(('stored', 'released', 'written'), [
  ('float32', 'bfloat16', 'bfloat16'),  # a norm: kept wider
  ('bfloat16', 'float32', 'bfloat16'),  # rounded by --dtype
  ('float16', 'bfloat16', 'float16'),  # rounded without getting narrower
  ('float16', None, 'float16'),  # trained here
])  # fmt: skip
def test_the_narrower_dtype_is_written(stored, released, written):
  origin = {} if released is None else {3: released}
  assert leaves.Array((4, 2), np.dtype(stored), None, origin).written(3) == written


def test_a_table_of_another_network_is_refused():
  flat = {'embed/patch/kernel': leaves.Array((144, 24), np.dtype('float32'), lambda index: np.zeros((144, 24)))}
  with pytest.raises(CheckpointError, match=r'differ in .*blocks/cross_k/bias'):
    leaves.tensors(flat, tables.dit.rules(TINY, 'native'))


# ---- merged


@pytest.mark.parametrize('layout', ['native', 'diffusers'])
def test_merged_networks_compute_what_each_branch_computes(layout, bundle, tmp_path):
  out = flax_to_wan.export(bundle, tmp_path / 'out', ['merged'], names=[layout])
  k = jax.random.split(jax.random.key(2), 5)
  z, sigma = jax.random.normal(k[0], (2, 1, 2, 4, 4, 16)), jnp.array([0.4])
  condition = Condition(
    latent=jax.random.normal(k[1], (1, 2, 4, 4, 16)),
    mask=jax.random.normal(k[2], (1, 2, 4, 4, 4)),
    text=jax.random.normal(k[3], (1, 3, 12)),
    image=jax.random.normal(k[4], (1, 4, 10)),
  )
  unlinked = adapters() | {'links': 0 * adapters()['links']}
  due = quick_jit(MODEL.velocity)(base(), unlinked, z, sigma, condition)
  given = jnp.concatenate([condition.mask, condition.latent], -1)
  alone = quick_jit(functools.partial(dit.velocity, TINY, precision=dit.FLOAT32, policy='none'))
  for name, m in (('rgb', RGB), ('xyz', XYZ)):
    folder = out / f'merged-{name}-{layout}' / ('transformer' if layout == 'diffusers' else '')
    merged = safetensors.numpy.load_file(folder / 'diffusion_pytorch_model.safetensors')
    tree = rules.convert(merged, tables.dit.rules(TINY, layout))
    x = jnp.concatenate([z[m], given if m == RGB else 0 * given], -1)
    got = alone(tree, x, 1000 * sigma, condition.text, condition.image)
    np.testing.assert_allclose(got, due[m], rtol=1e-4, atol=1e-4)
    assert np.abs(got - alone(base(), x, 1000 * sigma, condition.text, condition.image)).max() > 0.01


def test_merging_into_a_bfloat16_release_rounds_once(tmp_path):
  converted = convert_release(release(tmp_path / 'release', 'bfloat16'), tmp_path / 'bundle', ['base'])
  safetensors.numpy.save_file(traverse_util.flatten_dict(adapters(), sep='/'), converted / 'adapters.safetensors')
  sizes, record = bundles.describe(converted)
  bundles.write_description(converted, dataclasses.replace(sizes, adapters=ADAPTERS), record)
  out = flax_to_wan.export(converted, tmp_path / 'out', ['merged'], modalities=['xyz'])
  got = safetensors.numpy.load_file(out / 'merged-xyz-native/diffusion_pytorch_model.safetensors')
  assert {value.dtype.name for value in got.values()} == {'bfloat16'}
  kernel = base()['blocks']['ffn_out']['kernel'][1].astype(ml_dtypes.bfloat16).astype(np.float32)
  pair = adapters()['lora']['ffn_out']
  due = kernel + np.float32(0.5) * (pair['a'][1, XYZ] @ pair['b'][1, XYZ])
  np.testing.assert_array_equal(got['blocks.1.ffn.2.weight'], due.astype(ml_dtypes.bfloat16).T)
  patch = adapters()['patch_xyz']['bias'].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(got['patch_embedding.bias'], patch)


# ---- LoRA, control


@pytest.mark.parametrize(('names', 'file'), [
  ('native', 'adapter_model'), ('diffusers', 'pytorch_lora_weights'), ('kohya', 'one4d')
])  # fmt: skip
def test_lora_goes_out_and_comes_back_into_a_bundle(names, file, bundle, tmp_path):
  out = flax_to_wan.export(bundle, tmp_path / 'out', ['lora'], names=[names])
  other = bundles.load(bundle).replace({'adapters': jax.tree.map(lambda x: x + 1, adapters())})
  bundles.save(other, tmp_path / 'other')
  made = import_lora.import_lora(out / f'lora-rgb-{names}/{file}.safetensors', tmp_path / 'other', tmp_path / 'made')
  again = bundles.load(made)
  assert again.config == bundles.load(bundle).config
  assert not (made / 'base.safetensors').exists()  # it is referred to
  np.testing.assert_array_equal(again.params['base']['head']['out']['kernel'], base()['head']['out']['kernel'])
  assert again.record['rgb_lora']['modules'] == 24 and again.record['made'] == 'here'
  for path, pair in adapters()['lora'].items():
    for half, value in pair.items():
      got = again.params['adapters']['lora'][path][half]
      np.testing.assert_array_equal(got[:, RGB], value[:, RGB])
      np.testing.assert_array_equal(got[:, XYZ], value[:, XYZ] + 1)
  np.testing.assert_array_equal(again.params['adapters']['links'], adapters()['links'] + 1)


def test_a_converted_base_without_adapters_takes_a_lora(bundle, tmp_path):
  """The new bundle refers to the base; nothing of it is copied."""
  file = flax_to_wan.export(bundle, tmp_path / 'out', ['lora'], names=['kohya']) / 'lora-rgb-kohya'
  converted = convert_release(release(tmp_path / 'release', 'float32'), tmp_path / 'wan', ['base'], dtype='float32')
  made = import_lora.import_lora(file, converted, tmp_path / 'made', scale=0.25)
  assert sorted(path.name for path in made.iterdir()) == ['adapters.safetensors', 'bundle.json']
  again = bundles.load(made)
  np.testing.assert_array_equal(
    again.params['base']['blocks']['self_q']['kernel'], base()['blocks']['self_q']['kernel']
  )
  fresh, cfg = again.params['adapters'], again.config.adapters
  np.testing.assert_array_equal(fresh['patch_xyz']['kernel'], base()['embed']['patch']['kernel'])
  assert not np.any(fresh['links'])
  pair, due = fresh['lora']['ffn_in'], adapters()['lora']['ffn_in']
  change = cfg.alpha / cfg.rank * np.einsum('lir,lro->lio', pair['a'][:, RGB], pair['b'][:, RGB])
  expected = 0.25 * np.einsum('lir,lro->lio', due['a'][:, RGB], due['b'][:, RGB])
  np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-6)
  assert not np.any(pair['b'][:, XYZ])


def test_control_links_and_patch_embedding(bundle, tmp_path):
  file = flax_to_wan.export(bundle, tmp_path / 'out', ['control']) / 'control/one4d_control.safetensors'
  again = control.read(file)
  assert again.link_layers == (1,)
  np.testing.assert_array_equal(again.links, adapters()['links'])
  for leaf in ('kernel', 'bias'):
    np.testing.assert_array_equal(again.patch_xyz[leaf], adapters()['patch_xyz'][leaf])
  plain = safetensors.numpy.load_file(file)
  np.testing.assert_array_equal(plain['links.1.xyz_to_rgb.weight'], adapters()['links'][0, RGB].T)
  np.testing.assert_array_equal(plain['links.1.rgb_to_xyz.weight'], adapters()['links'][0, XYZ].T)
  assert plain['patch_embedding_xyz.weight'].shape == (24, 36, 1, 2, 2)


def test_damaged_control_files_are_named(bundle, tmp_path):
  file = flax_to_wan.export(bundle, tmp_path / 'out', ['control']) / 'control/one4d_control.safetensors'
  plain, header = safetensors.numpy.load_file(file), control.metadata((1,))
  write = lambda tensors, header: safetensors.numpy.save_file(tensors, file, metadata=header)
  write(plain, header | {'one4d_control': '2'})
  with pytest.raises(CheckpointError, match='version 2, this reads 1'):
    control.read(file)
  write({name: value for name, value in plain.items() if 'rgb_to' not in name}, header)
  with pytest.raises(CheckpointError, match=r"\['links.1.rgb_to_xyz.weight'\] are missing"):
    control.read(file)
  write(plain | {'patch_embedding_xyz.bias': np.zeros(3)}, header)
  with pytest.raises(CheckpointError, match=r"'patch_embedding_xyz.bias': \(3,\).* width of 24"):
    control.read(file)
  file.write_bytes(b'')
  with pytest.raises(CheckpointError, match='cannot be read'):
    control.read(file)


# ---- commands


def run(module, *argv):
  return cli.run(module.main, module.parser(), argv)


def test_without_arguments_it_says_what_it_writes(capsys):
  assert run(flax_to_wan) == 0
  text = capsys.readouterr().out
  for product in (*flax_to_wan.WHAT, 'adapter_config.json', 'one4d_control.safetensors'):
    assert product in text
  assert run(import_lora) == 0
  assert 'replaces the RGB branch' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ('--what lora,foo', '--what foo: choose from merged, lora'),
    ('--what lora --modality depth', '--modality depth: choose from rgb, xyz'),
    ('--what lora,vae --names kohya', 'kohya names are for lora alone; choose native or diffusers for vae'),
    ('--what vae,umt5', 'has no text, vae, which vae, umt5 need'),
    ('--what lora --src absent', "no weights at 'absent'"),
  ],
)
def test_mistakes_are_one_line(options, message, bundle, tmp_path, capsys):
  dst = tmp_path / 'out'
  assert run(flax_to_wan, '--src', str(bundle), '--dst', str(dst), *options.split()) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error
  assert not dst.exists()


def test_a_damaged_bundle_is_one_line(tmp_path, capsys):
  (tmp_path / 'bundle.json').write_text('{"record": {}}')
  assert run(flax_to_wan, '--src', str(tmp_path), '--dst', str(tmp_path / 'out'), '--what', 'lora') == 2
  assert "cannot be read ('sizes')" in capsys.readouterr().err


def test_a_bundle_is_not_replaced_by_one_that_refers_to_it(bundle, tmp_path):
  file = flax_to_wan.export(bundle, tmp_path / 'out', ['lora'], modalities=['rgb'], names=['kohya']) / 'lora-rgb-kohya'
  style = import_lora.import_lora(file, bundle, tmp_path / 'style')
  with pytest.raises(CheckpointError, match=r'bundle holds base of .*style, and the new bundle refers to them there'):
    import_lora.import_lora(file, style, bundle, overwrite=True)
  assert 'base' in bundles.load(style).params


def test_the_destination_is_whole_or_untouched(bundle, tmp_path, monkeypatch):
  dst = tmp_path / 'out'
  flax_to_wan.export(bundle, dst, ['lora'], modalities=['rgb'])
  with pytest.raises(CheckpointError, match='--overwrite replaces an earlier export'):
    flax_to_wan.export(bundle, dst, ['lora'])
  (tmp_path / 'mine').mkdir()
  with pytest.raises(CheckpointError, match='it is no earlier export'):
    flax_to_wan.export(bundle, tmp_path / 'mine', ['lora'], overwrite=True)
  with pytest.raises(CheckpointError, match='the one to start from'):
    import_lora.import_lora(dst / 'lora-rgb-native', bundle, bundle, overwrite=True)

  with monkeypatch.context() as patch:
    patch.setattr(lora, 'description', lambda *_: {'not': object()})  # after the tensors are written
    with pytest.raises(TypeError):
      flax_to_wan.export(bundle, dst, ['lora'], overwrite=True)
  assert sorted(path.name for path in dst.iterdir()) == ['export.json', 'lora-rgb-native']
  assert not dst.with_name('out.partial').exists()
  flax_to_wan.export(bundle, dst, ['lora'], modalities=['xyz'], overwrite=True)
  assert sorted(path.name for path in dst.iterdir()) == ['export.json', 'lora-xyz-native']
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=10))
  with pytest.raises(OSError, match=r'0\.0 GB are free'):
    flax_to_wan.export(bundle, tmp_path / 'full', ['lora'])


def of_kind(kind, folder):
  """A bundle of that kind, for its description."""
  changed = dataclasses.replace(ADAPTERS, kind=kind)
  sizes = dataclasses.replace(bundles.WAN, dit=TINY, adapters=changed, dtype='float32')
  found = bundles.Bundle({'base': base()}, sizes, {})
  fresh = nn.unbox(jax.eval_shape(found.model.init_adapters, jax.random.key(0), base()))
  bundles.save(found.replace({'adapters': jax.tree.map(lambda leaf: np.zeros(leaf.shape), fresh)}), folder)
  return folder


@pytest.mark.parametrize('kind', ['channel_concat', 'shared_lora', 'full'])
def test_models_without_a_lora_for_each_branch_are_refused(kind, bundle, tmp_path):
  folder = of_kind(kind, tmp_path / 'other')
  for what in ('merged', 'lora', 'control'):
    with pytest.raises(ConfigError, match=f'other is a {kind} model, and {what} holds the adapters of dlc, no_links'):
      flax_to_wan.export(folder, tmp_path / 'out', ['dit', what])
  own = flax_to_wan.export(bundle, tmp_path / 'lora', ['lora'], modalities=['rgb'])
  with pytest.raises(ConfigError, match=f'other is a {kind} model, and lora holds'):
    import_lora.import_lora(own / 'lora-rgb-native', folder, tmp_path / 'new')
  assert not (tmp_path / 'out').exists() and not (tmp_path / 'new').exists()


def test_what_exports_hold_of_models_with_fewer_links(tmp_path):
  folder = of_kind('no_links', tmp_path / 'none')
  out = flax_to_wan.export(folder, tmp_path / 'out', ['merged', 'lora', 'control'])
  assert control.read(out / 'control/one4d_control.safetensors').link_layers == ()
  folder = of_kind('rgb_to_xyz', tmp_path / 'one')
  flax_to_wan.export(folder, tmp_path / 'one_way', ['merged', 'lora'])
  with pytest.raises(ConfigError, match='one is a rgb_to_xyz model, and control holds the adapters of dlc, no_links'):
    flax_to_wan.export(folder, tmp_path / 'out', ['control'], overwrite=True)


# ---- other implementations


@pytest.mark.parity
def test_diffusers_and_transformers_load_every_part(trained, tmp_path):
  """Nothing missing, nothing left over, sizes from our config.json."""
  torch = pytest.importorskip('torch')
  diffusers, transformers = pytest.importorskip('diffusers'), pytest.importorskip('transformers')
  out = flax_to_wan.export(trained, tmp_path / 'out', list(command.PARTS), names=['diffusers']) / 'diffusers'
  for cls, folder, file in (
    (diffusers.WanTransformer3DModel, 'transformer', 'diffusion_pytorch_model'),
    (diffusers.AutoencoderKLWan, 'vae', 'diffusion_pytorch_model'),
    (transformers.UMT5EncoderModel, 'text_encoder', 'model'),
    (transformers.CLIPVisionModel, 'image_encoder', 'model'),
  ):
    network, info = cls.from_pretrained(out / folder, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    for name, value in safetensors.numpy.load_file(out / folder / f'{file}.safetensors').items():
      got = network.state_dict()[name.removeprefix('vision_model.')]
      np.testing.assert_array_equal(got.float().numpy(), value.astype(np.float32), err_msg=name)
  pixels = torch.zeros(1, 3, network.config.image_size, network.config.image_size)
  with torch.no_grad():
    hidden = network(pixels.to(network.dtype), output_hidden_states=True).hidden_states
  np.testing.assert_array_equal(hidden[-1], hidden[-2])  # the block that Wan never runs changes nothing


@pytest.mark.parity
def test_diffusers_loads_shards(bundle, tmp_path):
  pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  product = flax_to_wan.plan(bundle, ['merged'], ['xyz'], ['diffusers'])[0]
  (tmp_path / 'transformer').mkdir()
  stream.write_shards(tmp_path / 'transformer', 'diffusion_pytorch_model', product.tensors, limit=20_000)
  (tmp_path / 'transformer/config.json').write_text(json.dumps(product.beside['config.json']))
  network, info = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / 'transformer', output_loading_info=True)
  assert not any(info.values()) and len(list((tmp_path / 'transformer').glob('*-of-*'))) > 3
  for name, tensor in product.tensors.items():
    np.testing.assert_array_equal(network.state_dict()[name].numpy(), tensor.read(), err_msg=name)
