"""Comparisons of runs whose numbers are chosen, and the page in a browser."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from one4d_jax import cli, evaluate
from one4d_jax.errors import ConfigError, DataError
from one4d_jax.evaluation import compare, plot, preview
from one4d_jax.evaluation import page as pages
from one4d_jax.evaluation.plot import Line
from one4d_jax.evaluation.sequence import Prediction, Truth
from tests.browser import block_network, colours

BAD = '<script>alert(1)</script>|$x_1$'  # a name that a page, a table and a plot must show as it is


def row(name, abs_rel, *, ate=None, psnr=None, delta1=0.5, skipped=None, frames=None):
  depth = dict.fromkeys(('delta2', 'delta3', 'rmse', 'log_rmse'), 0.5) | {'abs_rel': abs_rel, 'delta1': delta1}
  one = {'name': name, 'group': 'easy', 'skipped': skipped or {}, 'frames': frames or {}}
  one |= {} if abs_rel is None else {'depth': {'scale_shift': depth | {'pixels': 10}}}
  one |= {} if ate is None else {'trajectory': {'ate': ate, 'rpe_t': 0.1, 'rpe_r': 1.0, 'degenerate': False}}
  return one | ({} if psnr is None else {'video': {'psnr': psnr, 'ssim': 0.5}})


def write_run(folder, rows, *, weights='aaaa', train_steps=100, pictures=False, align='scale_shift', **config):
  folder.mkdir(parents=True)
  config = {'benchmark': 'procedural', 'task': 'video', 'fraction': 0.25, 'guidance': 6.0} | config
  content = {
    'config': config,
    'protocol': {'align': [align], 'depth_weight': 'pixels'},
    'weights': weights,
    'weights_name': 'tiny',
    'train_steps': train_steps,
    'rows': {'model': rows},
  }
  (folder / 'report.json').write_text(json.dumps(content))
  if pictures:
    rng = np.random.default_rng(0)
    depth, valid = rng.uniform(1, 4, (5, 32, 48)).astype(np.float32), np.ones((5, 32, 48), bool)
    rgb = np.uint8(rng.uniform(0, 255, (5, 1, 1, 3)) * np.ones((32, 48, 1)))
    for method in ('model', preview.TRUTH):
      for one in rows:
        picture = preview.strip(rgb, depth, valid, span=preview.near_far(depth, valid))
        preview.save(picture, folder, method, one['name'])
  return str(folder)


@pytest.fixture
def two(tmp_path):
  frames = lambda *values: {'abs_rel': values}
  first = [row('a', 0.1, ate=0.5, frames=frames(0.1, 0.3)), row('b', 0.3, ate=0.7, frames=frames(0.3, None, 0.5))]
  second = [row('b', 0.2, ate=0.7), row('a', 0.1, ate=0.9), row('c', 9.0, ate=9.0)]
  return [write_run(tmp_path / 'first', first, pictures=True),
          write_run(tmp_path / BAD.replace('/', ':'), second, guidance=4.0, pictures=True)]  # fmt: skip


def test_means_are_over_shared_sequences_and_differences_against_the_first(two):
  runs = compare.read(two)
  table = compare.pooled(runs)
  at = lambda line, heading: table.rows[line][table.heading.index(heading)]
  assert at(0, 'Abs Rel') == compare.Cell('0.2000')
  assert at(1, 'Abs Rel') == compare.Cell('0.1500', '-0.0500', 1)  # sequence c, which the first lacks, is not in it
  assert at(1, 'ATE') == compare.Cell('0.8000', '+0.2000', -1)
  assert at(1, 'scored').text == '2 of 2'
  assert any('1 more' in line for line in compare.notes(runs))
  (abs_rel, by_sequence), *_ = compare.by_sequence(runs)
  assert abs_rel == 'Abs Rel' and [r[0].text for r in by_sequence.rows] == ['a', 'b']
  assert [(r[2].text, r[2].delta, r[2].sense) for r in by_sequence.rows] == [
    ('0.1000', '=', 0),
    ('0.2000', '-0.1000', 1),
  ]


def test_higher_is_better_where_it_is(tmp_path):
  runs = [write_run(tmp_path / n, [row('a', 0.1, psnr=p, delta1=d)]) for n, p, d in (('x', 20, 0.5), ('y', 25, 0.4))]
  table = compare.pooled(compare.read(runs))
  cells = dict(zip(table.heading, table.rows[1], strict=True))
  assert (cells['PSNR RGB, dB'].sense, cells['δ < 1.25, %'].sense) == (1, -1)


def test_only_what_differs_is_listed(two):
  assert [[cell.text for cell in line] for line in compare.settings(compare.read(two)).rows] == [
    ['config.guidance', '6.0', '4.0']
  ]


def test_sequences_that_one_run_lacks_and_other_alignments_are_told(tmp_path):
  lacking = row('a', None, skipped={'depth': 'no camera fits'})
  runs = compare.read(
    [
      write_run(tmp_path / 'x', [row('a', 0.1), row('b', 0.1)]),
      write_run(tmp_path / 'y', [lacking, row('b', 0.2)], align='median'),
    ]
  )
  text = '\n'.join(compare.notes(runs))
  assert 'Not the same sequences lack depth (x: 0, y: 1)' in text
  assert 'Depth is not aligned alike: median, scale_shift' in text
  assert [line[2].text for line in compare.pooled(runs).rows] == ['2 of 2', '1 of 2']
  assert compare.by_sequence(runs)[0][1].rows[0][2] == compare.Cell('-')


def test_curves_over_frames_are_means_of_what_reaches_that_far(two):
  (found,) = compare.over_frames(compare.read(two))
  (line,) = found.lines  # the second run has none
  assert line.name == 'first' and list(line.x) == [0, 1, 2]
  np.testing.assert_allclose(line.y, [0.2, 0.3, 0.5])


def test_sparsity_and_training_curves_appear_where_runs_differ_in_them(tmp_path):
  make = lambda name, value, **more: write_run(tmp_path / name, [row('a', value, ate=1.0)], **more)
  runs = [
    make('full', 0.1),
    make('half', 0.2, task='sparse', fraction=0.5),
    make('tenth', 0.4, task='sparse', fraction=0.1),
    make('image', 0.8, task='image'),
    make('other', 0.5, weights='bbbb', train_steps=50),
  ]
  (sparsity, ate), (steps, _) = compare.over_fraction(compare.read(runs)), compare.over_steps(compare.read(runs))
  assert ate.y_name == 'ATE' and [label for _, label in sparsity.x_ticks] == ['10', '50', '100']
  lines = {line.name: line for line in sparsity.lines}
  np.testing.assert_allclose(lines['tiny (aaaa)'].y, [0.4, 0.2, 0.1])
  np.testing.assert_allclose(lines['tiny (aaaa)'].x, np.log10([0.1, 0.5, 1]))
  assert lines['tiny (bbbb)'].y == [0.5]
  assert {line.name: (line.x, line.y) for line in steps.lines}['video'] == ([50.0, 100.0], [0.5, 0.1])
  assert not compare.over_fraction(compare.read(runs[:1] + runs[4:]))


@pytest.mark.parametrize(
  ('prepare', 'message'),
  [
    (lambda t: ['x'], 'two folders or more'),
    (lambda t: [write_run(t / 'a', [row('a', 1)]), str(t / 'b')], 'report.json is missing'),
    (lambda t: [write_run(t / n, [row('a', 1)], benchmark=n) for n in ('bonn', 'sintel')], 'on sintel'),
    (lambda t: [write_run(t / n, [row(n, 1)]) for n in ('a', 'b')], 'no sequence in common'),
  ],
)
def test_what_does_not_compare_is_refused(prepare, message, tmp_path):
  with pytest.raises((ConfigError, DataError), match=message):
    compare.read(prepare(tmp_path))


def test_a_report_of_something_else_is_named(tmp_path):
  good = write_run(tmp_path / 'good', [row('a', 1)])
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'report.json').write_text('[1, 2]')
  with pytest.raises(DataError, match='not a report of evaluate'):
    compare.read([good, str(tmp_path / 'bad')])


def test_names_are_what_tells_paths_apart():
  assert compare.short_names(['runs/a/eval', 'runs/b/eval']) == ['a', 'b']
  assert compare.short_names(['runs/t/full/sintel', 'runs/t/full']) == ['full/sintel', 'full']
  assert compare.short_names(['/a/b', '/b']) == ['a/b', 'b']
  assert compare.short_names(['x', 'x']) == ['x (1)', 'x (2)']


def test_the_command_writes_both_files_and_takes_nothing_else(two, tmp_path, capsys):
  run = lambda *options: cli.run(evaluate.main, evaluate.parser(), ['--compare', *two, *options])
  assert run('--out', str(tmp_path / 'out')) == 0
  assert capsys.readouterr().out.split() == [str(tmp_path / 'out' / name) for name in ('compare.html', 'compare.md')]
  assert run('--config', 'configs/eval.py') == 2
  assert capsys.readouterr().err == 'error: --compare takes folders and --out alone, not config\n'


def test_markdown_keeps_names_in_their_cells(two, tmp_path):
  text = pages.write(two, tmp_path / 'out')[1].read_text()
  lines = [line.replace('\\|', '') for line in text.splitlines() if line.startswith('|')]
  assert '<script>' not in text and 'plots/frames_abs_rel.svg' in text and '0.1500 (-0.0500)' in text
  assert {line.count('|') for line in lines if 'script' in line} == {4, 9}  # settings and sequences; pooled
  assert (tmp_path / 'out' / 'plots' / 'frames_abs_rel.svg').is_file()


def test_plots_are_xml_with_round_numbers_and_gaps():
  lines = [Line(BAD, [0, 1, 2, 3], [1.0, None, 3.0, math.nan], 0), Line('b', [0, 3], [2.0, 2.5], 9)]
  tree = ElementTree.fromstring(plot.svg(lines, title='T & U', x_name='x', y_name='y'))
  texts = [node.text for node in tree.iter() if node.text]
  assert BAD in texts and 'T & U' in texts and f'{BAD}, 2: 3' in texts
  paths = [
    node.get('d') for node in tree.iter('{http://www.w3.org/2000/svg}path') if node.get('stroke') == plot.COLOURS[0]
  ]
  assert paths[0].count('M') == 2 and 'L' not in paths[0]  # nothing is drawn across the gap
  assert plot.round_numbers(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
  assert plot.round_numbers(-0.031, 0.052) == [-0.02, 0, 0.02, 0.04]
  assert plot.svg([], title='', x_name='', y_name='') and plot.svg(
    [Line('c', [5], [0.0], 0)], title='', x_name='', y_name=''
  )


def test_pictures_show_frames_over_depth():
  depth = np.linspace(1, 4, 5 * 20 * 30).reshape(5, 20, 30).astype(np.float32)
  valid, rgb = np.ones(depth.shape, bool), np.full((5, 20, 30, 3), 200, np.uint8)
  span = preview.near_far(depth, valid)
  both, alone = (preview.strip(colours, depth, valid, span=span) for colours in (rgb, None))
  assert both.shape == (160, 480, 3) and alone.shape == (80, 480, 3)
  assert (both[:80] == 200).all() and (both[80:] == alone).all()
  assert alone[40, 10, 0] > alone[40, 470, 0] and alone[40, 10, 2] < alone[40, 470, 2]  # near is red, far blue


def test_pictures_of_a_prediction_are_kept_in_the_colours_of_the_truth(tmp_path):
  depth = np.linspace(1, 4, 5 * 20 * 30).reshape(5, 20, 30).astype(np.float32)
  rgb = np.full((5, 20, 30, 3), 200, np.uint8)
  truth, row = Truth(name='a', rgb=rgb, depth=depth), {'depth': {'scale_shift': {'scale': 2.0, 'shift': 1.0}}}
  open_ = lambda method: np.asarray(Image.open(preview.path(tmp_path, method, 'a')), int)
  preview.keep(tmp_path, 'half', truth, Prediction(depth=(depth - 1) / 2), row)
  assert open_('half').shape == (80, 480, 3) and open_(preview.TRUTH).shape == (160, 480, 3)
  assert np.abs(open_('half') - open_(preview.TRUTH)[80:]).mean() < 3  # aligned, it looks like the truth
  preview.keep(tmp_path, 'colours', truth, Prediction(rgb=np.ones((5, 10, 15, 3), np.float32)), {})
  assert open_('colours').shape == (80, 480, 3) and open_('colours').min() > 250
  preview.keep(tmp_path, 'nothing', truth, Prediction(), {})
  assert not preview.path(tmp_path, 'nothing', 'a').exists()
  preview.keep(tmp_path / 'tum', 'm', Truth(name='a', rgb=rgb), Prediction(depth=depth), {})
  assert Image.open(preview.path(tmp_path / 'tum', preview.TRUTH, 'a')).size == (480, 80)


def test_a_method_called_truth_does_not_pass_for_the_truth(tmp_path):
  depth = np.linspace(1, 4, 5 * 20 * 30).reshape(5, 20, 30).astype(np.float32)
  truth = Truth(name='a', rgb=np.full((5, 20, 30, 3), 200, np.uint8), depth=depth)
  preview.keep(tmp_path, 'truth', truth, Prediction(rgb=-np.ones((5, 20, 30, 3), np.float32)), {})
  true, found = (Image.open(preview.path(tmp_path, method, 'a')) for method in (preview.TRUTH, 'truth'))
  assert true.size == (480, 160) and found.size == (480, 80) and np.asarray(found).max() < 5


def test_the_page_shows_everything_without_a_network(two, tmp_path, page):
  path = pages.write(two, tmp_path / 'out')[0]
  refused = block_network(page)
  page.goto(path.as_uri())
  assert not refused and not page.messages
  assert page.locator('img').count() == 6 and page.locator('svg').count() == 1
  assert page.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 400)')
  name = BAD.replace('/', ':')
  assert name in page.locator('table').nth(1).inner_text() and name in page.locator('figcaption').nth(2).inner_text()
  page.locator('summary').first.click()
  assert '-0.1000' in page.locator('details').first.inner_text()
  assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
  assert colours(page.locator('figure').first.screenshot()) > 20
