import dataclasses
import io

import numpy as np
import pytest
import zstandard
from PIL import Image

from one4d_jax.data import codec, render
from one4d_jax.errors import DataError

CLIP = render.clip(4, level='hard', split='test', frames=5, height=48, width=64)
RECORD = codec.encode(CLIP, quality=92)


def bound(record):
  """Largest relative error that the code of a record allows, and float32's own."""
  near, far = np.float64(record['depth_range'])
  return np.expm1(np.log(far / near) / 65533 / 2) + 1e-6


def psnr(a, b):
  return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def smooth(seed=0, frames=2, height=40, width=56):
  """Colours that vary slowly and on their own."""
  small = np.random.default_rng(seed).integers(0, 256, (frames, 5, 7, 3), dtype=np.uint8)
  return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in small])


def test_the_test_clip_has_everything():
  assert CLIP.valid.any() and CLIP.sky.any() and CLIP.dynamic.any() and not CLIP.dynamic.all()


def test_round_trip():
  found = codec.decode(RECORD)
  for name in ('valid', 'sky', 'dynamic', 'K', 'world_from_cam'):
    value, expected = getattr(found, name), getattr(CLIP, name)
    assert value.dtype == expected.dtype
    np.testing.assert_array_equal(value, expected)
  assert (found.caption, found.meta) == (CLIP.caption, CLIP.meta)
  assert found.depth.dtype == np.float32 and not found.depth[~found.valid].any()
  np.testing.assert_allclose(found.depth[CLIP.valid], CLIP.depth[CLIP.valid], rtol=bound(RECORD))
  assert found.rgb.dtype == np.uint8 and psnr(found.rgb, CLIP.rgb) > 33


def test_fields_are_what_they_are_said_to_be():
  assert list(RECORD) == list(codec.FIELDS)
  for name, (kind, shape) in codec.FIELDS.items():
    if kind is str:
      assert type(RECORD[name]) is str
    else:
      assert RECORD[name].dtype == kind and len(RECORD[name].shape) == len(shape), name
      assert all(want in (None, got) for want, got in zip(shape, RECORD[name].shape, strict=True)), name


@pytest.mark.parametrize('low, high', [(0.1, 200.0), (1e-3, 1e4), (3.0, 3.0001)])
def test_depth_is_within_half_a_step(low, high):
  rng = np.random.default_rng(0)
  shape = CLIP.depth.shape
  kind = rng.integers(0, 4, shape)  # 0 unknown, 1 sky
  depth = np.where(kind > 1, np.exp(rng.uniform(np.log(low), np.log(high), shape)), 0).astype(np.float32)
  clip = dataclasses.replace(CLIP, depth=depth, valid=kind > 1, sky=kind == 1)
  record = codec.encode(clip, quality=80)
  found = codec.decode(record)
  np.testing.assert_array_equal(found.valid, clip.valid)
  np.testing.assert_array_equal(found.sky, clip.sky)
  error = np.abs(found.depth[clip.valid] / depth[clip.valid] - 1)
  assert error.max() < bound(record)
  assert error.max() > 0.3 * (bound(record) - 1e-6)  # nor is the bound a loose one
  for extreme in (depth[clip.valid].min(), depth[clip.valid].max()):
    np.testing.assert_allclose(found.depth[depth == extreme], extreme, rtol=3e-7)


@pytest.mark.parametrize('valid', [False, True])
def test_clips_without_depth_or_with_one_depth(valid):
  flat = np.full_like(CLIP.depth, 2.5 if valid else 0)
  clip = dataclasses.replace(CLIP, depth=flat, valid=flat > 0, sky=np.zeros_like(CLIP.sky))
  found = codec.decode(codec.encode(clip, quality=80))
  np.testing.assert_array_equal(found.depth, flat)
  np.testing.assert_array_equal(found.valid, clip.valid)


def test_what_an_invalid_pixel_holds_does_not_matter():
  depth = CLIP.depth.copy()
  depth[~CLIP.valid] = np.nan
  found = codec.decode(codec.encode(dataclasses.replace(CLIP, depth=depth), quality=92))
  np.testing.assert_array_equal(found.depth, codec.decode(RECORD).depth)


@pytest.mark.parametrize('value', [np.nan, np.inf, 0.0, -1.0])
def test_valid_pixels_need_a_depth(value):
  depth = CLIP.depth.copy()
  depth[2][CLIP.valid[2]] = value
  with pytest.raises(DataError, match=r'proc4d-.*valid pixels must have'):
    codec.encode(dataclasses.replace(CLIP, depth=depth), quality=92)
  with pytest.raises(DataError, match='not be sky'):
    codec.encode(dataclasses.replace(CLIP, sky=CLIP.sky | CLIP.valid), quality=92)


def test_frames_can_be_read_alone(monkeypatch):
  every = codec.decode(RECORD).rgb
  opened = []
  monkeypatch.setattr(Image, 'open', lambda file, original=Image.open: opened.append(0) or original(file))
  np.testing.assert_array_equal(codec.frames(RECORD, [4, 0, -1]), every[[4, 0, -1]])
  assert len(opened) == 3
  assert codec.frames(RECORD, []).shape == (0, 48, 64, 3)
  with pytest.raises(IndexError):
    codec.frames(RECORD, [5])


def test_colour_keeps_its_resolution_from_quality_90_on():
  clip = dataclasses.replace(CLIP, rgb=np.random.default_rng(0).integers(0, 256, CLIP.rgb.shape, dtype=np.uint8))
  sampled = {}
  for quality in (89, 90):
    record = codec.encode(clip, quality=quality)
    with Image.open(io.BytesIO(record['jpeg'][: record['jpeg_lengths'][0]])) as image:
      sampled[quality] = image.layer[0][1:3]  # sampling factors of the brightness
  assert sampled == {89: (2, 2), 90: (1, 1)}


def test_quality_sets_size_and_error():
  clip = dataclasses.replace(CLIP, rgb=smooth(frames=5, height=48, width=64))
  low, high = (codec.encode(clip, quality=quality) for quality in (50, 95))
  assert len(low['jpeg']) < len(high['jpeg'])
  assert psnr(codec.frames(low, range(5)), clip.rgb) < psnr(codec.frames(high, range(5)), clip.rgb)
  assert psnr(codec.frames(high, range(5)), clip.rgb) > 40


def test_depth_takes_less_than_the_numbers_compressed():
  assert len(RECORD['depth']) < 0.6 * len(zstandard.compress(codec.decode(RECORD).depth.tobytes()))


def test_the_same_clip_gives_the_same_record():
  again = codec.encode(CLIP, quality=92)
  for name, value in RECORD.items():
    np.testing.assert_array_equal(value, again[name])


def test_texts_may_come_as_bytes():
  assert codec.decode(RECORD | {k: RECORD[k].encode() for k in ('id', 'caption', 'meta')}).meta == CLIP.meta


def flipped(array, at=-9):
  array = array.copy()
  array[at] ^= 255
  return array


DAMAGE = {
  'jpeg cut': ({'jpeg': RECORD['jpeg'][:-1]}, 'are not its 5 frames'),
  'a frame cut': (
    {
      'jpeg': RECORD['jpeg'][: -RECORD['jpeg_lengths'][-1] // 2],
      'jpeg_lengths': np.int32(
        [*RECORD['jpeg_lengths'][:-1], RECORD['jpeg_lengths'][-1] - (RECORD['jpeg_lengths'][-1] + 1) // 2]
      ),
    },
    'frame 4 is damaged or cut short',
  ),
  'no frame': ({'jpeg_lengths': RECORD['jpeg_lengths'] * np.int32([0, 1, 1, 1, 1])}, 'are not its 5 frames'),
  'not jpeg': ({'jpeg': flipped(RECORD['jpeg'], 0)}, 'frame 0 is damaged'),
  'lengths': ({'jpeg_lengths': RECORD['jpeg_lengths'][:-1]}, 'are not its 5 frames'),
  'depth cut': ({'depth': RECORD['depth'][:-20]}, 'depth is damaged'),
  'depth flipped': ({'depth': flipped(RECORD['depth'])}, 'depth is damaged'),
  'no depth': ({'depth': RECORD['depth'][:0]}, 'depth is damaged'),
  'depth of another size': ({'depth': RECORD['dynamic']}, 'depth unpacks to'),
  'range': ({'depth_range': np.float32([0, 5])}, r'depth from 0\.0 to 5\.0'),
  'range not a number': ({'depth_range': np.float32([np.nan, 5])}, 'depth from nan'),
  'dynamic': ({'dynamic': flipped(RECORD['dynamic'])}, 'dynamic is damaged'),
  'K': ({'K': RECORD['K'][:-1]}, 'K is of 4 frames, the clip of 5'),
  'poses': ({'world_from_cam': RECORD['world_from_cam'][1:]}, 'world_from_cam is of 4 frames'),
  'size': ({'size': np.int32([5, 48, 32])}, 'unpacks to'),
  'no size': ({'size': np.int32([5, 0, 64])}, r'is no \(frames, height, width\)'),
  'meta': ({'meta': RECORD['meta'][:-1]}, 'meta is damaged'),
}


@pytest.mark.parametrize('change, message', DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named(change, message):
  with pytest.raises(DataError, match=message) as caught:
    codec.decode(RECORD | change)
  assert CLIP.meta['id'] in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['depth', 'dynamic'])
def test_no_flipped_bit_passes(name):
  for at in range(4, len(RECORD[name]), 41):
    array = RECORD[name].copy()
    array[at] ^= 1
    with pytest.raises(DataError, match=name):
      codec.decode(RECORD | {name: array})


def test_a_frame_of_another_size_is_no_frame_of_the_clip():
  other = codec.encode(render.clip(4, frames=5, height=48, width=32), quality=92)
  with pytest.raises(DataError, match='frame 0 is JPEG'):
    codec.decode(RECORD | {k: other[k] for k in ('jpeg', 'jpeg_lengths')})


def test_decoded_arrays_may_be_changed():
  found = codec.decode(RECORD)
  for name in ('rgb', 'depth', 'valid', 'sky', 'dynamic', 'K', 'world_from_cam'):
    assert getattr(found, name).flags.writeable, name
