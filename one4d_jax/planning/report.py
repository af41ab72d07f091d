"""A plan for people: in the terminal, as JSON, and as a page with a bar of what the memory is for."""

import dataclasses
import html
import json
import pathlib

from one4d_jax.model.files import write_whole
from one4d_jax.planning.hardware import bytes_
from one4d_jax.planning.memory import ERROR

PARTS = {  # of a device's memory, with the colour of its piece of the bar
  'base': '#3b4a6b',
  'adapters': '#5b7db1',
  'optimizer': '#8fb3d9',
  'encoders': '#6aa08f',
  'batch': '#b9cbb0',
  'gradients': '#e0b35a',
  'activations': '#d9823b',
  'temporaries': '#b5523b',
}
_HOW = {
  'compiled': 'compiled for this machine; what the peak holds beside base, adapters, optimizer, encoders and batch is '
  'split by the model of memory',
  'model': 'by the model of memory, not compiled',
  'refused': 'the compiler refuses; the pieces are those of the model of memory',
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #1b1f27; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.faint { color: #626a78; } .yes { color: #1c7a45; } .no { color: #b3261e; }
table { border-collapse: collapse; } td, th { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #e3e6eb; }
th { text-align: left; } td + td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { text-align: left; } .key { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
.bar { position: relative; height: 34px; margin: 1.6rem 0 2.2rem; background: #eef0f3; }
.bar i { position: absolute; top: 0; bottom: 0; }
.bar b { position: absolute; top: -8px; bottom: -8px; border-left: 2px solid #1b1f27; }
.bar b span { position: absolute; top: -1.3em; right: 4px; white-space: nowrap; font: .8rem system-ui; }
code { font-size: .88em; overflow-wrap: anywhere; }
"""


def seconds(value: float) -> str:
  """As people say it: ``38 s``, ``12.5 min``, ``7.2 days``."""
  for size, name in ((86400, 'days'), (3600, 'h'), (60, 'min')):
    if value >= 2 * size:
      return f'{value / size:.1f} {name}'
  return f'{value:.3g} s'


def large(value: float) -> str:
  """Operations: ``12.7 PFLOP``."""
  for size, name in ((1e18, 'EFLOP'), (1e15, 'PFLOP'), (1e12, 'TFLOP')):
    if value >= size:
      return f'{value / size:.3g} {name}'
  return f'{value / 1e9:.3g} GFLOP'


def verdict(plan: dict) -> str:
  """In one sentence: does it fit?"""
  memory = plan['memory']
  numbers = f'needs {bytes_(memory["peak"])} a device, has {bytes_(memory["limit"])}'
  if memory['fits'] and memory['source'] == 'model' and memory['peak'] > (1 - ERROR) * memory['limit']:
    return f'may fit: {numbers}, which is nearer than the model of memory can tell; compiling would'
  if memory['fits']:
    return f'fits: {numbers}'
  return f'does not fit: {numbers}; {plan["advice"]}'


def sections(plan: dict) -> list[tuple[str, list[tuple[str, ...]]]]:
  """Titles and rows of everything there is to tell, as text."""
  memory, speed = plan['memory'], plan['speed']
  rows = [(name, bytes_(memory['parts'][name])) for name in PARTS if memory['parts'][name]]
  rows += [('peak', bytes_(memory['peak'])), ('of', bytes_(memory['limit']))]
  found = [(f'Memory of a device ({_HOW[memory["source"]]})', rows)]
  found.append(('Memory of a host', [(name, bytes_(size)) for name, size in plan['host'].items() if size]))
  unit = {'step': 'a step', 'scene': 'a scene', 'clips': f'{speed["count"]} clips'}[speed['unit']]
  rows = [(name, large(n)) for name, n in speed['operations'].items() if n]
  rows += [('all', large(sum(speed['operations'].values()))), ('executed, with remat', large(speed['executed']))]
  found.append((f'Operations of {unit}', rows))
  rows = [(axis, bytes_(n)) for axis, n in speed['traffic'].items()]
  rows += [(f'compiled: {kind}', str(n)) for kind, n in plan['compiled'].get('collectives', {}).items()]
  found.append((f'Sent by a device in {unit}, by axis', rows))
  rows = [(f'{name} roof', seconds(value)) for name, value in speed['roofs'].items() if value]
  rows.append(('between', f'{seconds(speed["fastest"])} and {seconds(speed["slowest"])}'))
  found.append((f'Time of {unit} (computed, not measured)', rows))
  if recipe := plan.get('recipe'):
    spread = lambda values, form: ' to '.join(form(v) for v in values)
    rows = [
      ('steps', f'{recipe["steps"]:,}'),
      ('time', spread(recipe['hours'], lambda h: seconds(3600 * h))),
      ('device hours', spread(recipe['device_hours'], lambda h: f'{h:,.0f}')),
    ]
    rows += [('price', spread(recipe['price'], lambda p: f'{p:,.0f}'))] if 'price' in recipe else []
    found.append(('The whole run', rows))
  elif 'price' in plan:
    low, high = plan['price']
    found.append((f'Price of {unit}', [('between', f'{low:,.2f} and {high:,.2f}')]))
  if plan['search']:
    rows = [(row['flags'], bytes_(row['peak']), seconds(row['seconds'])) for row in plan['search']]
    found.append((f'What fits, best first: peak, expected time of {unit} (models)', rows))
  return [(title, rows) for title, rows in found if rows]


def terminal(plan: dict) -> str:
  """The plan as text."""
  lines = [f'{plan["task"]} {plan["about"]}', f'{plan["machine"]}, mesh {plan["mesh"]}', *plan['notes'], '']
  for title, rows in sections(plan):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines.append(title)
    for first, *others in rows:
      lines.append(
        f'  {first:<{widths[0]}}  ' + '  '.join(f'{x:>{w}}' for x, w in zip(others, widths[1:], strict=True))
      )
    lines.append('')
  return '\n'.join([*lines, verdict(plan)])


def page(plan: dict) -> str:
  """The plan as a page that needs nothing else."""
  body = [
    f'<h1>{html.escape(plan["task"])} on {html.escape(plan["machine"])}</h1>',
    f'<p class="faint">{html.escape(plan["about"])}, mesh {html.escape(plan["mesh"])}</p>',
    *(f'<p>{html.escape(note)}</p>' for note in plan['notes']),
    f'<p class="{"yes" if plan["memory"]["fits"] else "no"}"><strong>{html.escape(verdict(plan))}</strong></p>',
    _bar(plan['memory']),
  ]
  for title, rows in sections(plan):
    body.append(f'<h2>{html.escape(title)}</h2><table>')
    for first, *others in rows:
      key = (
        f'<span class="key" style="background:{PARTS[first]}"></span>' if first in PARTS and len(others) == 1 else ''
      )
      cells = ''.join(f'<td>{html.escape(text)}</td>' for text in others)
      body.append(f'<tr><td class="text">{key}{html.escape(first)}</td>{cells}</tr>')
    body.append('</table>')
  versions = ', '.join(f'{name} {version}' for name, version in plan['versions'].items())
  body.append(f'<p class="faint"><code>{html.escape(plan["command"])}</code><br>{html.escape(versions)}</p>')
  head = f'<meta charset="utf-8"><title>Plan: {html.escape(plan["machine"])}</title><style>{_STYLE}</style>'
  return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _bar(memory: dict) -> str:
  """The parts side by side, to scale, and a line where the device's memory ends."""
  whole, at, pieces = 1.08 * max(memory['peak'], memory['limit']), 0.0, []
  for name, colour in PARTS.items():
    share = 100 * memory['parts'][name] / whole
    if share:
      label = html.escape(f'{name} {bytes_(memory["parts"][name])}')
      pieces.append(f'<i title="{label}" style="left:{at:.3f}%;width:{share:.3f}%;background:{colour}"></i>')
    at += share
  end = 100 * memory['limit'] / whole
  line = f'<b style="left:{end:.3f}%"><span>{bytes_(memory["limit"])}</span></b>'
  return f'<div class="bar">{"".join(pieces)}{line}</div>'


def write(plan: dict, folder: pathlib.Path) -> list[pathlib.Path]:
  """``plan.json`` and ``plan.html``."""
  folder.mkdir(parents=True, exist_ok=True)
  contents = {'plan.json': json.dumps(plan, indent=1, default=dataclasses.asdict) + '\n', 'plan.html': page(plan)}
  for name, content in contents.items():
    write_whole(folder / name, content)
  return [folder / name for name in contents]
