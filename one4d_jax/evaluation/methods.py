"""Who makes the predictions: the model, what it must beat, what it cannot beat, and folders that others wrote.

Policy of the model, stated in each row: whole frames, not cropped, are resized to about as many pixels as the model was
trained on, in the sequence's aspect, sides multiples of 16. A sequence longer than the model's clip is made in windows
(``model/windows.py``), which become one scene by what they share (``postopt/windows.py``); windows are padded to 4n+1
frames by their last one, and what comes of the padding is discarded.
"""

import io
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from one4d_jax.data.clip import Clip, signed
from one4d_jax.errors import DataError
from one4d_jax.evaluation import benchmarks, predictions, report, resize
from one4d_jax.evaluation.benchmarks import EvalConfig
from one4d_jax.evaluation.protocol import Protocol
from one4d_jax.evaluation.sequence import Prediction, Truth
from one4d_jax.model import pointmap
from one4d_jax.model.umc import observed_frames
from one4d_jax.model.windows import default_overlap, generate_windows, spans
from one4d_jax.postopt.options import FitOptions
from one4d_jax.postopt.windows import blend, decode_windows

Predict = Callable[[Truth], Prediction]  # raises DataError where there is no prediction


def predictor(method: str, cfg: EvalConfig, bundle, size: dict[str, int], out: pathlib.Path) -> Predict:
  """One of ``benchmarks.METHODS`` as a function of a sequence."""
  if method == 'mean':
    code = mean_code(cfg, size, out)
    return lambda truth: from_codes([code], [range(len(code))], options=cfg.postopt)
  if method == 'truth':
    return lambda truth: from_codes([true_code(truth)], [range(truth.frames)], options=cfg.postopt)
  if method == 'vae':
    return round_trip(bundle, cfg)
  return model(bundle if method == 'model' else bundle.untrained(), cfg)


def foreign(root: pathlib.Path, protocol: Protocol) -> Predict:
  """The predictions in a folder, which has one for each sequence."""
  return lambda truth: predictions.read(predictions.find(root, truth.name, protocol.folder.format(truth.name)))


def model(bundle, cfg: EvalConfig) -> Predict:
  """The model of a bundle."""
  chosen = {'solver': cfg.solver, 'steps': cfg.steps, 'guidance': cfg.guidance}
  chosen = {name: value for name, value in chosen.items() if value}

  def predict(truth: Truth) -> Prediction:
    height, width = grid(truth.rgb.shape[1:3], cfg, bundle.config)
    observed = observed_frames(cfg.task, truth.frames, fraction=cfg.fraction)
    cut = spans(truth.frames, bundle.config.frames, default_overlap(bundle.config.frames))
    video = signed(resize.pictures(truth.rgb, height, width))
    prompt = truth.caption if cfg.prompt else ''
    made = generate_windows(bundle, video, observed, prompt, spans=cut, seed=cfg.seed, **chosen)
    notes = _policy(truth, height, width, cut, observed)
    rgb = blend([window.rgb for window in made], cut)
    return from_codes([window.xyz for window in made], cut, rgb=rgb, options=cfg.postopt, notes=notes)

  return predict


def grid(size: tuple[int, int], cfg: EvalConfig, sizes) -> tuple[int, int]:
  """(height, width) at which the model sees frames of ``size``."""
  if cfg.height:
    return cfg.height, cfg.width
  scale = np.sqrt(sizes.height * sizes.width / (size[0] * size[1]))
  return tuple(max(16, int(np.floor(side * scale / 16 + 0.5)) * 16) for side in size)


def _policy(truth: Truth, height: int, width: int, cut: list[range], observed: np.ndarray) -> tuple[str, ...]:
  H, W = truth.rgb.shape[1:3]
  windows = ', '.join(f'{span.start}-{span.stop - 1}' for span in cut)
  padding = -(len(cut[0]) - 1) % 4
  resized = '' if (height, width) == (H, W) else f' of {H}x{W}, resized by Lanczos'
  return (
    f'whole frames, {height}x{width}{resized}',
    f'{int(observed.sum())} of {truth.frames} frames observed',
    f'windows {windows}' + (f', each padded by {padding} frames that are discarded' if padding else ''),
  )


def round_trip(bundle, cfg: EvalConfig) -> Predict:
  """The VAE's round trip of a clip and its exact pointmap: no model over these latents can do better."""
  import jax

  vae, params = bundle.vae, bundle.params['vae']
  run = jax.jit(lambda video: vae.decode(params, vae.encode(params, video)))

  def predict(truth: Truth) -> Prediction:
    xyz, rgb = np.asarray(run(np.stack([true_code(truth), signed(truth.rgb)])))
    return from_codes([xyz], [range(truth.frames)], rgb=rgb, options=cfg.postopt)

  return predict


def from_codes(
  codes: list[Float[np.ndarray, 'f H W 3']],
  cut: list[range],
  *,
  rgb: Float[np.ndarray, 'F H W 3'] | None = None,
  options: FitOptions = FitOptions(),
  notes: tuple[str, ...] = (),
) -> Prediction:
  """What decoded XYZ videos say, cameras fitted; without geometry where they show too little for any."""
  try:
    found, _ = decode_windows(codes, cut, options=options)
  except DataError as error:
    shown = pointmap.valid_from_code(codes[0]) if len(codes) == 1 else None
    return Prediction(rgb=rgb, valid=shown, notes=notes, lacks=dict.fromkeys(('depth', 'trajectory'), str(error)))
  cameras = found.cameras
  return Prediction(
    depth=found.z,
    valid=found.valid,
    points=found.points,
    K=cameras.K,
    world_from_cam=cameras.world_from_cam,
    rgb=rgb,
    residual=cameras.residual,
    notes=(*notes, *cameras.warnings),
  )


def true_code(truth: Truth | Clip) -> Float[np.ndarray, 'F H W 3']:
  """The XYZ video that a perfect model would decode."""
  points = pointmap.from_depth(truth.depth, truth.K, truth.world_from_cam)
  return pointmap.encode_input(pointmap.normalise(points, truth.valid)[0], truth.valid)


def mean_code(cfg: EvalConfig, size: dict[str, int], out: pathlib.Path) -> Float[np.ndarray, 'F H W 3']:
  """``mean_pointmap`` of the training clips; kept in ``out``."""
  path = out / 'mean_pointmap.npy'
  if not path.is_file():
    clips = (benchmarks.train_clip(*name, **size) for name in benchmarks.names(cfg.train_levels, cfg.train_clips))
    content = io.BytesIO()
    np.save(content, mean_pointmap(tqdm(clips, 'mean pointmap', cfg.train_clips, unit='clip')))
    report.write(path, content.getvalue())
  return np.load(path)


def mean_pointmap(clips: Iterable[Clip]) -> Float[np.ndarray, 'F H W 3']:
  """The XYZ video that knows nothing of its input: the mean normalised pointmap of ``clips``, coded like any other.

  A pixel is invalid where more than half of the clips are.
  """
  total = seen = count = 0
  for clip in clips:
    points, _ = pointmap.normalise(pointmap.from_depth(clip.depth, clip.K, clip.world_from_cam), clip.valid)
    total = total + np.where(clip.valid[..., None], points, 0).astype(np.float64)
    seen = seen + clip.valid
    count += 1
  mean = (total / np.maximum(seen, 1)[..., None]).astype(np.float32)
  return pointmap.encode_input(mean, 2 * seen >= count)
