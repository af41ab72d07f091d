"""A video file as a source of frames, decoded by FFmpeg through PyAV.

Frames are known by their presentation time stamps. Those come from the packets, which costs no decoding; where
the container has none, or promises frames that turn out not to decode, every frame is decoded once to list them.
"""

import contextlib
import itertools
import pathlib
import threading
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from PIL import Image

from one4d_jax.data import images
from one4d_jax.data.frames import MissingFrames, Shrink, Source
from one4d_jax.data.kept import kept
from one4d_jax.errors import DataError

_NOT_VIDEO = ('tty', 'hls', 'dash', 'concat', 'sdp', 'ffmetadata')  # text that FFmpeg would draw or follow
_SEEK_AFTER = 300  # frames to skip before a jump to the previous key frame pays


class Video(Source):
  """The first stream of a file that is moving pictures and not a cover."""

  kind = 'video'

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    with self._stream() as (container, stream):
      self._time_base = float(stream.time_base or 1)
      rate = stream.average_rate or stream.guessed_rate
      self.rate = float(rate) if rate else None
      first = next(_decoded(container, stream), None)
      if first is None:
        raise self._nothing()
      image = images.check_size(upright(first[1]), path)
      aspect = float(stream.sample_aspect_ratio or 1)
      sideways = image.size != (first[1].width, first[1].height)
      self.size, self.pixel_aspect = image.size, 1 / aspect if sideways else aspect
    self._stamped = True
    self._list(self._packet_keys())

  def frames(self, chosen: Sequence[int], shrink: Shrink) -> list[np.ndarray]:
    with contextlib.closing(Cursor(self, threads='AUTO')) as cursor:
      return [shrink(cursor.decode(i)) for i in chosen]

  def recount(self) -> None:
    promised = len(self._keys)
    self._list(self._decoded_keys())
    self.notes.append(f'{promised} frames promised, {len(self._keys)} decoded: the file may be damaged')

  def _list(self, keys: list[int]) -> None:
    self._keys = keys
    self.times = (np.asarray(keys, np.float64) - keys[0]) * self._time_base
    if len(keys) > 1:
      self.rate = float((len(keys) - 1) / self.times[-1])

  def _packet_keys(self) -> list[int]:
    with self._stream() as (container, stream):
      keys = {p.pts for p in _packets(container, stream) if p.size and not p.is_discard}
    return sorted(keys) if keys and None not in keys else self._decoded_keys()

  def _decoded_keys(self) -> list[int]:
    with self._stream() as (container, stream):
      stamps = [(key, frame.pts is None) for key, frame in _decoded(container, stream)]
    if not stamps:
      raise self._nothing()
    if any(counted for _, counted in stamps):
      self._stamped, self._time_base = False, 1 / (self.rate or 25.0)
    return sorted({key for key, _ in stamps})

  @contextlib.contextmanager
  def _stream(self, threads: str = 'AUTO'):
    with images.reading(self.path), self.path.open('rb') as file:
      try:
        container = av.open(file)
      except (av.error.FFmpegError, ValueError) as error:
        raise DataError(f'{self.path} is neither an image nor a video: FFmpeg cannot read it') from error
      with container:
        if set(container.format.name.split(',')) & set(_NOT_VIDEO):
          raise DataError(f'{self.path} is text, not an image or a video')
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
          raise DataError(f'{self.path} has no video in it; give an image, a video or a folder of images')
        if streams[0].codec_context is None:
          raise DataError(f'{self.path} uses a codec that this FFmpeg cannot decode; convert it to H.264')
        streams[0].thread_type = threads
        yield container, streams[0]

  def _nothing(self) -> DataError:
    return DataError(f'{self.path} has no frame that can be decoded: it is empty or damaged')


class Cursor:
  """A video whose decoder stays open between frames: cheap for increasing ones, exact in any order.

  It decodes on one thread unless told otherwise, as the workers that read data have a core each.
  """

  def __init__(self, video: Video, *, threads: str = 'NONE'):
    self.video = video
    self._threads = threads
    self._reach = _SEEK_AFTER if video._stamped else len(video._keys)  # frames ahead that are decoded without a jump
    self._lock = threading.Lock()
    self._stack = contextlib.ExitStack()  # closes the file with the cursor
    self._open()

  def close(self) -> None:
    self._stack.close()

  def frame(self, i: int) -> Image.Image:
    """Frame ``i`` in the order shown, upright and RGB. Raises DataError where it is not there or does not decode."""
    count = len(self.video._keys)
    if not 0 <= i < count:
      raise DataError(f'{self.video.path} has {count} frames; there is no frame {i}, counted from 0')
    try:
      return self.decode(i)
    except MissingFrames as error:
      raise DataError(f'{self.video.path}: frame {i} does not decode; the file is damaged') from error

  def decode(self, i: int) -> Image.Image:
    """Frame ``i``, one of those that the container promises. Raises MissingFrames where it does not decode."""
    with self._lock, images.reading(self.video.path):
      if not self._at < i <= self._at + self._reach:
        self._jump(self.video._keys[i])
      image = self._take(i)
      if image is None:
        self._open()
        image = self._take(i)
        if image is None:
          raise MissingFrames
        self._reach = len(self.video._keys)  # the jump ended behind it: those of this file do not pay
    return image

  def _open(self) -> None:
    self._stack.close()
    self._container, self._file_stream = self._stack.enter_context(self.video._stream(self._threads))
    self._decoded, self._at = _decoded(self._container, self._file_stream), -1

  def _jump(self, key: int) -> None:
    """To a key frame shown before ``key``. What follows it in the file but is shown before it may lean on others."""
    if not self.video._stamped:
      self._open()  # frames are counted from the start
      return
    with contextlib.suppress(av.error.FFmpegError):
      self._container.seek(key, stream=self._file_stream)
    followed = _decoded(self._container, self._file_stream)
    self._decoded = itertools.dropwhile(lambda shown: shown[1].pts is None or not shown[1].key_frame, followed)

  def _take(self, i: int) -> Image.Image | None:
    wanted = self.video._keys[i]
    key, frame = next((shown for shown in self._decoded if shown[0] >= wanted), (None, None))
    self._at = i if key == wanted else len(self.video._keys)  # lost: the next call jumps
    return upright(frame) if key == wanted else None


cursor = kept(lambda path: Cursor(Video(path)))


def _packets(container, stream) -> Iterator[av.Packet]:
  """Packets up to the end or to where the file is damaged."""
  with contextlib.suppress(av.error.FFmpegError):
    yield from container.demux(stream)


def _decoded(container, stream) -> Iterator[tuple[int, av.VideoFrame]]:
  """``(time stamp or else ordinal, frame)`` in display order; damaged packets are passed over."""
  count = 0
  for packet in _packets(container, stream):
    try:
      decoded = packet.decode()
    except av.error.FFmpegError:
      continue
    for frame in decoded:
      yield (count if frame.pts is None else frame.pts), frame
      count += 1


def upright(frame: av.VideoFrame) -> Image.Image:
  """A decoded frame as RGB with its display matrix applied."""
  image = frame.to_image()
  matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
  turn = None if matrix is None else _turn(np.frombuffer(bytes(matrix), '<i4'))
  return image if turn is None else image.transpose(turn)


def _turn(matrix: np.ndarray) -> Image.Transpose | None:
  """The nearest of the eight orientations of an FFmpeg display matrix: x' = a x + c y, y' = b x + d y."""
  a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
  t = Image.Transpose
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return [[None, t.FLIP_TOP_BOTTOM], [t.FLIP_LEFT_RIGHT, t.ROTATE_180]][a < 0][d < 0]
  return [[t.TRANSPOSE, t.ROTATE_270], [t.ROTATE_90, t.TRANSVERSE]][b < 0][c < 0]
