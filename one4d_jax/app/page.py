"""The page of the app: a clip, an image or a text on the left, the scene that comes of it on the right.

Everything that a person typed or a file is called goes through ``html.escape`` before it is shown.
"""

import asyncio
import html
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator

import gradio as gr

from one4d_jax.app import tasks
from one4d_jax.app.jobs import INPUT, SCENE, Jobs, Status, describe
from one4d_jax.app.uploads import Uploads
from one4d_jax.errors import UserError
from one4d_jax.request import EXAMPLE, read_sizes

ARCHIVE = 'scene.zip'  # the name under which a scene's folder is served whole

_TASKS = {  # label, and the kinds of upload it is for
  'text': ('Text', ()),
  'image': ('Image (first frame)', ('image', 'video', 'animation')),
  'sparse': ('Sparse frames', ('video', 'animation')),
  'video': ('Video', ('video', 'animation')),
}
_FIRST = {None: 'text', 'image': 'image', 'video': 'video', 'animation': 'video'}  # choice for an upload
_LONGEST_PROMPT = 2000  # characters
_MOST_STEPS, _MOST_GUIDANCE, _MOST_WINDOWS = 200, 20.0, 8
_PULSE = 0.5  # seconds between looks at a job
_OURS = {'api_visibility': 'private', 'show_progress': 'hidden', 'concurrency_limit': None}

_CSS = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: 0 auto; }
#file .download { visibility: hidden; }  /* uploads are not served */
#head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
#head p { margin: .15rem 0 0; opacity: .7; }
#queue { text-align: right; font-size: .875rem; opacity: .75; align-self: center; }
.card { display: flex; gap: .75rem; align-items: center; font-size: .9rem; min-height: 3rem; }
.card img { height: 72px; border-radius: 6px; }
.note { border-left: 3px solid var(--color-accent); padding: .4rem .75rem; border-radius: 0 6px 6px 0;
  background: var(--background-fill-secondary); }
.bad { border-left-color: #dc2626; }
.status progress { width: 100%; height: .5rem; accent-color: var(--color-accent); }
.status p { margin: 0 0 .35rem; font-variant-numeric: tabular-nums; }
.stage { aspect-ratio: 16 / 10; max-height: 72vh; width: 100%; border-radius: 10px; overflow: hidden; display: grid;
  place-items: center; text-align: center; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); }
.stage p { opacity: .6; max-width: 26rem; padding: 1rem; }
.stage iframe { width: 100%; height: 100%; border: 0; }
.links { display: flex; gap: .75rem; flex-wrap: wrap; margin: .75rem 0; }
.links a { padding: .45rem 1rem; border-radius: 8px; text-decoration: none; color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); }
.links a.main { background: var(--button-primary-background-fill); color: var(--button-primary-text-color);
  border-color: transparent; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .9rem;
  margin: 0 0 .75rem; }
.facts dt { opacity: .65; } .facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.preview { width: 100%; border-radius: 8px; display: block; background: #fff; }
footer { display: none !important; }
"""


def look() -> dict:
  """Theme and style, for ``mount_gradio_app``; fonts of the system, as none may be fetched."""
  fonts = {'font': ['system-ui', 'sans-serif'], 'font_mono': ['ui-monospace', 'monospace']}
  return {'theme': gr.themes.Default(primary_hue='blue', **fonts), 'css': _CSS}


def build(jobs: Jobs, uploads: Uploads, *, weights: pathlib.Path) -> gr.Blocks:
  """The page; its scenes are made with the bundle at ``weights``. Raises CheckpointError where that is not whole."""
  own = read_sizes(weights)
  most_frames = _MOST_WINDOWS * own['frames']
  with gr.Blocks(title='One4D', analytics_enabled=False, fill_width=True) as page:
    upload = gr.State()  # what ``uploads.look`` said of the file
    job = gr.Textbox(visible=False)  # id of the one that is shown; kept by the page, which the server may forget
    latest = gr.BrowserState(None, storage_key='one4d-job')  # the same, for when the page is opened again
    with gr.Row():
      gr.HTML('<h1>One4D</h1><p>A clip, an image or a sentence in; a 4D scene out.</p>', elem_id='head')
      queue = gr.HTML(_queue_line(jobs), elem_id='queue')
    with gr.Row():
      with gr.Column(scale=2, min_width=340):
        file = gr.File(label='Video or image', height=140, elem_id='file')
        card = gr.HTML(_card(None), elem_id='card')
        prompt = gr.Textbox(
          label='Prompt', lines=3, max_length=_LONGEST_PROMPT, placeholder='What the scene shows', elem_id='prompt'
        )
        task = gr.Radio(_choices(None), value='text', label='Task', elem_id='task')
        share = gr.Slider(0.05, 0.95, 0.25, step=0.05, label='Share of frames given', visible=False, elem_id='share')
        with gr.Accordion('Settings', open=False, elem_id='settings'):
          with gr.Row():
            frames = gr.Number(
              own['frames'], label='Frames', precision=0, minimum=1, maximum=most_frames, elem_id='frames'
            )
            steps = gr.Number(own['steps'], label='Steps', precision=0, minimum=1, maximum=_MOST_STEPS, elem_id='steps')
          with gr.Row():
            guidance = gr.Number(
              own['guidance'], label='Guidance', step=0.5, minimum=0, maximum=_MOST_GUIDANCE, elem_id='guidance'
            )
            seed = gr.Number(0, label='Seed', precision=0, minimum=0, maximum=2**32 - 1, elem_id='seed')
        with gr.Row():
          # Works once the page has found its last job: what loading shows must not undo what a quick hand began.
          make = gr.Button('Make scene', variant='primary', interactive=False, elem_id='make')
          cancel = gr.Button('Cancel', variant='stop', visible=False, elem_id='cancel')
          example = gr.Button('Example', elem_id='example')
        status = gr.HTML(elem_id='status')
      with gr.Column(scale=3, min_width=420):
        scene = gr.HTML(_NO_SCENE, elem_id='scene', padding=False)

    def read(path: str | None):
      """A new file, or none."""
      seen, shown = None, _card(None)
      if path:
        try:
          seen = uploads.look(path)
          shown = _card(seen)
        except UserError as error:
          shown = _note(error, bad=True)
      kind = seen and seen['kind']
      choice = gr.update(choices=_choices(kind), value=_FIRST[kind])
      return seen, shown, choice, gr.update(visible=False)

    def take_example():
      """A copy among the uploads, with its description."""
      folder = pathlib.Path(tempfile.mkdtemp(dir=uploads.folder))
      return str(shutil.copy(EXAMPLE, folder)), EXAMPLE.with_suffix('.txt').read_text().strip()

    def submit(path, seen, *fields):
      """Checks what was given, and queues it."""
      try:
        if path and (seen is None or seen['path'] != str(pathlib.Path(path).resolve())):
          seen = uploads.look(path)
        words = arguments(seen if path else None, *fields, weights=weights, most_frames=most_frames)
        id = jobs.submit(words, seen['path'] if path else None)
      except (UserError, OSError) as error:
        return None, gr.skip(), _note(error, bad=True), gr.skip(), gr.skip()
      return id, id, _status(jobs.status(id)), *_buttons(busy=True)

    async def watch(id: str | None) -> AsyncIterator[tuple]:
      """Shows a job until it has ended."""
      shown = None
      while True:
        state = jobs.status(id) if id else None
        now = (gr.skip() if state is None else _status(state)), _queue_line(jobs)
        if now != shown:
          shown = now
          yield now
        if state is None or state.ended:
          return
        await asyncio.sleep(_PULSE)

    def show(id: str | None):
      """The scene of a job, if it came to one."""
      folder = jobs.scene(id) if id else None
      return (gr.skip() if folder is None else _scene(id, folder)), *_buttons(busy=is_busy(id))

    def resume(id: str | None):
      """The job that this browser saw last, if it is still known."""
      id = id if id and jobs.status(id) else None
      return id, gr.update(visible=is_busy(id))

    def is_busy(id: str | None) -> bool:
      state = jobs.status(id) if id else None
      return state is not None and not state.ended

    on_result = {'fn': show, 'inputs': job, 'outputs': [scene, make, cancel], **_OURS}
    on_progress = {'fn': watch, 'inputs': job, 'outputs': [status, queue], **_OURS}
    file.change(read, file, [upload, card, task, share], **_OURS)
    task.change(lambda name: gr.update(visible=name == 'sparse'), task, share, **_OURS)
    example.click(take_example, None, [file, prompt], **_OURS)
    settings = [file, upload, prompt, task, share, frames, steps, guidance, seed]
    submitted = make.click(submit, settings, [job, latest, status, make, cancel], **_OURS)
    submitted.then(**on_progress).then(**on_result)
    cancel.click(lambda id: jobs.cancel(id) if id else None, job, None, **_OURS)
    page.load(resume, latest, [job, cancel], **_OURS).then(**on_progress).then(**on_result)
    gr.Timer(5).tick(lambda: _queue_line(jobs), None, queue, **_OURS)
  page.queue(default_concurrency_limit=None, api_open=False)
  return page


def arguments(
  seen: dict | None,
  prompt: str | None,
  task: str,
  share: float,
  frames: float | None,
  steps: float | None,
  guidance: float | None,
  seed: float | None,
  *,
  weights: pathlib.Path,
  most_frames: int,
) -> list[str]:
  """The arguments of ``sample`` for what was chosen, in the folder of a job. Raises UserError.

  Nothing is taken for granted: a request need not come from the page.
  """
  prompt, kind = (prompt or '').strip(), seen and seen['kind']
  if task not in _TASKS or kind not in (_TASKS[task][1] or (None,)):
    raise UserError('that task does not go with this file; choose another one')
  if task == 'text' and not prompt:
    raise UserError('nothing to go by: choose a file, or describe the scene in a prompt')
  if len(prompt) > _LONGEST_PROMPT or '\0' in prompt:
    raise UserError(f'the prompt is longer than {_LONGEST_PROMPT} characters, or no text')
  values = {
    'frames': _whole('frames', frames, most_frames, least=1),
    'steps': _whole('steps', steps, _MOST_STEPS, least=1),
    'guidance': _number('guidance', guidance, _MOST_GUIDANCE),
    'seed': _whole('seed', seed, 2**32 - 1),
    'weights': weights.resolve(),
    'out': SCENE,
  }
  if seen:
    values['input'] = INPUT
  if prompt:
    values['prompt'] = prompt
  if task == 'sparse':
    values['sparsity'] = _number('share', share, 1.0)
  if task == 'image' and kind != 'image':
    values['observed'] = 0
  words = [f'--{name}={value}' for name, value in values.items()]
  tasks.parse(words)
  return words


def _number(name: str, value: float | None, most: float, *, least: float = 0) -> float:
  if not isinstance(value, int | float) or not (math.isfinite(value) and least <= value <= most):
    raise UserError(f'{name} must be a number from {least:g} to {most:g}')
  return value


def _whole(name: str, value: float | None, most: int, *, least: int = 0) -> int:
  if int(_number(name, value, most, least=least)) != value:
    raise UserError(f'{name} must be a whole number')
  return int(value)


_NO_SCENE = '<div class="stage"><p>The scene appears here: drag to turn it, scroll to come closer.</p></div>'


def _choices(kind: str | None) -> list[tuple[str, str]]:
  return [(label, name) for name, (label, kinds) in _TASKS.items() if kind in (kinds or (None,))]


def _buttons(*, busy: bool) -> tuple:
  """``make`` and ``cancel``."""
  return gr.update(interactive=not busy), gr.update(visible=busy)


def _note(text: object, *, bad: bool = False) -> str:
  return f'<div class="note{" bad" if bad else ""}" role="alert">{html.escape(str(text))}</div>'


def _sentence(text: str) -> str:
  return text[:1].upper() + text[1:]


def _card(seen: dict | None) -> str:
  """What is known of the file."""
  if seen is None:
    return '<div class="card">No file: the scene is made from the prompt alone.</div>'
  count, rate = seen['frames'], seen['fps']
  parts = [seen['kind'], f'{count} frame{"" if count == 1 else "s"}', 'x'.join(map(str, seen['size']))]
  lines = [_sentence(', '.join(parts + ([f'{rate:.3g} fps'] if rate else []))), *seen['notes']]
  image = f'<img alt="first frame" src="data:image/jpeg;base64,{seen["thumbnail"]}">'
  return f'<div class="card">{image}<div>{"<br>".join(map(html.escape, lines))}</div></div>'


def _status(status: Status) -> str:
  text = html.escape(_sentence(describe(status)))
  if status.state == 'failed':
    return f'<div class="note bad" role="alert">{text}</div>'
  if status.ended:
    return f'<div class="status" role="status"><p>{text}.</p></div>'
  known = status.state == 'running' and status.total > 1 and status.done
  bar = f'value="{status.done}" max="{status.total}"' if known else ''
  return f'<div class="status" role="status"><p>{text}</p><progress {bar}></progress></div>'


def _queue_line(jobs: Jobs) -> str:
  running, waiting = jobs.now()
  if running is None:
    return 'Nothing is running.'
  return html.escape(f'Now: {describe(running)}. Waiting: {waiting}.')


def _scene(id: str, folder: pathlib.Path) -> str:
  """The scene, links, facts and pictures."""
  place = f'scenes/{id}'
  run = json.loads((folder / 'run.json').read_text())
  facts = ''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in _facts(run).items())
  warnings = [*run['cameras']['warnings'], *run['input'].get('notes', ())]
  return (
    f'<div class="stage"><iframe src="{place}/scene.html" title="4D scene" sandbox="allow-scripts allow-downloads" '
    f'allow="fullscreen"></iframe></div>'
    f'<div class="links"><a class="main" href="{place}/{ARCHIVE}" download>Download all (zip)</a>'
    f'<a href="{place}/scene.html" target="_blank" rel="noopener">Open in a tab</a></div>'
    f'{"".join(_note(warning) for warning in warnings)}<dl class="facts">{facts}</dl>'
    f'<img class="preview" src="{place}/preview.png" alt="frames, depth and points of the scene">'
  )


def _facts(run: dict) -> dict[str, str]:
  """Names and values for people, from the scene's record."""
  cameras, (width, height), scale = run['cameras'], run['input']['size'], run['metric']['scale']
  residual = [value for value in cameras['residual'] if value is not None]
  return {
    'prompt': run['prompt'] or 'none',
    'frames': f'{len(cameras["residual"])} of {width}x{height}',
    'focal length': _focal(cameras['focal'], cameras['focal_std'], width),
    'residual': f'{sum(residual) / len(residual):.3g} mean, {max(residual):.3g} worst frame' if residual else 'unknown',
    'valid pixels': f'{cameras["valid"]:.0%}',
    'scale': 'unknown' if scale is None else f'{scale:.4g} metres per unit',
    'seed': str(run['seed']),
    'seconds': ', '.join(f'{name} {seconds:.1f}' for name, seconds in run['timings_s'].items()),
  }


def _focal(focal: float | None, std: float | None, width: int) -> str:
  """In pixels, with its standard error and the angle of view across."""
  if focal is None:
    return 'unknown'
  error = '' if std is None else f' ± {std:.2g}'
  return f'{focal:.4g}{error} pixels, {math.degrees(2 * math.atan(width / 2 / focal)):.3g}° wide'
