"""Writes videos, by default without loss."""

import pathlib
from collections.abc import Iterable

import av
import numpy as np


def write(path: pathlib.Path, frames: Iterable[np.ndarray], *, fps=30, gop: int = 12, **options: str) -> pathlib.Path:
  """`frames` are RGB [H W 3]; `options` are those of x264."""
  with av.open(str(path), 'w') as container:
    stream = None
    for frame in frames:
      if stream is None:
        stream = container.add_stream('libx264rgb', rate=fps, options={'qp': '0', 'preset': 'veryfast', **options})
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt, stream.codec_context.max_b_frames, stream.gop_size = 'rgb24', 2, gop
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')))
    container.mux(stream.encode(None))
  return path


def between(rgb: np.ndarray, step: int) -> Iterable[np.ndarray]:
  """`rgb` [N H W 3] with `step - 1` frames of noise after each."""
  rng = np.random.default_rng(0)
  for frame in rgb:
    yield frame
    for _ in range(step - 1):
      yield rng.integers(0, 256, frame.shape, dtype=np.uint8)
