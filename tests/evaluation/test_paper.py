"""The paper's tables: the pinned numbers, and how measured ones stand beside them."""

import json

import pytest

from one4d_jax.errors import ConfigError
from one4d_jax.evaluation import paper

# Sums over the rows of each column: a number that changes shows.
SUMS = {
  'table2': (81.3, 196.5, 125.7),
  'table3': (1.394, 334.1, 0.355, 481.2),
  'table4': (0.714, 0.224, 2.707, 0.311, 0.065, 3.745),
  'table5': (2.124, 330.0, 0.998, 614.2),
  'table6': (1.404, 346.3, 0.485, 462.5),
}


@pytest.mark.parametrize('name', SUMS)
def test_pinned_numbers(name):
  table = paper.load(name)
  columns = zip(*(row.values for row in table.rows), strict=True)
  assert tuple(round(sum(v or 0 for v in column), 3) for column in columns) == pytest.approx(SUMS[name])
  assert paper.names() == tuple(SUMS)


def test_settings_of_the_rows():
  runs = {row.name: row.run for row in paper.load('table5').rows}
  assert [(r['task'], r.get('fraction')) for r in runs.values()] == [
    *(('sparse', f) for f in (0.5, 0.25, 0.1, 0.05, 0.04, 0.03)),
    ('video', None),
  ]
  rows = {row.name: row for row in paper.load('table6').rows}
  assert [rows[f'CFG {g}'].run['guidance'] for g in (4, 5)] == [4, 5]
  assert [rows[f'{n} steps'].train_steps for n in (1000, 3000)] == [1000, 3000]
  assert [row.name for row in paper.load('table3').rows if row.run is None] == [
    *('DepthCrafter', 'MonST3R', 'CUT3R', 'Geo4D-ref')
  ]


def outcome(row, benchmark):
  if benchmark == 'bonn':
    return 'no data: give its folder'
  return {'abs_rel': 0.31416, 'delta1': 0.70707, 'basis': f'{benchmark}: 2 of 2'}


def lines_of(text, heading):
  return [
    [c.strip() for c in line.strip('|').split('|')] for line in text.split(heading)[1].splitlines() if '|' in line
  ]


def test_measured_numbers_stand_beside_the_papers_and_the_rest_says_why_not():
  table = paper.load('table5')
  text = paper.markdown(table, paper.measure(table, outcome))
  heading, _, half, *_ = lines_of(text, '# Table 5')
  assert heading[1:3] == ['Sintel Abs Rel: paper', 'here'] and heading[-1] == 'measured here'
  assert half[:5] == ['0.50', '0.314', '0.314', '70.3', '70.7']
  assert half[5:9] == ['0.094', 'not measured', '93.5', 'not measured']
  assert half[9] == 'sintel: sintel: 2 of 2; bonn: no [1]' and '[1] no data: give its folder' in text
  assert '| -  ' in text  # 0.04 has no number on Sintel in the paper


def test_the_procedural_world_is_in_no_column_of_the_paper():
  table = paper.load('table5')
  world = lambda row, benchmark: {'abs_rel': 0.99, 'basis': '3 clips'} if benchmark == paper.WORLD else 'no data'
  text = paper.markdown(table, paper.measure(table, world))
  of_paper, own = text.split('## The same settings on the procedural world')
  assert '0.99' not in of_paper and own.count('0.990') == 7 and 'none of its numbers belongs beside these' in own
  assert '0.273' not in own


def test_rows_of_other_methods_are_quoted_only():
  table = paper.load('table3')
  asked = []
  measured = paper.measure(table, lambda row, b: asked.append((row.name, b)) or 'no data')
  assert asked == [('One4D', 'sintel'), ('One4D', 'bonn'), ('One4D', 'procedural')]
  text = paper.markdown(table, measured).split('## The same')[0]
  assert 'another method, quoted' in text and text.count('| no [1] ') == 4 and '[2] no data' in text


def test_json_keeps_place_and_outcome():
  table = paper.load('table4')
  found = json.loads(json.dumps(paper.as_json(table, paper.measure(table, outcome))))
  assert found['source']['table'] == 'Table 4' and '2511.18922' in found['source']['paper']
  assert found['paper']['One4D']['TUM RPE-R, °'] == 1.447
  assert found['measured']['One4D']['sintel']['abs_rel'] == 0.31416


def test_steps_of_training_are_those_of_the_last_one4d_stage():
  run = lambda stage, steps: {'config': {'train': {'stage': stage}}, 'steps': steps}
  assert paper.train_steps({'vae': run('vae', 9), 'a': run('one4d', 1000), 'b': run('one4d', 3000)}) == 3000
  assert paper.train_steps({'wan': {'source': 'x'}}) is None


def test_a_table_that_is_not_there_is_named():
  with pytest.raises(ConfigError, match=r'table7.*choose from table2'):
    paper.load('table7')
