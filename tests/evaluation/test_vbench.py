"""The export for VBench, against a stand-in that looks for files and writes results as VBench does."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from one4d_jax.data.frames import open_source
from one4d_jax.errors import DataError
from one4d_jax.evaluation import vbench
from one4d_jax.viewer.pictures import save_png

# What VBench's own code does with these files: standard mode finds videos by prompt and index, custom mode by name.
STAND_IN = """
import json, os, pathlib

class VBenchI2V:
  calls = []

  def __init__(self, device, full_info_dir, output_path):
    self.device, self.info, self.out = device, full_info_dir, output_path

  def evaluate(self, videos_path, name, dimension_list=None, resolution='1-1'):
    print('as noisy as the original')
    names, results = os.listdir(videos_path), {}
    for dimension in dimension_list:
      videos = []
      for entry in json.load(open(self.info)):
        if dimension in entry['dimension']:
          image = os.path.join(f'vbench2_beta_i2v/data/crop/{resolution}', entry['image_name'])
          assert os.path.isfile(image), image
          found = [f"{entry['prompt_en']}-{i}.mp4" for i in range(5)]
          videos += [os.path.join(videos_path, v) for v in found if v in names]
      score = {'dynamic_degree': 0.5, 'i2v_subject': 0.98, 'i2v_background': 0.96}.get(dimension, 0.625)
      results[dimension] = [score, [{'video_path': v, 'video_results': score} for v in videos]]
    VBenchI2V.calls.append((self.device, name, dimension_list, resolution))
    with open(os.path.join(self.out, name + '_eval_results.json'), 'w') as f:
      json.dump(results, f, indent=4)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
  """VBench's two packages on the path; returns the calls."""
  folder = tmp_path / 'site'
  for name, code in (('vbench', ''), ('vbench2_beta_i2v', STAND_IN)):
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(code)
  monkeypatch.syspath_prepend(folder)
  yield lambda: sys.modules['vbench2_beta_i2v'].VBenchI2V.calls
  for name in ('vbench', 'vbench2_beta_i2v'):
    sys.modules.pop(name, None)


def image(value, height=32, width=48):
  return np.full((height, width, 3), value, np.uint8)


def make(asked):
  def of(path: pathlib.Path, prompt: str, index: int):
    asked.append((path.name, prompt, index))
    return np.stack([np.asarray(Image.open(path).convert('RGB').resize((48, 32)))] * 5)

  return of


def test_files_are_named_as_vbench_reads_them(tmp_path):
  long, asked = 'very ' * 60 + 'long', []
  prompts = ['A red ball, rolling.', 'a/b: what?', long, 'A red ball, rolling.', '']
  cases = vbench.own_cases(((p, image(40 * i)) for i, p in enumerate(prompts)), tmp_path)
  assert [case.prompt for case in cases] == prompts and len({case.name for case in cases}) == 5
  videos = vbench.export(cases, make(asked), tmp_path, fps=8, samples=2)
  assert sorted(p.name for p in videos.iterdir()) == sorted(f'{c.name}-{i}.mp4' for c in cases for i in range(2))
  assert (videos / 'A red ball, rolling.-1.mp4').is_file() and (videos / 'A red ball, rolling. (2)-0.mp4').is_file()
  images = {path.stem for path in (tmp_path / 'images').iterdir()}
  for path in videos.iterdir():  # VBench's custom mode: the name without index is that of the image
    assert re.sub(r'-\d+$', '', path.stem) in images and len(path.name.encode()) < 255
  listed = json.loads((tmp_path / 'prompts.json').read_text())
  assert listed[f'{cases[2].name}-0.mp4'] == long and len(listed) == 10
  assert len(open_source(videos / 'A red ball, rolling.-0.mp4').times) == 5

  vbench.export(cases, make(asked), tmp_path, fps=8, samples=3)  # makes what is missing, nothing twice
  assert len(asked) == 15 and [a[2] for a in asked[10:]] == [2] * 5
  assert not list(tmp_path.rglob('*partial*'))


def test_the_suite_is_read_with_its_dimensions_and_crops(tmp_path):
  suite, crop = tmp_path / 'suite', tmp_path / 'suite' / 'data' / 'crop' / '16-9'
  entries = [
    {'prompt_en': 'a cat.', 'dimension': ['i2v_subject', 'dynamic_degree', 'aesthetic_quality'], 'image_name': 'x.png'},
    {'prompt_en': 'hills', 'dimension': ['i2v_background', 'aesthetic_quality'], 'image_name': 'hills.png'},
    {'prompt_en': 'hills, camera pans left', 'dimension': ['camera_motion'], 'image_name': 'hills.png'},
  ]
  with pytest.raises(DataError, match=r'vbench2_i2v_full_info\.json is missing'):
    vbench.suite_cases(suite, tmp_path, height=352, width=624)
  crop.mkdir(parents=True)
  (suite / vbench.INFO).write_text(json.dumps(entries))
  save_png(image(10), crop / 'x.png')
  with pytest.raises(DataError, match='lacks 1 of 2 images'):
    vbench.suite_cases(suite, tmp_path, height=352, width=624)
  save_png(image(20), crop / 'hills.png')
  cases = vbench.suite_cases(suite, tmp_path / 'out', height=352, width=624)
  assert [(c.name, c.image.name) for c in cases] == [('a cat.', 'a cat..png'), ('hills', 'hills.png')]
  assert cases[0].dimensions == ('dynamic_degree', 'i2v_subject', 'aesthetic_quality')
  with pytest.raises(DataError, match='crop/1-1 is missing'):
    vbench.suite_cases(suite, tmp_path, height=64, width=64)
  (suite / vbench.INFO).write_text('[3]')
  with pytest.raises(DataError, match=r'not VBench.s list of prompts'):
    vbench.suite_cases(suite, tmp_path, height=352, width=624)


def test_vbench_is_called_and_its_results_read(tmp_path, installed, capsys):
  assert vbench.installed()
  cases = vbench.own_cases([('a ball', image(9)), ('a cube', image(99))], tmp_path)
  vbench.export(cases, make([]), tmp_path, fps=8, samples=2)
  scores = vbench.run(cases, tmp_path, height=32, width=48)
  assert installed() == [('cpu', 'one4d', list(vbench.DIMENSIONS), '8-5')]
  assert scores == pytest.approx(
    {'dynamic_degree': 0.5, 'i2v_subject': 0.98, 'i2v_background': 0.96, 'aesthetic_quality': 0.625}
    | {'i2v_consistency': 0.97, 'videos': 4}
  )
  assert capsys.readouterr().out == ''


def test_failures_of_vbench_keep_the_videos(tmp_path, installed):
  cases = vbench.own_cases([('a ball', image(9))], tmp_path)
  vbench.export(cases, make([]), tmp_path, fps=8, samples=1)
  cases[0].image.unlink()
  with pytest.raises(DataError, match=r'VBench failed: AssertionError.*are whole, run the command again'):
    vbench.run(cases, tmp_path, height=32, width=48)


def test_without_vbench_it_says_how_to(tmp_path):
  assert not vbench.installed()
  text = vbench.how_to(tmp_path, height=352, width=624)
  assert 'pip install vbench' in text and '--ratio 16-9' in text and '--mode=custom_input' in text
  assert all(name in text for name in vbench.DIMENSIONS)


@pytest.mark.parametrize('content', [None, '{"dynamic_degree": 3}', '[]', 'no'])
def test_other_results_are_refused(content, tmp_path):
  if content is not None:
    (tmp_path / 'r.json').write_text(content)
  with pytest.raises(DataError, match='does not hold results of VBench'):
    vbench.read_scores(tmp_path / 'r.json')


def test_what_vbench_did_not_score_is_none(tmp_path):
  (tmp_path / 'r.json').write_text(json.dumps({'i2v_subject': [0.9, [{}, {}]]}))
  scores = vbench.read_scores(tmp_path / 'r.json')
  assert scores['i2v_consistency'] == 0.9 and scores['dynamic_degree'] is None and scores['videos'] == 2
