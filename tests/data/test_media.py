"""Every kind of input becomes a clip of the asked size; every broken one is one clear line."""

import math
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from one4d_jax.data import media
from one4d_jax.data.frames import natural_key, open_source
from one4d_jax.errors import DataError

SIZE = {'frames': 9, 'height': 48, 'width': 64, 'fps': 8.0}
CORNERS = {'red': (220, 30, 30), 'green': (30, 200, 30), 'blue': (30, 30, 220), 'grey': (120, 120, 120)}


def picture(width, height, level=0):
  """Red top left, green top right, blue bottom left, grey bottom right; ``level`` marks the frame."""
  image = np.zeros((height, width, 3), np.uint8)
  top, left = height // 2, width // 2
  image[:top, :left], image[:top, left:] = CORNERS['red'], CORNERS['green']
  image[top:, :left], image[top:, left:] = CORNERS['blue'], CORNERS['grey']
  image[height // 3 : -height // 3, width // 3 : -width // 3] = level
  return image


def corners(frame):
  """Names of the colours in the corners, clockwise from the top left."""
  h, w, _ = frame.shape
  seen = [frame[y, x] for y, x in ((h // 8, w // 8), (h // 8, -w // 8), (-h // 8, -w // 8), (-h // 8, w // 8))]
  return [min(CORNERS, key=lambda name: np.abs(np.subtract(CORNERS[name], p, dtype=float)).sum()) for p in seen]


def level(frame):
  h, w, _ = frame.shape
  return float(frame[h // 2, w // 2].mean())


def write_video(path, count=20, width=64, height=48, rate=30, codec='libx264', rotation=None, step=5, **stream_options):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height = width, height
    stream.pix_fmt = 'yuv444p' if width % 2 or height % 2 else 'yuv420p'
    if codec == 'libx264':
      stream.options = {'crf': '8', 'preset': 'veryfast', 'threads': '1'}  # the same on any number of cores
    for name, value in stream_options.items():
      setattr(stream, name, value)
    if rotation is not None:
      stream.set_display_rotation(rotation)
    container.start_encoding()
    for i in range(count):
      frame = av.VideoFrame.from_ndarray(picture(width, height, 20 + step * i), format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def write_animation(path, count=6, duration=100, **options):
  frames = [Image.fromarray(picture(60, 40, 30 * i)) for i in range(count)]
  frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **options)
  return path


UPRIGHT = ['red', 'green', 'grey', 'blue']


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp'])
def test_an_image_is_one_frame(tmp_path, suffix):
  path = tmp_path / f'a.{suffix}'
  Image.fromarray(picture(300, 200)).save(path)
  got = media.read(path, **SIZE)
  assert got.video.shape == (1, 48, 64, 3) and got.video.dtype == np.uint8 and got.kind == 'image'
  assert corners(got.video[0]) == UPRIGHT


def test_exif_rotation(tmp_path):
  image = Image.fromarray(picture(300, 200)).transpose(Image.Transpose.ROTATE_90)
  exif = Image.Exif()
  exif[0x0112] = 6  # shown after a quarter turn clockwise
  image.save(tmp_path / 'a.jpg', exif=exif)
  got = media.read(tmp_path / 'a.jpg', **SIZE)
  assert got.policy['source']['size'] == [300, 200] and corners(got.video[0]) == UPRIGHT


def test_alpha_lies_over_white_and_deep_grey_keeps_its_range(tmp_path):
  clear = np.zeros((40, 40, 4), np.uint8)
  Image.fromarray(clear).save(tmp_path / 'clear.png')
  assert media.read(tmp_path / 'clear.png', **SIZE).video.min() > 253
  ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
  Image.fromarray(ramp).save(tmp_path / 'deep.png')
  got = media.read(tmp_path / 'deep.png', **SIZE).video[0]
  np.testing.assert_allclose(got[..., 0], ramp / 257, atol=1.5)
  Image.fromarray(picture(40, 40)).convert('L').save(tmp_path / 'grey.png')
  assert np.ptp(media.read(tmp_path / 'grey.png', **SIZE).video[0], axis=-1).max() == 0


def test_long_video_of_odd_rate_and_size_is_spread_evenly(tmp_path):
  path = write_video(tmp_path / 'a.mp4', count=45, width=500, height=334, rate=Fraction(30000, 1001), step=5)
  got = media.read(path, **SIZE)
  assert len(got.video) == 9
  indices = got.policy['indices']
  assert indices[0] == 0 and indices[-1] == 44 and len(set(indices)) == 9
  assert set(np.diff(indices)) <= {5, 6}
  np.testing.assert_allclose([level(f) for f in got.video], [20 + 5 * i for i in indices], atol=4)
  assert got.fps == pytest.approx(8 / (44 * 1001 / 30000), rel=1e-3)
  assert got.policy['source']['fps'] == pytest.approx(29.97, abs=0.01)


def test_odd_size_video(tmp_path):
  got = media.read(write_video(tmp_path / 'a.mp4', count=9, width=501, height=333), **SIZE)
  assert got.policy['source']['size'] == [501, 333] and corners(got.video[0]) == UPRIGHT


@pytest.mark.parametrize(
  'count, frames', [(1, 9), (2, 9), (6, 9), (9, 9), (10, 9), (10, 1), (10, 2), (30, 30), (30, 99)]
)
def test_frames_are_all_of_them_or_as_many_as_asked(tmp_path, count, frames):
  step = 210 // count
  got = media.read(write_video(tmp_path / 'a.mp4', count=count, step=step), **SIZE | {'frames': frames})
  assert len(got.video) == len(got.policy['indices']) == min(count, frames)
  np.testing.assert_allclose([level(f) for f in got.video], [20 + step * i for i in got.policy['indices']], atol=6)


@pytest.mark.parametrize('rotation', [90, 180, 270])
def test_rotation_flag_of_a_video(tmp_path, rotation):
  got = media.read(write_video(tmp_path / 'a.mp4', count=3, width=96, height=64, rotation=rotation), **SIZE)
  assert got.policy['source']['size'] == ([96, 64] if rotation == 180 else [64, 96])
  turned = np.rot90(picture(96, 64), rotation // 90)  # both count turns counter-clockwise
  assert corners(got.video[0]) == corners(turned)


def test_pixel_aspect_of_a_video(tmp_path):
  path = tmp_path / 'a.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10, options={'aspect': '2'})
    stream.width, stream.height, stream.pix_fmt = 64, 64, 'yuv420p'
    stream.codec_context.sample_aspect_ratio = 2
    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(64, 64), format='rgb24')))
    container.mux(stream.encode(None))
  assert media.read(path, **SIZE).policy['crop'] == pytest.approx([10.67, 0, 42.67, 64], abs=0.01)


@pytest.mark.parametrize('suffix, codec', [('mov', 'mpeg4'), ('webm', 'libvpx-vp9'), ('avi', 'mpeg4')])
def test_other_containers(tmp_path, suffix, codec):
  got = media.read(write_video(tmp_path / f'a.{suffix}', count=12, codec=codec), **SIZE)
  assert len(got.video) == 9 and got.policy['source']['frames'] == 12 and corners(got.video[-1]) == UPRIGHT


@pytest.mark.parametrize('suffix', ['gif', 'webp', 'png'])
def test_animations(tmp_path, suffix):
  options = {'lossless': True} if suffix == 'webp' else {}
  got = media.read(write_animation(tmp_path / f'a.{suffix}', duration=[50, 50, 50, 50, 200, 50], **options), **SIZE)
  assert (len(got.video), got.kind) == (6, 'animation')
  assert got.fps == pytest.approx(5 / 0.4)
  np.testing.assert_allclose([level(f) for f in got.video[:6]], [0, 30, 60, 90, 120, 150], atol=6)


def test_folder_in_natural_order_with_mixed_sizes(tmp_path):
  for i in range(12):
    width, height = (64, 48) if i % 2 else (90, 50)
    Image.fromarray(picture(width, height, 10 * i)).save(tmp_path / f'frame_{i}.png')
  (tmp_path / 'notes.txt').write_text('not a frame')
  (tmp_path / '._frame_0.png').write_bytes(b'not a frame either')
  got = media.read(tmp_path, **SIZE)
  indices = got.policy['indices']
  np.testing.assert_allclose([level(f) for f in got.video], [10 * i for i in indices], atol=2)
  assert got.fps == pytest.approx(8 * 8 / 11)
  assert sorted(['f10', 'f9', 'f1b', 'f01'], key=natural_key) == ['f01', 'f1b', 'f9', 'f10']


def test_crop_is_centred_and_exact():
  assert media.crop_box((500, 333), (64, 64)) == (83.5, 0, 416.5, 333)
  assert media.crop_box((333, 500), (64, 64)) == (0, 83.5, 333, 416.5)
  left, top, right, bottom = media.crop_box((1920, 1080), (624, 352))
  assert math.isclose((right - left) / (bottom - top), 624 / 352) and right - left <= 1920


def test_frames_at_even_times_none_twice():
  uneven = np.concatenate([np.arange(50) * 0.01, 0.5 + np.arange(5)])  # a burst, then slow
  chosen = media.choose_frames(uneven, 9)
  assert chosen[0] == 0 and chosen[-1] == 54 and all(np.diff(chosen) > 0) and len(chosen) == 9
  assert media.choose_frames(np.arange(101), 5) == [0, 25, 50, 75, 100]
  assert media.choose_frames(np.arange(3), 5) == [0, 1, 2]
  assert media.choose_frames(np.arange(7), 1) == [0]


def test_seeking_finds_the_same_frames(tmp_path, monkeypatch):
  path = write_video(tmp_path / 'a.mp4', count=120, step=1, gop_size=12)
  plain = media.read(path, **SIZE)
  monkeypatch.setattr('one4d_jax.data.video._SEEK_AFTER', 10)
  np.testing.assert_array_equal(media.read(path, **SIZE).video, plain.video)


def test_cut_video_gives_the_frames_it_has(tmp_path):
  path = write_video(tmp_path / 'a.mkv', count=60, width=128, height=96, gop_size=5, step=3)
  data = path.read_bytes()
  path.write_bytes(data[: len(data) * 2 // 3])
  got = media.read(path, **SIZE)
  assert len(got.video) == 9 and 9 < got.policy['source']['frames'] < 60


def bad_inputs(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """Name -> (path, what the message must say)."""
  video = write_video(folder / 'good.mp4', count=10)
  png = folder / 'good.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)).save(png)
  for name in ('none', 'text', 'broken', 'tiny'):
    (folder / name).mkdir()
  (folder / 'text' / 'a.txt').write_text('words')
  (folder / 'broken' / '1.png').write_bytes(png.read_bytes()[:2000])
  Image.new('RGB', (20, 8)).save(folder / 'tiny' / '1.png')
  made = {
    'missing': (folder / 'nowhere.mp4', 'does not exist'),
    'empty folder': (folder / 'none', 'holds no image'),
    'folder of text': (folder / 'text', 'holds no image'),
    'folder of broken images': (folder / 'broken', 'damaged'),
    'folder of tiny images': (folder / 'tiny', '20x8'),
    'device': (pathlib.Path('/dev/null'), 'neither a file nor a folder'),
  }
  contents = {
    'empty.png': (b'', 'is empty'),
    'text.mp4': (b'hello, world\n' * 200, 'FFmpeg cannot read it'),
    'text.txt': (b'hello, world\n' * 200, 'text'),
    'cut.png': (png.read_bytes()[:2000], 'damaged'),
    'noise.jpg': (bytes(range(256)) * 20, 'damaged'),
    'codec.mp4': (video.read_bytes().replace(b'avc1', b'zzzz'), 'codec'),
    'cut.mp4': (video.read_bytes()[:600], 'cannot read it'),
  }
  for name, (data, words) in contents.items():
    (folder / name).write_bytes(data)
    made[name] = (folder / name, words)
  Image.new('RGB', (15, 400)).save(folder / 'thin.png')
  made['thin.png'] = (folder / 'thin.png', '15x400 pixels; the smallest usable side is 16')
  Image.new('RGB', (8, 8)).save(folder / 'small.gif', save_all=True, append_images=[Image.new('RGB', (8, 8), 'red')])
  made['small.gif'] = (folder / 'small.gif', '8x8')
  with av.open(str(folder / 'sound.mkv'), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format='s16', layout='mono')
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
  made['sound.mkv'] = (folder / 'sound.mkv', 'no video in it')
  write_video(folder / 'none.mp4', count=0)
  made['none.mp4'] = (folder / 'none.mp4', 'none.mp4 has no')
  return made


def test_bad_inputs_are_data_errors_of_one_line(tmp_path):
  for name, (path, words) in bad_inputs(tmp_path).items():
    with pytest.raises(DataError) as caught:
      open_source(path)
    message = str(caught.value)
    assert words in message and str(path) in message and '\n' not in message, (name, message)


def test_unreadable_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  Image.new('RGB', (20, 20)).save(path)

  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(pathlib.Path, 'open', refuse)
  with pytest.raises(DataError, match='permission denied'):
    open_source(path)


def test_describe_states_the_policy(tmp_path):
  text = '\n'.join(media.read(write_video(tmp_path / 'a.mp4', count=6), **SIZE).describe())
  for words in ('6 frame(s) of 64x48 at 30 fps', 'lanczos', 'frames: all (0, 1, 2, 3, 4, 5)'):
    assert words in text
