"""Tables and pictures of ablations, without what is measured."""

import pathlib

import pytest
from PIL import Image

from benchmarks import ablations, curves, embedded
from one4d_jax.errors import ConfigError


def row(value: float | None) -> dict:
  return dict.fromkeys(embedded.FIGURES, value)


def test_a_cell_is_the_mean_and_the_spread_over_seeds_that_have_the_figure():
  text = ablations.table({'a': [row(0.1), row(0.3), row(None)], 'b': [row(None)]}, 'model')
  a, b = text.splitlines()[-2:]
  assert '0.2000 ± 0.1414' in a and '20.0 ± 14.1' in a
  assert set(b.replace('|', '').split()) == {'b', '-'}


def test_figures_that_few_clips_would_decide_are_medians():
  found = ablations.means([row(1.0), row(2.0), row(9.0)])
  assert found['psnr'] == pytest.approx(4.0) and found['focal_error'] == 2.0


def test_every_row_is_in_the_picture(tmp_path):
  ablations.draw(
    {'kinds': {'a': [row(0.1), row(0.3)], 'b': [row(None)]}, 'rank': {'4': [row(0.2)]}}, tmp_path / 'a.png'
  )
  assert Image.open(tmp_path / 'a.png').size[0] > 800


def test_steps_are_equal_or_take_equal_operations():
  of = lambda name, model: ablations.MODELS[name][model].steps(300)
  assert of('kinds', 'channel_concat') == of('kinds', 'spatial_concat') == of('kinds', 'dlc') == 300
  assert of('kinds', 'channel_concat, equal operations') > 400
  assert of('kinds', 'spatial_concat, equal operations') < 260
  assert of('steps', 'x 1/3') == 100


def test_an_unknown_group_names_those_that_there_are(tmp_path):
  args = ablations.parser().parse_args(['models', '--groups', 'kinds,ranks', '--work', str(tmp_path / 'work')])
  with pytest.raises(ConfigError, match='no ranks; there are kinds, links, rank, steps'):
    ablations.models(args)
  assert not pathlib.Path(args.work).exists()


def test_a_curve_ends_with_the_run_and_averages_what_lies_between_two_dots():
  rows = [{'step': step, 'loss': 1 / step} for step in range(10, 1001, 10)]
  found = curves.curve(rows, 'loss', 4)
  assert found['samples'][-1] == 4000 and found['value'] == sorted(found['value'], reverse=True)
  assert len(found['samples']) == len(found['value']) < len(rows)
