"""Table 2: videos from single images, as VBench's image-to-video suite reads and scores them.

  DIR/images/NAME.png               the given image
  DIR/videos/NAME-INDEX.mp4         samples 0, 1, ... of it; NAME is the prompt, as far as a file can be called so
  DIR/prompts.json                  the whole prompt of every video
  DIR/vbench2_i2v_full_info.json    prompts, dimensions and images in VBench's own form
  DIR/results/                      what VBench writes

VBench (github.com/Vchitect/VBench) is PyTorch and not a part of this package; where it is installed, ``run`` calls it.
Its scores: ``dynamic_degree`` is the share of videos that move, ``i2v_subject`` and ``i2v_background`` how well frames
keep to the image, ``aesthetic_quality`` the LAION predictor's.
"""

import contextlib
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from one4d_jax.errors import DataError
from one4d_jax.evaluation.report import write_json
from one4d_jax.model.files import link_or_copy
from one4d_jax.viewer.formats import write_video
from one4d_jax.viewer.pictures import save_png

DIMENSIONS = ('dynamic_degree', 'i2v_subject', 'i2v_background', 'aesthetic_quality')
CONSISTENCY = ('i2v_subject', 'i2v_background')
INFO = 'vbench2_i2v_full_info.json'
SAMPLES = 5  # of each image, as VBench asks
RATIOS = {'1-1': 1.0, '8-5': 1.6, '7-4': 1.75, '16-9': 16 / 9}  # to which the suite's images are cropped
_RUN = 'one4d'  # VBench names its results after it
_LONGEST = 200  # bytes of a file's name, before index and ending

Make = Callable[[pathlib.Path, str, int], UInt8[np.ndarray, 'F H W 3']]  # image, prompt, index -> video


class Case(NamedTuple):
  """An image to continue; ``dimensions`` are those that it counts for."""

  name: str
  prompt: str
  image: pathlib.Path
  dimensions: tuple[str, ...]


def own_cases(images: Iterable[tuple[str, UInt8[np.ndarray, 'H W 3']]], out: pathlib.Path) -> list[Case]:
  """Cases of prompts and images of our own, all for every dimension; the images are written to ``out``."""
  cases: list[Case] = []
  for prompt, image in images:
    name = file_name(prompt, [case.name for case in cases])
    path = out / 'images' / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(image, path)
    cases.append(Case(name, prompt, path, DIMENSIONS))
  return cases


def suite_cases(folder: pathlib.Path, out: pathlib.Path, *, height: int, width: int) -> list[Case]:
  """The cases of VBench's suite that count for ``DIMENSIONS``; ``folder`` is its ``vbench2_beta_i2v``, images fetched.

  Of its crops those nearest to ``width / height`` are taken, and linked into ``out``.

  Raises:
    DataError: ``folder`` is not such a folder, or lacks images.
  """
  info, crops = folder / INFO, folder / 'data' / 'crop' / ratio(height, width)
  if not (info.is_file() and crops.is_dir()):
    missing = crops if info.is_file() else info
    raise DataError(f'{missing} is missing: give the folder vbench2_beta_i2v of VBench, after its download_data.sh')
  try:
    entries = [
      (entry, tuple(d for d in DIMENSIONS if d in entry['dimension'])) for entry in json.loads(info.read_text())
    ]
    chosen = [(e['prompt_en'], crops / e['image_name'], dimensions) for e, dimensions in entries if dimensions]
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f"{info} is not VBench's list of prompts ({error!r})") from error
  lacking = [image.name for _, image, _ in chosen if not image.is_file()]
  if lacking or not chosen:
    raise DataError(f'{crops} lacks {len(lacking)} of {len(chosen)} images of the suite, such as {lacking[:1]}')
  (out / 'images').mkdir(parents=True, exist_ok=True)
  cases = [Case(file_name(p), p, out / 'images' / (file_name(p) + image.suffix), d) for p, image, d in chosen]
  for case, (_, image, _) in zip(cases, chosen, strict=True):
    if not case.image.exists():
      link_or_copy(image, case.image)
  return cases


def ratio(height: int, width: int) -> str:
  """The suite's crop nearest to an image of this size."""
  return min(RATIOS, key=lambda name: abs(RATIOS[name] - width / height))


def file_name(prompt: str, taken: Sequence[str] = ()) -> str:
  """What a file of this prompt is called; different from ``taken``."""
  name = re.sub(r'[\x00-\x1f/\\:*?"<>|]+', ' ', prompt).lstrip(' .')
  name = name.encode()[:_LONGEST].decode(errors='ignore').strip() or 'no prompt'
  same = sum(other == name or re.fullmatch(re.escape(name) + r' \(\d+\)', other) is not None for other in taken)
  return f'{name} ({same + 1})' if same else name


def export(
  cases: Sequence[Case],
  make: Make,
  out: pathlib.Path,
  *,
  fps: float,
  samples: int = SAMPLES,
  progress: Callable[[list], Iterable] = iter,
) -> pathlib.Path:
  """Makes the videos that ``out`` does not have yet and writes the lists beside them; returns the folder of videos.

  Frames of fewer than 256 lines are enlarged by a whole number.
  """
  videos = out / 'videos'
  videos.mkdir(parents=True, exist_ok=True)
  for case, index in progress([(case, index) for case in cases for index in range(samples)]):
    path = videos / f'{case.name}-{index}.mp4'
    if not path.exists():
      temporary = out / 'partial.mp4'  # not among the videos: VBench reads whatever lies there
      write_video(temporary, make(case.image, case.prompt, index), fps)
      temporary.rename(path)
  names = {f'{case.name}-{index}.mp4': case.prompt for case in cases for index in range(samples)}
  write_json(out / 'prompts.json', names)
  write_json(out / INFO, _info(cases, lambda image: image.name))
  return videos


def _info(cases: Sequence[Case], place: Callable[[pathlib.Path], str]) -> list[dict]:
  """VBench's list. It finds the videos by ``prompt_en``, which is therefore the name of their files."""
  return [
    {'prompt_en': case.name, 'dimension': list(case.dimensions), 'image_name': place(case.image)} for case in cases
  ]


def installed() -> bool:
  """Whether VBench and its image-to-video part can be imported."""
  return all(importlib.util.find_spec(name) is not None for name in ('vbench', 'vbench2_beta_i2v'))


def how_to(out: pathlib.Path, *, height: int, width: int) -> str:
  """How to score an export where VBench is not installed."""
  command = ['python', 'evaluate_i2v.py', '--mode=custom_input', '--ratio', ratio(height, width)]
  for option, name in (('videos_path', 'videos'), ('custom_image_folder', 'images'), ('output_path', 'results')):
    command += [f'--{option}', str(out / name)]
  return (
    f'VBench is not installed here, nothing was scored. Either install it (pip install vbench; it brings PyTorch) and '
    f'run this command again, which goes on from {out}; or in a checkout of it, which has its own environment:\n'
    f'  {shlex.join([*command, "--dimension", *DIMENSIONS])}'
  )


def run(cases: Sequence[Case], out: pathlib.Path, *, height: int, width: int) -> dict[str, Any]:
  """Lets VBench score the videos of ``out``; its ``scores``.

  Raises:
    DataError: VBench failed, or wrote no such results.
  """
  results = out / 'results'
  results.mkdir(parents=True, exist_ok=True)
  # VBench looks for its images below the working directory, unless their names are absolute.
  info = results / f'{_RUN}_input.json'
  write_json(info, _info(cases, lambda image: str(image.resolve())))
  wanted = [d for d in DIMENSIONS if any(d in case.dimensions for case in cases)]
  try:
    with contextlib.redirect_stdout(sys.stderr):
      suite = importlib.import_module('vbench2_beta_i2v').VBenchI2V(_device(), str(info), str(results))
      suite.evaluate(
        videos_path=str((out / 'videos').resolve()), name=_RUN, dimension_list=wanted, resolution=ratio(height, width)
      )
  except Exception as error:  # another program: whatever it throws is its own, and the videos are still good
    raise DataError(f'VBench failed: {error!r}; the videos in {out} are whole, run the command again') from error
  return read_scores(results / f'{_RUN}_eval_results.json')


def _device() -> str:
  """Where PyTorch works, which importing VBench has loaded."""
  importlib.import_module('vbench')
  torch = sys.modules.get('torch')
  return 'cuda' if torch is not None and torch.cuda.is_available() else 'cpu'


def read_scores(path: pathlib.Path) -> dict[str, Any]:
  """Each of ``DIMENSIONS`` in VBench's results, ``{name: [score, [video, ...]]}``, and ``i2v_consistency``, in 0 .. 1.

  Raises:
    DataError: the file is not there, or in another form.
  """
  try:
    results = json.loads(path.read_text())
    found = {name: float(results[name][0]) if name in results else None for name in DIMENSIONS}
    videos = max(len(results[name][1]) for name in results)
  except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
    raise DataError(f'{path} does not hold results of VBench ({error!r})') from error
  kept = [found[name] for name in CONSISTENCY if found[name] is not None]
  return found | {'i2v_consistency': float(np.mean(kept)) if kept else None, 'videos': videos}
