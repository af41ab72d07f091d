"""A page about a prepared set for people: what came of how many clips, why clips were dropped, and pictures of both."""

import base64
import collections
import html
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tqdm
from PIL import Image

from one4d_jax.data import prepared
from one4d_jax.data.clip import Clip
from one4d_jax.model.files import write_whole

FILE = 'report.html'
_KEPT, _DROPPED = 24, 6  # pictures: of kept clips, and of each reason
_FRAMES, _HEIGHT = 4, 84  # of a clip's strip
_PROBLEMS = 200

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1b1f27; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.faint, figcaption { color: #626a78; } table { border-collapse: collapse; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #e3e6eb; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: .9rem; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; display: block; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; } ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
"""


def write(folder: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
  """Writes ``report.html`` into the folder of a prepared set; it, and in a few lines what came of how many clips.

  Raises DataError as ``prepared.open`` does.
  """
  meta = prepared.read_meta(folder)
  sets = {split: prepared.open(folder, split) for split in prepared.splits(folder)}
  rows = {split: some.rows for split, some in sets.items()}
  every = [row for some in rows.values() for row in some]
  reasons, notes = (collections.Counter(name for row in every for name in row[kind]) for kind in ('reasons', 'notes'))
  kept = [(split, i) for split in ('train', 'test') for i in range(len(rows.get(split, ())))]
  counts = _counts(rows, meta['problems'])
  body = [
    f'<h1>{html.escape(meta["source"])}, {html.escape(folder.name)}</h1>',
    f'<p class="faint">{html.escape("; ".join(meta["licence"]))}</p>',
    _table(counts),
    '<h2>Dropped, by reason</h2><p class="faint">A clip may fail several filters.</p>',
    _table([(name, count, _example(every, name, 'reasons')) for name, count in reasons.most_common()]),
    '<h2>Noted, not dropped</h2>',
    _table([(name, count, _example(every, name, 'notes')) for name, count in notes.most_common()]),
    '<h2>Sizes</h2>',
    _table(_sizes(rows)),
    '<h2>Statistics</h2><p class="faint">Kept clips blue, dropped clips red.</p>',
    f'<img style="width:100%" alt="histograms of all statistics" src="{_histograms(rows)}">',
  ]
  first = lambda name: [i for i, row in enumerate(rows['dropped']) if next(iter(row['reasons'])) == name]
  sheets = {'Kept': [(sets[split], i) for split, i in _spread(kept, _KEPT)]}
  for name, _ in reasons.most_common():
    sheets[f'Dropped: {name}'] = [(sets['dropped'], i) for i in _spread(first(name), _DROPPED)]
  with tqdm.tqdm(total=sum(map(len, sheets.values())), desc='report', unit='clip') as bar:
    for title, chosen in sheets.items():
      body += [f'<h2>{html.escape(title)}</h2>', _sheet(chosen, bar)]
  body += _list('Could not be read', [f'{p["name"]}: {p["problem"]}' for p in meta['problems']])
  body += _list('Taken for granted, though no public document says it', meta['unverified'])
  page = f'<!doctype html><meta charset="utf-8"><title>{html.escape(meta["source"])}</title><style>{_STYLE}</style>'
  write_whole(folder / FILE, page + '\n'.join(body))
  lines = ['  '.join(filter(None, line)) for line in counts]
  dropped = ', '.join(f'{name} {count}' for name, count in reasons.most_common())
  return folder / FILE, lines + ([f'dropped for: {dropped}'] if dropped else [])


def _counts(rows: dict[str, list[dict]], problems: list[dict]) -> list[tuple]:
  seconds = lambda some: sum(row['size'][0] / row['fps'] for row in some)
  scenes = lambda some: len({row['scene'] for row in some})
  lines = [(split, f'{len(some):,}', f'{scenes(some):,} scenes', f'{seconds(some) / 3600:.2f} h')
           for split, some in rows.items()]  # fmt: skip
  return [*lines, ('could not be read', f'{len(problems):,}', '', '')]


def _sizes(rows: dict[str, list[dict]]) -> list[tuple]:
  kept = [row for split, some in rows.items() if split != 'dropped' for row in some]
  sizes = collections.Counter('x'.join(map(str, row['size'])) for row in kept)
  return [(size, f'{count:,}') for size, count in sizes.most_common()]


def _example(rows: list[dict], name: str, kind: str) -> str:
  return 'such as: ' + next(row[kind][name] for row in rows if name in row[kind])


def _spread(items: Sequence, count: int) -> list:
  """At most ``count`` of them, evenly over the whole."""
  chosen = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)) if items else ()
  return [items[i] for i in chosen]


def _sheet(chosen: Iterable[tuple[prepared.Source, int]], bar: tqdm.tqdm) -> str:
  figures = []
  for source, i in chosen:
    row = source.rows[i]
    notes = [row['id'], *row['reasons'].values(), *row['notes'].values(), row['caption'][:160]]
    text = '<br>'.join(html.escape(note) for note in notes if note)
    figures.append(f'<figure><img alt="" src="{_strip(source[i])}"><figcaption>{text}</figcaption></figure>')
    bar.update()
  return f'<div class="sheet">{"".join(figures)}</div>' if figures else '<p>None.</p>'


def _strip(clip: Clip) -> str:
  """Frames of a clip over their depth, as a data address."""
  from one4d_jax.viewer.pictures import depth_colours

  chosen = np.linspace(0, clip.frames - 1, _FRAMES).round().astype(int)
  depth = depth_colours(clip.depth[chosen], clip.valid[chosen])
  rows = [np.concatenate(list(video), axis=1) for video in (clip.rgb[chosen], depth)]
  image = Image.fromarray(np.concatenate(rows))
  scale = 2 * _HEIGHT / image.height
  image = image.resize((round(image.width * scale), 2 * _HEIGHT), Image.Resampling.BOX)
  return _address(image.save, 'jpeg', quality=80)


def _histograms(rows: dict[str, list[dict]]) -> str:
  """One small plot a statistic."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  values = lambda name, dropped: [
    row['statistics'][name]
    for split, some in rows.items()
    if (split == 'dropped') == dropped
    for row in some
    if isinstance(row['statistics'].get(name), int | float)
  ]
  names = dict.fromkeys(name for some in rows.values() for row in some for name in row['statistics'])
  pairs = {name: (values(name, False), values(name, True)) for name in names}
  pairs = {name: pair for name, pair in pairs.items() if np.unique(np.float64(pair[0] + pair[1])).size > 1}
  lines = max(1, -(-len(pairs) // 5))
  figure = Figure(figsize=(14, 1.9 * lines), dpi=80, layout='constrained')
  FigureCanvasAgg(figure)
  for k, (name, pair) in enumerate(pairs.items()):
    axes = figure.add_subplot(lines, 5, k + 1)
    low, high = np.quantile(np.float64(pair[0] + pair[1]), [0.01, 0.99])
    axes.hist(
      [np.clip(some, low, high) for some in pair], bins=24, stacked=True, color=('#3566c8', '#d0463b'), linewidth=0
    )
    axes.set_title(name, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.xaxis.get_major_locator().set_params(nbins=4)
    axes.set_yticks([])
  return _address(figure.savefig, 'png')


def _address(save: Callable, kind: str, **options) -> str:
  """A picture as a data address; ``save`` writes it to a file."""
  out = io.BytesIO()
  save(out, format=kind, **options)
  return f'data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}'


def _table(lines: Iterable[tuple]) -> str:
  cell = lambda k, value: f'<td{" class=number" if k else ""}>{html.escape(str(value))}</td>'
  body = ''.join(f'<tr>{"".join(cell(k == 1, value) for k, value in enumerate(line))}</tr>' for line in lines)
  return f'<table>{body}</table>' if body else '<p>None.</p>'


def _list(title: str, lines: Sequence[str]) -> list[str]:
  if not lines:
    return []
  more = f'<li>… and {len(lines) - _PROBLEMS:,} more</li>' if len(lines) > _PROBLEMS else ''
  items = ''.join(f'<li>{html.escape(line)}</li>' for line in lines[:_PROBLEMS])
  return [f'<h2>{html.escape(title)}</h2><ul>{items}{more}</ul>']
