"""Where frames come from: an image, an animation, a folder of images or a video file.

``open_source(path)`` looks at the content, not at the extension, decodes one frame to be sure that it can, and
returns a ``Source`` that knows when every frame is shown. ``source.frames(chosen, shrink)`` then decodes in one
pass and hands each chosen frame, upright and RGB, to ``shrink``: a long film never sits in memory.
"""

import abc
import pathlib
import re
import stat
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from one4d_jax.data import images
from one4d_jax.errors import DataError

_ANIMATED = ('GIF', 'WEBP', 'PNG', 'AVIF')

Shrink = Callable[[Image.Image], np.ndarray]


class MissingFrames(Exception):
  """The container promised frames that do not decode; ``Source.recount`` finds the real ones."""


class Source(abc.ABC):
  """Frames of one input in the order in which they are shown.

  Attributes:
    kind: 'image', 'animation', 'folder' or 'video'.
    times: float64 [n] seconds at which each frame is shown, increasing from 0.
    rate: mean frames per second, or None where the input has no clock (an image, a folder).
    size: (width, height) of the first frame after rotation.
    pixel_aspect: width / height of one pixel.
    notes: what a user should know about how it was read.
  """

  kind: str
  rate: float | None = None

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.notes: list[str] = []
    self.times = np.zeros(1)
    self.size = (0, 0)
    self.pixel_aspect = 1.0

  @abc.abstractmethod
  def frames(self, chosen: Sequence[int], shrink: Shrink) -> list[np.ndarray]:
    """``shrink`` of the chosen frames (increasing indices). Raises DataError or MissingFrames."""

  def recount(self) -> None:
    """Learns by decoding everything which frames exist; only a video can promise more than it holds."""
    raise DataError(f'{self.path} changed while it was read')


def open_source(path: str | pathlib.Path) -> Source:
  """The source at ``path``; raises DataError where nothing there can be shown."""
  path = pathlib.Path(path)
  with images.reading(path):
    mode = path.stat().st_mode
  if stat.S_ISDIR(mode):
    return Folder(path)
  if not stat.S_ISREG(mode):
    raise DataError(f'{path} is neither a file nor a folder; give an image, a video or a folder of images')
  with images.reading(path), path.open('rb') as file:
    if not file.read(1):
      raise DataError(f'{path} is empty')
  image = images.try_open(path)
  if image is None:
    from one4d_jax.data.video import Video  # here, as it builds on this module

    return Video(path)
  with image, images.decoding(path):
    animated = image.format in _ANIMATED and getattr(image, 'n_frames', 1) > 1
  return Animation(path) if animated else Still(path)


class Still(Source):
  """One image."""

  kind = 'image'

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    self.size = images.load_image(path).size

  def frames(self, chosen: Sequence[int], shrink: Shrink) -> list[np.ndarray]:
    return [shrink(images.load_image(self.path)) for _ in chosen]


class Folder(Source):
  """The images of a folder in natural order (frame_2 before frame_10); hidden and other files are skipped."""

  kind = 'folder'

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    with images.reading(path):
      files = [p for p in path.iterdir() if p.suffix.lower() in images.SUFFIXES and p.name[0] != '.']
    if not files:
      raise DataError(f'{path} holds no image ({" ".join(images.SUFFIXES)}); give a folder of frames or a file')
    self.files = sorted(files, key=lambda p: natural_key(p.name))
    self.times = np.arange(len(self.files), dtype=np.float64)
    self.size = images.load_image(self.files[0]).size

  def frames(self, chosen: Sequence[int], shrink: Shrink) -> list[np.ndarray]:
    return [shrink(images.load_image(self.files[i])) for i in chosen]


class Animation(Source):
  """An animated GIF, WebP, PNG or AVIF, drawn by Pillow with each frame's own duration."""

  kind = 'animation'

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    seconds = []
    with images.decoding(path), Image.open(path) as image:
      self.size = images.check_size(images.upright_rgb(image), path).size
      for i in range(image.n_frames):
        image.seek(i)
        image.load()  # WebP tells the duration of decoded frames only, and damage shows now
        # As browsers do: a frame without a duration, or with one that no screen can show, lasts 0.1 s.
        shown = float(image.info.get('duration') or 0)
        seconds.append((shown if shown > 10 else 100.0) / 1000)
    self.times = np.cumsum([0.0, *seconds[:-1]])
    self.rate = len(seconds) / sum(seconds)

  def frames(self, chosen: Sequence[int], shrink: Shrink) -> list[np.ndarray]:
    made = []
    with images.decoding(self.path), Image.open(self.path) as image:
      for i in chosen:
        image.seek(i)
        made.append(shrink(images.upright_rgb(image)))
    return made


def natural_key(name: str) -> list:
  """Sort key that reads numbers as numbers: ``f2 < f10``."""
  return [(0, int(part), '') if part.isdecimal() else (1, 0, part.lower()) for part in re.split(r'(\d+)', name)] + [
    (2, 0, name)
  ]
