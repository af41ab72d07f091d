"""Fifty clients at the app at once, honest and not, for as long as asked: is anything lost, mixed up or piling up?

  python benchmarks/load.py
  python benchmarks/load.py --clients 8 --minutes 2

The real command with the embedded model, short scenes (5 frames, 2 steps). A client opens the page as a browser does,
does one of the things below, waits a little and comes back with another. Each of its jobs has a prompt and, where it
brings a file, a size of picture that no other job has: the record of the scene that it gets must name them.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page  # noqa: E402
from one4d_jax import cli  # noqa: E402

LIMIT = 4  # MB of an upload
PAUSE = 20.0  # seconds between two things that a client does, at most
FULL = 'jobs are waiting already'
ALERT = 'role="alert"'
EVERY = 5.0  # seconds between two looks at the server's memory
DEEDS = {}  # name of a function below: (what a client does, how often beside the others)


class Wrong(Exception):
  """The app did not do what it should."""


class Full(Exception):
  """The queue is full, and the app says so."""


def deed(what: str, weight: int):
  """Registers something that a client does."""

  def register(function):
    DEEDS[function.__name__] = what, weight, function
    return function

  return register


@dataclasses.dataclass
class Job:
  """What a client asked for."""

  prompt: str
  size: tuple[int, int] | None  # of its picture
  id: str = ''


class Tab:
  """A page that is open in a browser: its session, and a connection that says that it is open."""

  def __init__(self, address: str):
    import httpx

    self.session = secrets.token_hex(8)
    timeout = httpx.Timeout(120.0, read=None)
    alone = httpx.Limits(max_keepalive_connections=0)  # one that the server has closed is not used again
    self.http = httpx.AsyncClient(base_url=address, verify=False, timeout=timeout, limits=alone, trust_env=False)

  async def __aenter__(self):
    (await self.http.get('/')).raise_for_status()
    start = time.perf_counter()
    config = (await self.http.get('/config')).raise_for_status().json()
    self.seconds = time.perf_counter() - start
    elements = {c['id']: c['props'].get('elem_id') for c in config['components']}
    self.functions = {d['api_name']: d['id'] for d in reversed(config['dependencies'])}
    for d in config['dependencies']:
      self.functions |= {(elements.get(element), event): d['id'] for element, event in d['targets']}
    self._open = asyncio.create_task(self._heartbeat())
    return self

  async def __aexit__(self, *_):
    self._open.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await self._open
    await self.http.aclose()

  async def _heartbeat(self) -> None:
    async with self.http.stream('GET', f'/gradio_api/heartbeat/{self.session}') as stream:
      async for _ in stream.aiter_raw():
        pass

  async def call(self, name: str | tuple[str, str], *data, until: int = 0) -> list:
    """What a function of the page (its name, or element and event) gives first: a stream goes on with differences.

    Leaves after ``until`` messages.
    """
    body = {'data': data, 'fn_index': self.functions[name], 'session_hash': self.session}
    answer = await self.http.post('/gradio_api/queue/join', json=body)
    if answer.status_code != 200:
      raise Wrong(f'{name}: status {answer.status_code}')
    event, found, seen = answer.json()['event_id'], None, 0
    async with self.http.stream('GET', '/gradio_api/queue/data', params={'session_hash': self.session}) as stream:
      async for line in stream.aiter_lines():
        message = json.loads(line.removeprefix('data:')) if line.startswith('data:') else {}
        seen += bool(message)
        if message.get('event_id') == event and message['msg'] in ('process_generating', 'process_completed'):
          if not message['success']:
            raise Wrong(f'{name}: {message["output"].get("error")}')
          found = message['output']['data'] if found is None else found
          if message['msg'] == 'process_completed':
            return found
        if until and seen >= until:
          return found
    raise Wrong(f'{name}: the stream ended before the function')

  async def upload(self, name: str, content) -> dict:
    """Sends a file and returns what the page would hand on of it. ``content`` is bytes, or an async iterator."""
    border = secrets.token_hex(8)
    head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    tail = f'\r\n--{border}--\r\n'.encode()

    async def pieces():
      yield head
      async for piece in content:
        yield piece
      yield tail

    body = head + content + tail if isinstance(content, bytes) else pieces()
    headers = {'content-type': f'multipart/form-data; boundary={border}'}
    answer = await self.http.post('/gradio_api/upload', content=body, headers=headers)
    if answer.status_code != 200:
      raise Wrong(f'upload: status {answer.status_code}')
    (path,) = answer.json()
    return {'path': path, 'orig_name': name, 'meta': {'_type': 'gradio.FileData'}}

  async def submit(self, job: Job, file: dict | None = None, *, task: str = 'text') -> None:
    """Queues the job and notes its id. Raises Full, or Wrong with what the page says."""
    _, id, status, *_ = await self.call('submit', file, None, job.prompt, task, 0.25, 5, 2, 1, 0)
    if not isinstance(id, str):
      raise (Full if FULL in status else Wrong)(status)
    job.id = id

  async def submit_picture(self, job: Job, content) -> None:
    """Uploads the picture and queues the job, as the page does that has looked at the file."""
    file = await self.upload('picture.png', content)
    _, card, *_ = await self.call('read', file)
    if ALERT in card:
      raise Wrong(card)
    await self.submit(job, file, task='image')

  async def collect(self, job: Job) -> None:
    """Waits for the end of the job as a page does that finds it, and looks at the whole scene."""
    await self.call('resume', job.id)
    await self.call('watch', job.id)
    shown, *_ = await self.call('show', job.id)
    if not (isinstance(shown, str) and f'scenes/{job.id}/scene.html' in shown):
      status, *_ = await self.call('watch', job.id)
      raise Wrong(f'no scene: {status}')
    answer = await self.http.get(f'/scenes/{job.id}/scene.zip')
    with zipfile.ZipFile(io.BytesIO(answer.raise_for_status().content)) as stored:
      if stored.testzip() is not None or 'scene/scene.html' not in stored.namelist():
        raise Wrong('the archive is not whole')
      run = json.loads(stored.read('scene/run.json'))
    source = run['input']['source']
    if run['prompt'] != job.prompt or (source and tuple(source['size'])) != job.size:
      raise Wrong(f'the scene of another: {run["prompt"]}, {source}, not {job}')


def new_job(rng: random.Random, *, picture: bool) -> tuple[Job, bytes]:
  """A job like no other, and its picture."""
  from PIL import Image

  if not picture:
    return Job(f'a red ball rolls {secrets.token_hex(8)}', None), b''
  size = rng.randrange(64, 1024), rng.randrange(64, 1024)
  colour = tuple(rng.randrange(256) for _ in range(3))
  stored = io.BytesIO()
  Image.new('RGB', size, colour).save(stored, 'PNG')
  return Job(f'a room {secrets.token_hex(8)}', size), stored.getvalue()


@functools.cache  # takes long to make, and all clients wait meanwhile
def bomb() -> bytes:
  """A small file of a picture that is much too large."""
  from PIL import Image

  stored = io.BytesIO()
  Image.new('1', (30000, 30000)).save(stored, 'PNG')
  return stored.getvalue()


@deed('a scene of a prompt', 6)
async def prompt(tab: Tab, rng: random.Random) -> None:
  job, _ = new_job(rng, picture=False)
  await tab.submit(job)
  await tab.collect(job)


@deed('a scene of a picture', 6)
async def picture(tab: Tab, rng: random.Random) -> None:
  job, content = new_job(rng, picture=True)
  await tab.submit_picture(job, content)
  await tab.collect(job)


@deed('a scene of a picture that takes half a minute to arrive', 3)
async def slow(tab: Tab, rng: random.Random) -> None:
  job, content = new_job(rng, picture=True)

  async def trickle():
    for start in range(0, len(content), step := len(content) // 30 + 1):
      yield content[start : start + step]
      await asyncio.sleep(1)

  await tab.submit_picture(job, trickle())
  await tab.collect(job)


@deed('leaves while its job waits or runs, and comes back for the scene', 4)
async def leaves(tab: Tab, rng: random.Random) -> None:
  job, _ = new_job(rng, picture=False)
  await tab.submit(job)
  await tab.call('watch', job.id, until=2)
  await tab.__aexit__()
  await asyncio.sleep(rng.uniform(0, 10))
  async with Tab(str(tab.http.base_url)) as again:
    await again.collect(job)


@deed('cancels its job', 3)
async def cancels(tab: Tab, rng: random.Random) -> None:
  job, _ = new_job(rng, picture=False)
  await tab.submit(job)
  await asyncio.sleep(rng.uniform(0, 3))
  await tab.call(('cancel', 'click'), job.id)
  if (await tab.http.get(f'/scenes/{job.id}/run.json')).status_code not in (200, 404):
    raise Wrong('a cancelled job is served')


@deed('sends a file that is not what its name says, or is damaged', 3)
async def mislabelled(tab: Tab, rng: random.Random) -> None:
  _, good = new_job(rng, picture=True)
  name, content = rng.choice([
    ('clip.mp4', rng.randbytes(100_000)),
    ('picture.png', b'<html><script>alert(1)</script></html>'),
    ('picture.png', b'\x7fELF' + rng.randbytes(5000)),
    ('picture.jpg', good[: len(good) // 2]),
    ('clip.gif', b'GIF89a' + rng.randbytes(3000)),
    ('picture.png', bomb()),
    ('clip.mov', b'PK\x03\x04' + rng.randbytes(3000)),
    ('empty.png', b''),
  ])  # fmt: skip
  file = await tab.upload(name, content)
  await refused(tab, file)


@deed('sends more than the limit, and says so', 2)
async def announced(tab: Tab, rng: random.Random) -> None:
  await turned_away(tab.upload('clip.mp4', bytes(2 * LIMIT * 2**20)))


@deed('sends more than the limit, and does not say so', 2)
async def unannounced(tab: Tab, rng: random.Random) -> None:
  async def endless():
    for _ in range(3 * LIMIT):
      yield bytes(2**20)

  await turned_away(tab.upload('clip.mp4', endless()))


@deed('is gone in the middle of an upload', 2)
async def gone(tab: Tab, rng: random.Random) -> None:
  async def half():
    yield bytes(2**20)
    await asyncio.sleep(rng.uniform(0, 2))
    raise ConnectionResetError

  with contextlib.suppress(ConnectionResetError):
    await tab.upload('clip.mp4', half())


@deed('asks for what is not its own', 2)
async def snoops(tab: Tab, rng: random.Random) -> None:
  for path in (f'/scenes/{secrets.token_urlsafe(16)}/scene.zip', '/gradio_api/file=/etc/passwd', '/gradio_api/info'):
    if (await tab.http.get(path)).status_code != 404:
      raise Wrong(f'{path} is answered')
  foreign = {'path': '/etc/passwd', 'orig_name': 'x.png', 'meta': {'_type': 'gradio.FileData'}}
  for call in (tab.call('read', foreign), tab.submit(Job('a room', None), foreign)):
    with contextlib.suppress(Wrong):
      raise AssertionError(f'/etc/passwd gives {await call}')


@deed('sends nonsense to the functions of the page', 2)
async def nonsense(tab: Tab, rng: random.Random) -> None:
  import httpx

  job = {'session_hash': tab.session, 'fn_index': tab.functions['submit']}
  objects = {'data': 7}, {**job, 'data': [0]}, {**job, 'data': ['x'] * 9}, {**job, 'fn_index': 999, 'data': []}
  bodies = [json.dumps(wrong).encode() for wrong in objects]
  for body in (*bodies, b'{', b'[]', b'null', b'[' * 10_000, rng.randbytes(1000), bytes(2 * 2**20)):
    with contextlib.suppress(httpx.TransportError):  # what is too large is not read to its end
      await tab.http.post('/gradio_api/queue/join', content=body, headers={'content-type': 'application/json'})
  await prompt(tab, rng)  # of the same page, all the same


async def refused(tab: Tab, file: dict) -> None:
  """The sender of a file must be told that it cannot be used, and no job may come of it."""
  _, card, *_ = await tab.call('read', file)
  if ALERT not in card:
    raise Wrong(f'{file["orig_name"]} is taken for {card[:100]}')
  with contextlib.suppress(Wrong):
    await tab.submit(Job('what is this', None), file)
    raise AssertionError(f'{file["orig_name"]} was queued')


async def turned_away(sending) -> None:
  """An upload must come to nothing: a status that says so, or the end of the connection."""
  import httpx

  try:
    await sending
  except Wrong as told:
    if 'status 413' not in str(told) and 'status 400' not in str(told):
      raise
  except httpx.TransportError:
    pass
  else:
    raise Wrong('taken')


class Crowd:
  """The clients, and what came of what they did."""

  def __init__(self, address: str, end: float):
    self.address, self.end = address, end
    self.counts = collections.defaultdict(collections.Counter)
    self.wrong: list[dict] = []
    self.pages: list[float] = []  # seconds that the description of the page took to come

  async def client(self, number: int) -> None:
    rng = random.Random(number)
    await asyncio.sleep(rng.uniform(0, PAUSE))
    while time.monotonic() < self.end:
      name = rng.choices(list(DEEDS), [weight for _, weight, _ in DEEDS.values()])[0]
      counts = self.counts[name]
      try:
        async with Tab(self.address) as tab:
          self.pages.append(tab.seconds)
          await DEEDS[name][2](tab, rng)
        counts['right'] += 1
      except Full:
        counts['full'] += 1
      except Exception as error:
        counts['wrong'] += 1
        self.wrong.append({'deed': name, 'client': number, 'error': f'{type(error).__name__}: {error}'[:500]})
        print(self.wrong[-1], flush=True)
      await asyncio.sleep(rng.uniform(0, PAUSE))


def look(process, home: pathlib.Path) -> dict:
  """What the server holds now. ``process`` is psutil's."""
  import psutil

  children = process.children(recursive=True)
  resident = lambda p: p.memory_info().rss
  theirs = []
  for child in children:
    with contextlib.suppress(psutil.NoSuchProcess):
      theirs.append(resident(child))
  held = {'server': resident(process), 'children': sum(theirs), 'processes': len(theirs)}
  sizes = {'uploads': 0, 'scenes': 0}
  for folder, _, names in os.walk(home):  # which passes over folders that go meanwhile
    for name in names:
      with contextlib.suppress(OSError):
        sizes['uploads' if '.uploads-' in folder else 'scenes'] += os.stat(os.path.join(folder, name)).st_size
  return {**held, 'files': process.num_fds(), 'threads': process.num_threads(), **sizes}


async def load(args: argparse.Namespace, address: str, process, home: pathlib.Path) -> tuple[Crowd, list[dict]]:
  from tqdm import tqdm

  start = time.monotonic()
  crowd, samples = Crowd(address, start + 60 * args.minutes), []
  clients = [asyncio.create_task(crowd.client(i)) for i in range(args.clients)]
  everyone = asyncio.gather(*clients)
  with tqdm(total=round(60 * args.minutes), unit='s', mininterval=10) as bar:
    while not everyone.done():
      samples.append({'seconds': time.monotonic() - start, **look(process, home)})
      bar.n = min(round(samples[-1]['seconds']), bar.total)
      bar.set_postfix(done=sum(c['right'] for c in crowd.counts.values()), wrong=len(crowd.wrong))
      await asyncio.sleep(EVERY)
  await everyone
  return crowd, samples


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  rows = [
    (what, *(str(results['deeds'].get(name, {}).get(outcome, 0)) for outcome in ('right', 'full', 'wrong')))
    for name, (what, *_) in DEEDS.items()
  ]
  rows.append(('all', *(str(sum(int(row[i]) for row in rows)) for i in (1, 2, 3))))
  deeds = report.table(rows, ('what a client does', 'as it should be', 'told that 20 jobs wait', 'otherwise'))
  samples = results['samples']
  parts = min(6, len(samples))
  mib = lambda value: f'{value / 2**20:.0f}'
  held = []
  for i in range(parts):
    part = samples[len(samples) * i // parts : len(samples) * (i + 1) // parts]
    middle = {key: statistics.median(sample[key] for sample in part) for key in part[0]}
    span = f'{part[0]["seconds"] / 60:.0f} to {part[-1]["seconds"] / 60:.0f}'
    memory = mib(middle['server']), mib(max(s['server'] for s in part)), mib(middle['children'])
    counts = f'{middle["files"]:.0f}', f'{middle["threads"]:.0f}'
    held.append((span, *memory, *counts, mib(middle['uploads']), mib(middle['scenes'])))
  headings = (
    'minutes', 'server, MiB', 'at most', 'its processes, MiB', 'open files', 'threads', 'uploads, MiB', 'scenes, MiB',
  )  # fmt: skip
  return {'load': deeds, 'load-memory': report.table(held, headings)}


def parser() -> argparse.ArgumentParser:
  p = page.parser('load', __doc__, page='docs/reliability.md')
  p.add_argument('--clients', type=int, default=50, help='(default: %(default)s)')
  p.add_argument('--minutes', type=float, default=120, help='(default: %(default)s)')
  return p


def main(args: argparse.Namespace) -> None:
  import psutil

  with tempfile.TemporaryDirectory() as folder, (pathlib.Path(folder) / 'log').open('w+') as log:
    said = pathlib.Path(folder) / 'said'  # a file: a pipe that nobody reads stops who writes into it
    home = pathlib.Path(folder) / 'jobs'
    command = [sys.executable, '-m', 'one4d_jax.view', '--app', '--port=0', f'--jobs={home}', f'--upload-limit={LIMIT}']
    settings = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    with said.open('w') as out, subprocess.Popen(command, stdout=out, stderr=log, cwd=ROOT, env=settings) as server:
      try:
        while '\n' not in said.read_text():
          time.sleep(0.1)
        address = said.read_text().split()[0]
        crowd, samples = asyncio.run(load(args, address, psutil.Process(server.pid), home))
        children = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
      finally:
        server.kill()
    left = sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    log.seek(0)
    text = log.read()
  print(text[-3000:])
  pages = sorted(crowd.pages)
  results = {
    'clients': args.clients,
    'minutes': args.minutes,
    'versions': page.versions('gradio', 'uvicorn', 'fastapi', 'jax'),
    'deeds': crowd.counts,
    'wrong': crowd.wrong,
    'tracebacks': text.count('Traceback'),
    'page_seconds': {'median': statistics.median(pages), 'p99': pages[int(0.99 * len(pages))], 'most': pages[-1]},
    'end': {'status': status, 'processes_left': left},
    'samples': samples,
  }
  page.record(args, results, tables)


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
