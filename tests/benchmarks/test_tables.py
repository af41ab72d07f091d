"""Tables of benchmarks, from rows that were not measured."""

from benchmarks import caching, embedded, scaling


def cells(line: str) -> list[str]:
  return [cell.strip() for cell in line.strip('|').split('|')]


def test_settings_are_compared_with_the_first_of_them():
  row = lambda name, seconds, value: {
    'task': name, 'level': 'medium', 'seconds': seconds, **dict.fromkeys(embedded.FIGURES, value)
  }  # fmt: skip
  found = [row('all', 4.0, 0.1), row('all', 6.0, 0.3), row('all', 5.0, 0.8), row('some', 2.0, 0.5)]
  every, some = (cells(line) for line in caching.table(found).splitlines()[-2:])
  assert every[:3] == ['all', '5.00', '1.00'] and some[:3] == ['some', '2.00', '2.50']
  assert every[3:6] == ['0.40', '0.4000', '40.0'] and every[6] == '30.0', 'of ATE the median'


def test_growth_is_an_exponent_over_tokens():
  row = lambda frames, seconds, **changes: scaling.START | {
    'frames': frames, 'axis': 'frames', 'seconds': seconds, 'spread': 0.0, 'operations': 10**9 * seconds**2, **changes
  }  # fmt: skip
  lines = scaling.table([row(5, 1.0), row(13, 4.0), row(13, 8.0, axis='devices', devices=2)]).splitlines()[-3:]
  first, second, split = map(cells, lines)
  assert first[-2:] == ['', ''] and second[-2:] == ['4.00', '2.00'], 'twice the tokens, four times the time'
  assert second[-3] == '4' and split[3] == '2' and split[-2:] == ['', '']


def test_operations_grow_faster_than_tokens_once_attention_counts():
  few, many = (scaling.operations(scaling.START | {'frames': n}) for n in (5, 65))
  assert many / few > (65 + 3) / (5 + 3)
