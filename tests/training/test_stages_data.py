"""Flow stages over every kind of data: encoded, with frames, prepared, procedural."""

import dataclasses
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from one4d_jax import cli
from one4d_jax import config as configs
from one4d_jax import encode as encoding
from one4d_jax.data import pipeline, prepared, procedural, shards
from one4d_jax.errors import DataError
from one4d_jax.model import bundle as bundles
from one4d_jax.model import umc
from one4d_jax.parallel import load
from one4d_jax.parallel import mesh as meshes
from one4d_jax.parallel.layout import MeshLayout
from one4d_jax.training import latents, sets
from one4d_jax.training.stages import SIGMAS, STAGES
from one4d_jax.wan.vae import WanVAE, latent_grid, video_size
from tests import converted, encoded

SETTINGS = {'tasks': umc.PROBABILITIES, 'text_only': 0.1, 'text_dropout': 0.3, 'image_dropout': 0.3}


@pytest.fixture(scope='module')
def bundle():
  return bundles.load()


@pytest.fixture(scope='module')
def home(tmp_path_factory, bundle):
  """A prepared set of three clips and one held out, encoded with conditions and with frames."""
  home = tmp_path_factory.mktemp('data')
  data = encoded.prepare(home)
  for name, options in {'latents': [], 'frames': ['--frames']}.items():
    arguments = ['--data', str(data), '--weights', str(bundles.locate()), '--out', str(home / name), *options]
    assert cli.run(encoding.main, encoding.parser(), arguments) == 0
  return home


def config(source, stage='one4d', **data):
  values = configs.Config()
  train = dataclasses.replace(values.train, stage=stage, crop=(5, 16), **SETTINGS)
  return dataclasses.replace(values, train=train, data=dataclasses.replace(values.data, source=source, **data))


def stage_of(bundle, source, name='one4d', **data):
  return STAGES[name](config(source, name, **data), bundle)


def batch_of(samples):
  return latents.arrays({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})


def next_batch(stage):
  return next(pipeline.batches(stage.components(), batch_size=2, seed=0, threads=0))


def loss_of(stage, params, bundle, batch):
  frozen = {part: bundle.params[part] for part in stage.frozen}
  return jax.eval_shape(stage.loss, params, frozen, latents.arrays(batch), jax.random.key(0))


@pytest.fixture(scope='module')
def complete(bundle):
  """``latents.complete`` with all encoders, jitted."""
  return jax.jit(lambda params, batch: latents.complete(batch, bundle, params))


def completed(complete, bundle, samples):
  return jax.tree.map(np.asarray, complete({part: bundle.params[part] for part in latents.PARTS}, batch_of(samples)))


def draws(records, null, count=12):
  """Samples of cached records, so many that every task and every dropout is among them."""
  draw = lambda i: latents.draw(
    records[i % len(records)], np.random.default_rng(i), null=null, text_len=160, **SETTINGS
  )
  return [draw(i) for i in range(count)]


def test_cached_and_computed_batches_are_the_same(home, bundle, complete):
  """For one draw: stored latents and features, stored features with frames, and nothing but pixels and tokens."""
  (cached,), (frames,) = (
    sets.training(config(str(home / name)).data) for name in ('latents', 'frames')
  )  # fmt: skip
  (clips,) = sets.training(config(str(home / 'rooms' / '1.0.0')).data)
  samples = draws(cached.records, cached.null)
  seen = {int(sample['observed'].sum()) for sample in samples}
  assert {0, 1, 2, 5} <= seen and not all(sample['image'].any() for sample in samples)
  expected = completed(complete, bundle, samples)

  with_frames, pixels = [], []
  for i, sample in enumerate(samples):
    record, clip = frames.records[i % 3], clips.records[i % 3]
    rgb = np.zeros_like(clip['rgb'])
    rgb[sample['observed']] = clip['rgb'][sample['observed']]
    kept = {name: sample[name] for name in ('weight', 'observed', 'text', 'image')}
    with_frames.append(kept | {'z': record['z'].astype(np.float32), 'rgb': rgb})
    rng = np.random.default_rng(i)
    drawn = latents.draw_pixels(clip, rng, tokenizer=bundle.tokenizer, **SETTINGS)
    drawn |= {'observed': sample['observed'], 'image_kept': np.bool_(sample['image'].any())}
    dropped = np.array_equal(sample['text'][: len(cached.null)], cached.null)
    pixels.append(drawn | {'text_kept': np.bool_(not dropped)})
  assert not all(sample['text_kept'] for sample in pixels)
  for other in (with_frames, pixels):
    z, condition = completed(complete, bundle, other)
    np.testing.assert_allclose(z, expected[0], rtol=2e-3, atol=2e-3)
    for name in ('latent', 'mask', 'text', 'image'):
      got, want = getattr(condition, name), getattr(expected[1], name)
      np.testing.assert_allclose(got, want, rtol=4e-3, atol=4e-3, err_msg=name)


def test_frames_hold_what_is_observed_and_nothing_else(home):
  (found,), (clips,) = (sets.training(config(str(home / name)).data) for name in ('frames', 'rooms/1.0.0'))
  for i in range(12):
    sample = latents.draw(found.records[0], np.random.default_rng(i), null=found.null, text_len=160, **SETTINGS)
    seen = sample['observed']
    np.testing.assert_array_equal(sample['rgb'][seen], clips.records[0]['rgb'][seen])
    assert not sample['rgb'][~seen].any() and 'latent' not in sample


def test_dropped_text_is_the_empty_prompt_padded_with_zeros(home):
  (found,) = sets.training(config(str(home / 'latents')).data)
  record = found.records[0]
  draw = lambda dropout: latents.draw(
    record, np.random.default_rng(0), null=found.null, text_len=160, **SETTINGS | {'text_dropout': dropout}
  )
  kept, dropped, n = draw(0.0)['text'], draw(1.0)['text'], len(record['text'])
  np.testing.assert_array_equal(kept[:n], record['text'])
  np.testing.assert_array_equal(dropped[:1], found.null)
  assert kept.shape == dropped.shape == (160, 96) and not kept[n:].any() and not dropped[1:].any()


@pytest.mark.parametrize(('source', 'parts'), [
  ('latents', set()), ('frames', {'vae'}), ('rooms/1.0.0', {'vae', 'text', 'image'}),
])  # fmt: skip
def test_a_stage_keeps_only_the_encoders_that_its_data_needs(home, bundle, source, parts):
  stage = stage_of(bundle, str(home / source))
  (component,) = stage.components()
  assert stage.frozen == {'base'} | parts and component.bucket[:3] == (5, 32, 32)
  batch = next_batch(stage)
  assert set(batch['id']) <= {record['id'] for record in component.source}, 'for messages'
  value, metrics = loss_of(stage, bundle.params['adapters'], bundle, batch)
  tasks = {f'loss_{name}/{task}' for name in ('rgb', 'xyz') for task in ('text', 'image', 'sparse', 'video')}
  assert value.shape == () and set(metrics) == {'loss_rgb', 'loss_xyz'} | tasks
  work = stage.work(batch)
  assert work['samples'] == 2 and work['tokens'] == 2 * 2 * 2 * 4 * 4 and work['flops'] > 1e6


def test_validation_takes_held_out_clips(home, bundle, capsys):
  for source in ('latents', 'rooms/1.0.0'):
    stage = stage_of(bundle, str(home / source))
    held_out = prepared.open(home / 'rooms' / '1.0.0', 'test')[0]
    clip = stage.validation_clip(3, bundle.params['vae'])
    assert clip['caption'] == held_out.caption and clip['rgb'].dtype == np.uint8
    assert np.abs(clip['rgb'].astype(float) - held_out.rgb).mean() < 25  # decoded from latents, or as they are
  assert 'no clips' not in capsys.readouterr().err


def test_validation_without_held_out_clips_says_so(tmp_path, capsys):
  data = encoded.prepare(tmp_path, test=0)
  found = sets.validation(config(str(data), validation_clips=2).data)
  assert len(found.records) == 2 and 'holds out no clips' in capsys.readouterr().err


def test_a_source_without_clips_to_train_on_is_named(home, tmp_path, monkeypatch):
  data = encoded.prepare(tmp_path, train=0)
  for source in (str(data), f'{home / "rooms" / "1.0.0"}@1,{data}@1'):
    with pytest.raises(DataError, match=rf'{data} has no clips to train on; loosen the limits'):
      sets.training(config(source).data)
  monkeypatch.setattr(prepared, 'splits', lambda folder: ('dropped',))
  with pytest.raises(DataError, match=rf'{data} has no clips to train on'):
    sets.validation(config(str(data)).data)


def test_sources_are_mixed_by_weight_and_size(home, tmp_path):
  data = encoded.prepare(tmp_path, train=4, sizes=((5, 32, 32), (5, 32, 48), (5, 32, 32), (5, 32, 32)))
  found = sets.training(config(f'{data}@3,{home / "latents"}@1').data)
  assert [(one.size, one.weight) for one in found] == [((5, 32, 32), 2.25), ((5, 32, 48), 0.75), ((5, 32, 32), 1.0)]


def test_the_vae_trains_on_clips_only(home, bundle):
  stage = stage_of(bundle, str(home / 'rooms' / '1.0.0'), 'vae')
  batch = next_batch(stage)
  assert batch['video'].shape == (2, 5, 16, 16, 3)
  for name in ('vae', 'base'):
    with pytest.raises(DataError, match='prepared set'):
      stage_of(bundle, str(home / 'latents'), name)


def test_a_converted_vae_is_what_its_training_starts_from(home, bundle, tmp_path):
  """From its folder, though it is not among the parameters, and in the dtype of training."""
  shapes = nn.unbox(jax.eval_shape(bundle.vae.init, jax.random.key(0)))
  tree = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, ml_dtypes.bfloat16), shapes)
  converted.write(tmp_path / 'vae', 'vae', dataclasses.asdict(bundle.config.vae), tree, dtype='bfloat16')
  bundles.write_description(tmp_path, bundle.config, {})
  opened = load.open_bundle(tmp_path)
  assert not opened.params
  given = stage_of(opened, str(home / 'rooms' / '1.0.0'), 'vae').given
  assert jax.tree.map(lambda leaf: leaf.shape, given) == jax.tree.map(lambda leaf: leaf.shape, shapes)
  assert all(leaf.dtype == np.float32 and (leaf == 0.5).all() for leaf in jax.tree.leaves(given))


def test_the_vae_takes_large_clips_in_pieces(home, bundle, monkeypatch):
  stage, chunks = stage_of(bundle, str(home / 'rooms' / '1.0.0'), 'vae'), []

  def encode(self, params, video, *, chunk=None):
    chunks.append(chunk)
    return jnp.zeros((len(video), *latent_grid(*video.shape[1:4]), self.cfg.latent_channels))

  def decode(self, params, z, *, chunk=None):
    chunks.append(chunk)
    return jnp.zeros((len(z), *video_size(*z.shape[1:4]), 3))

  monkeypatch.setattr(WanVAE, 'encode', encode)
  monkeypatch.setattr(WanVAE, 'decode', decode)
  video = np.broadcast_to(np.float16(0), (81, 128, 224, 3))
  jax.eval_shape(stage._round_trip, {}, np.stack([video, video]))
  stage.sets = [dataclasses.replace(stage.sets[0], records=[{'rgb': video.astype(np.uint8), 'xyz': video}])]
  stage.finished({})
  assert chunks == [1, 1, 1]


def test_a_base_trains_on_prepared_clips(home, bundle):
  stage = stage_of(bundle, str(home / 'rooms' / '1.0.0'), 'base')
  assert stage.frozen == {'vae'}
  params = {part: bundle.params[part] for part in stage.PARTS}
  assert loss_of(stage, params, bundle, next_batch(stage))[0].shape == ()


def test_an_encoded_set_of_other_weights_is_refused(home, bundle):
  other = dataclasses.replace(bundle, hashes=bundle.hashes | {'text': 'feed'})
  with pytest.raises(DataError, match=rf'text {bundle.hashes["text"]} .*feed'):
    stage_of(other, str(home / 'latents'))
  longer = dataclasses.replace(bundle.config, dit=dataclasses.replace(bundle.config.dit, text_len=200))
  with pytest.raises(DataError, match=r'text_len 160 .*200'):
    stage_of(dataclasses.replace(bundle, config=longer), str(home / 'latents'))


def test_constants_that_changed_are_refused(home, tmp_path):
  shutil.copytree(home / 'latents', tmp_path / 'copy')
  path = tmp_path / 'copy' / 'train-5x32x32' / sets.CONSTANTS
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  with pytest.raises(DataError, match='damaged'):
    sets.training(config(str(tmp_path / 'copy')).data)


def test_tokens_and_features_agree(home, bundle, complete, tmp_path):
  """The procedural cache keeps tokens and the first frame; features are what their encoders make of them."""
  clips = sets.training(config(str(home / 'rooms' / '1.0.0')).data)[0].records
  tokens = latents.build(tmp_path, clips, bundle, name='train-3', sparse_masks=2)
  features = shards.open(home / 'latents' / 'train-5x32x32')
  null = sets.training(config(str(home / 'latents')).data)[0].null
  draw = lambda records, i, **more: latents.draw(records[i % 3], np.random.default_rng(i), **SETTINGS, **more)
  a = completed(complete, bundle, [draw(tokens, i) for i in range(12)])
  b = completed(complete, bundle, [draw(features, i, null=null, text_len=160) for i in range(12)])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=4e-3, atol=4e-3), a, b)


def test_other_clips_or_masks_are_not_taken_from_the_cache(bundle, tmp_path):
  size = {'frames': 5, 'height': 32, 'width': 32}
  clips = {
    level: procedural.build(tmp_path, split='train', clips=1, levels=(level,), **size) for level in ('easy', 'medium')
  }
  build = lambda level, masks: latents.build(tmp_path, clips[level], bundle, name='train-1', sparse_masks=masks)[0]
  first = build('easy', 1)
  assert len(build('easy', 2)['z_sparse']) == 2
  assert build('medium', 1)['id'] != first['id'] == build('easy', 1)['id']
  assert len(list(tmp_path.glob('train-1-latents-*'))) == 3


def test_values_that_float16_cannot_hold_are_refused():
  with pytest.raises(DataError, match='text of x reaches 70000'):
    latents._half(np.float32([1, 7e4]), 'text of x')
  with pytest.raises(DataError):
    latents._half(np.float32([1, np.nan]), 'text of x')


def test_losses_of_tasks_add_up_and_validation_repeats(home, bundle):
  """Per-task sums make the whole, and the validation loss is one number however often and on however many devices."""
  stage = stage_of(bundle, str(home / 'latents'))
  params, frozen = bundle.params['adapters'], {part: bundle.params[part] for part in stage.frozen}
  batch = latents.arrays(next(pipeline.batches(stage.components(), batch_size=8, seed=0, threads=0)))
  _, found = jax.jit(stage.loss)(params, frozen, batch, jax.random.key(0))
  for name in ('rgb', 'xyz'):
    parts = [found[f'loss_{name}/{task}'] for task in umc.ALL_TASKS]
    assert sum(count for _, count in parts) == 8
    if name == 'rgb':  # no weights: the mean over samples is the loss
      np.testing.assert_allclose(sum(total for total, _ in parts) / 8, found['loss_rgb'][0], rtol=1e-5)
  values = []
  for text in ('fsdp=1', 'data=2'):
    layout = MeshLayout(meshes.make(text, jax.devices()[: 2 if '2' in text else 1]))
    placed = [load.part(bundle, part, layout.mesh) for part in ('adapters', 'base')]
    values.append(stage.validation_loss(placed[0], {'base': placed[1]}, layout))
  assert set(values[0]) == {f'loss_{name}@{level:g}' for name in ('rgb', 'xyz') for level in SIGMAS}
  for name, value in values[0].items():
    np.testing.assert_allclose(values[1][name], value, rtol=1e-4)
