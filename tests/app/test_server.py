"""What the app serves, and what it refuses, without a browser."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip('gradio', reason="needs gradio (pip install '.[app]')")

from fastapi.testclient import TestClient

from one4d_jax import view
from one4d_jax.app import page, server, uploads
from one4d_jax.app.jobs import Jobs
from one4d_jax.app.uploads import Uploads
from one4d_jax.errors import UserError
from one4d_jax.model.files import EMBEDDED
from one4d_jax.request import EXAMPLE
from tests.app import children, eventually, gone, producers, serving

FAKE = 'tests.app.producers:produce'


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """(client, jobs, folder, upload folder) of an app whose scenes are made at once."""
  home = tmp_path_factory.mktemp('app')
  uploads = home / '.uploads'
  uploads.mkdir()
  with pytest.MonkeyPatch.context() as patch, Jobs(home, FAKE) as jobs, Uploads(uploads, limit=2**20) as checked:
    patch.setenv('GRADIO_TEMP_DIR', str(uploads))
    app = server.build(jobs, checked, weights=EMBEDDED, host='127.0.0.1')
    with TestClient(app, base_url='http://127.0.0.1', raise_server_exceptions=False) as client:
      yield client, jobs, home, uploads


@pytest.fixture(scope='module')
def scene(served):
  """The id of a finished scene."""
  _, jobs, _, _ = served
  id = jobs.submit(['--prompt=a room'])
  eventually(lambda: jobs.scene(id))
  return id


def test_files_of_a_scene(served, scene):
  client, jobs, _, _ = served
  answer = client.get(f'/scenes/{scene}/scene.html')
  assert answer.status_code == 200 and answer.headers['content-type'].startswith('text/html')
  assert answer.content == (jobs.scene(scene) / 'scene.html').read_bytes()
  assert 'sandbox allow-scripts' in answer.headers['content-security-policy']
  assert 'allow-same-origin' not in answer.headers['content-security-policy']
  assert answer.headers['x-content-type-options'] == 'nosniff'
  part = client.get(f'/scenes/{scene}/preview.png', headers={'range': 'bytes=1-3'})
  assert part.status_code == 206 and part.content == b'PNG', 'players seek'


def test_the_archive_is_the_whole_folder(served, scene):
  client, jobs, _, _ = served
  answer = client.get(f'/scenes/{scene}/{page.ARCHIVE}')
  assert 'attachment' in answer.headers['content-disposition']
  with zipfile.ZipFile(io.BytesIO(answer.content)) as stored:
    assert stored.testzip() is None
    folder = jobs.scene(scene)
    want = {f'scene/{p.relative_to(folder)}': p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    assert {name: stored.read(name) for name in stored.namelist()} == want
  assert 'scene/points/frame_000.ply' in want


def test_archives_of_large_files_come_in_pieces(tmp_path):
  folder = tmp_path / 'scene'
  folder.mkdir()
  (folder / 'big').write_bytes(os.urandom(5 * 2**20 + 17))
  pieces = list(server.archive(folder))
  assert max(map(len, pieces)) < 2**20 + 4096 and len(pieces) > 5
  with zipfile.ZipFile(io.BytesIO(b''.join(pieces))) as stored:
    assert stored.read('scene/big') == (folder / 'big').read_bytes()


@pytest.mark.parametrize(
  'path',
  [
    '/scenes/{id}/../{id}/scene.html',
    '/scenes/{id}/..%2f..%2f{secret}',
    '/scenes/{id}/%2e%2e/{secret}',
    '/scenes/{id}/..',
    '/scenes/{id}/points',
    '/scenes/{id}/points/frame_000.ply',
    '/scenes/{id}/none.html',
    '/scenes/{id}/',
    '/scenes/{id}',
    '/scenes/',
    '/scenes/../{secret}',
    '/scenes/%2e%2e/{secret}',
    '/scenes/{other}/scene.html',
    '/scenes/{other}/scene.zip',
    '//etc/passwd',
    '/gradio_api/file=/etc/passwd',
    '/gradio_api/file={folder}/{secret}',
    '/gradio_api/file={folder}/{id}/scene/scene.html',
    '/gradio_api/file=http://127.0.0.1:1/x',
    '/gradio_api/proxy=http://127.0.0.1:1/x',
    '/gradio_api/info',
    '/gradio_api/openapi.json',
    '/gradio_api/runs',
    '/gradio_api/call/submit',
    '/monitoring',
    '/docs',
    '/openapi.json',
  ],
)
def test_nothing_else_is_served(served, scene, path):
  client, _, home, _ = served
  (home / 'secret.txt').write_text('secret')
  url = path.format(id=scene, other='A' * 22, secret='secret.txt', folder=home)
  answer = client.get(url)
  if path == '/scenes/{id}/../{id}/scene.html':  # which the client makes plain before it asks
    assert answer.request.url.path == f'/scenes/{scene}/scene.html'
  else:
    assert answer.status_code in (403, 404) and b'secret' not in answer.content and b'root:' not in answer.content


def test_a_scene_that_is_not_finished_is_not_served(served, tmp_path):
  client, jobs, home, _ = served
  gate = tmp_path / 'gate'
  id = jobs.submit([f'--prompt=wait {gate}'])
  (home / id / 'scene').mkdir()
  (home / id / 'scene' / 'run.json').write_text('{}')
  assert client.get(f'/scenes/{id}/run.json').status_code == 404
  jobs.cancel(id)
  assert client.get(f'/scenes/{id}/run.json').status_code == 404


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:8080', '127.0.0.1.evil.example', ''])
def test_other_names_for_this_host_are_refused(served, host):
  client, *_ = served
  assert client.get('/', headers={'host': host}).status_code == 421


@pytest.mark.parametrize('host', ['127.0.0.1:8080', 'localhost', 'localhost:1', '[::1]:8080'])
def test_local_names_are_served(served, host):
  client, *_ = served
  assert client.get('/', headers={'host': host}).status_code == 200


def test_large_requests_are_refused_by_what_they_announce(served):
  client, *_ = served
  assert client.post('/gradio_api/queue/join', content=b'x' * (2**20 + 1)).status_code == 413
  upload = lambda size: client.post('/gradio_api/upload', files={'files': ('a.mp4', b'x' * size)})
  assert upload(2**21 + 1).status_code == 413
  assert upload(2**20 + 1).status_code == 413, 'one file, by gradio'
  assert upload(2**20).status_code == 200


def test_uploads_stop_before_the_disk_is_full(served, monkeypatch):
  client, *_ = served
  used = shutil.disk_usage
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: used(path)._replace(free=3 * 2**20))
  upload = lambda: client.post('/gradio_api/upload', files={'files': ('a.mp4', b'x')})
  answer = upload()
  assert answer.status_code == 507 and 'nearly full' in answer.text
  assert client.get('/').status_code == 200, 'the rest goes on'
  monkeypatch.undo()
  assert upload().status_code == 200


def test_large_requests_end_where_they_announce_nothing(tmp_path):
  received = []

  async def app(scope, receive, send):
    while (message := await receive())['type'] == 'http.request' and message.get('more_body'):
      received.append(message['body'])

  async def endless():
    return {'type': 'http.request', 'body': b'x' * 2**18, 'more_body': True}

  guard = server.Guard(app, uploads=Uploads(tmp_path, limit=2**20), hosts=None)
  scope = {'type': 'http', 'path': '/gradio_api/upload', 'headers': []}
  asyncio.run(asyncio.wait_for(guard(scope, endless, None), 10))
  assert len(received) == 8


def test_uploads_are_only_taken_from_their_folder(served):
  uploads = served[-1]
  with Uploads(uploads, limit=2**20) as checked:
    for path in (EXAMPLE, uploads / '..' / 'secret.txt', uploads / 'gone.mp4', uploads):
      with pytest.raises(UserError, match='choose it again'):
        checked.look(str(path))


def test_uploads_are_looked_at_by_content(tmp_path):
  with Uploads(tmp_path, limit=100_000) as checked:
    film = tmp_path / 'room.txt'
    film.write_bytes(EXAMPLE.read_bytes())
    seen = checked.look(str(film))
    assert (seen['kind'], seen['frames'], seen['size'], seen['path']) == ('video', 17, (256, 256), str(film))
    text = tmp_path / 'text.mp4'
    text.write_text('not a film')
    with pytest.raises(UserError, match=r'^text\.mp4 is neither an image nor a video'):
      checked.look(str(text))
    film.write_bytes(bytes(100_001))
    with pytest.raises(UserError, match=r'room\.txt is larger than'):
      checked.look(str(film))


def test_a_file_that_crashes_its_decoder_is_refused(tmp_path):
  with Uploads(tmp_path, limit=100, function='tests.app.producers:crash_on_sight') as checked:
    (tmp_path / 'a.png').write_bytes(b'x')
    for _ in range(2):
      with pytest.raises(UserError, match=r'a\.png cannot be read \(its process was ended by SIGSEGV\)'):
        checked.look(str(tmp_path / 'a.png'))


def test_uploads_go_after_two_hours(tmp_path):
  checked = Uploads(tmp_path, limit=100)
  old, again = tmp_path / 'a' / 'old.png', tmp_path / 'b' / 'again.png'
  for path in (old, again, tmp_path / 'loose.png'):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'x')
  for now in (0, 7199):
    checked.forget(now)
    assert old.is_file() and again.is_file()
  os.utime(again, ns=(0, 0))  # it came a second time
  (tmp_path / 'new.png').touch()
  checked.forget(7201)
  assert sorted(path.name for path in tmp_path.rglob('*')) == ['again.png', 'b', 'new.png']
  checked.forget(7201 + 7200)
  assert list(tmp_path.iterdir()) == []


def test_old_uploads_go_by_themselves(tmp_path, monkeypatch):
  monkeypatch.setattr(uploads, '_PULSE', 0.01)
  monkeypatch.setattr(uploads, '_LIFETIME', 0.05)
  (tmp_path / 'a.png').touch()
  with Uploads(tmp_path, limit=100):
    eventually(lambda: not (tmp_path / 'a.png').exists())


SEEN = {
  'video': {'kind': 'video'},
  'image': {'kind': 'image'},
  None: None,
}


def words(kind=None, **changes) -> list[str]:
  fields = {'prompt': 'a room', 'task': 'text', 'share': 0.25, 'frames': 17, 'steps': 5, 'guidance': 1.5, 'seed': 3}
  return page.arguments(SEEN[kind], *{**fields, **changes}.values(), weights=EMBEDDED, most_frames=136)


def test_arguments_are_those_of_sample():
  common = {'--frames=17', '--steps=5', '--guidance=1.5', '--seed=3', f'--weights={EMBEDDED}', '--out=scene'}
  assert set(words()) == common | {'--prompt=a room'}
  assert set(words('video', task='video', prompt='')) == common | {'--input=input'}
  assert set(words('video', task='image')) == common | {'--input=input', '--prompt=a room', '--observed=0'}
  assert set(words('image', task='image')) == common | {'--input=input', '--prompt=a room'}
  sparse = {'--input=input', '--prompt=a room', '--sparsity=0.25'}
  assert set(words('video', task='sparse')) == common | sparse
  assert '--prompt=--out=/etc' in words(prompt=' --out=/etc ')


@pytest.mark.parametrize(
  ('kind', 'changes', 'message'),
  [
    (None, {'prompt': '  '}, 'nothing to go by'),
    (None, {'prompt': None}, 'nothing to go by'),
    (None, {'task': 'video'}, 'does not go with'),
    ('image', {'task': 'sparse'}, 'does not go with'),
    ('image', {'task': 'text'}, 'does not go with'),
    (None, {'task': 'other'}, 'does not go with'),
    (None, {'prompt': 'x' * 2001}, 'longer than 2000'),
    (None, {'prompt': 'a\0b'}, 'no text'),
    (None, {'frames': 137}, 'frames must be a number from 1 to 136'),
    (None, {'frames': 0}, 'frames must be'),
    (None, {'frames': None}, 'frames must be'),
    (None, {'steps': 2.5}, 'steps must be a whole number'),
    (None, {'steps': 10**9}, 'steps must be'),
    (None, {'guidance': float('nan')}, 'guidance must be'),
    (None, {'guidance': -1}, 'guidance must be'),
    (None, {'seed': -1}, 'seed must be'),
    (None, {'seed': '; rm -rf /'}, 'seed must be'),
    ('video', {'task': 'sparse', 'share': 0}, 'sparsity'),
  ],
)
def test_requests_that_no_page_would_send(kind, changes, message):
  with pytest.raises(UserError, match=message):
    words(kind, **changes)


@pytest.mark.parametrize(
  ('changes', 'name', 'text'),
  [
    ({}, 'focal length', '50 ± 0.5 pixels, 65.2° wide'),
    ({'focal_std': None}, 'focal length', '50 pixels, 65.2° wide'),
    ({'focal': None}, 'focal length', 'unknown'),
    ({}, 'residual', '0.2 mean, 0.3 worst frame'),
    ({'residual': [None]}, 'residual', 'unknown'),
    ({}, 'scale', 'unknown'),
    ({'scale': 2.5}, 'scale', '2.5 metres per unit'),
  ],
)
def test_facts_of_a_scene(tmp_path, changes, name, text):
  producers.write(tmp_path / 'scene', 'a room')
  file = tmp_path / 'scene' / 'run.json'
  run = json.loads(file.read_text())
  run['metric']['scale'] = changes.pop('scale', None)
  run['cameras'].update(changes)
  file.write_text(json.dumps(run))
  assert page._facts(json.loads((tmp_path / 'scene' / 'run.json').read_text()))[name] == text


def run(code: str, **settings) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, **settings)


def test_the_process_of_the_page_connects_to_nowhere():
  done = run(
    'import socket, sys\n'
    'from one4d_jax.app import server\n'
    'sys.addaudithook(server._stay_at_home)\n'
    'with socket.create_server(("127.0.0.1", 0)) as here: socket.create_connection(here.getsockname()).close()\n'
    'for call in (lambda: socket.create_connection(("192.0.2.1", 80)), lambda: socket.getaddrinfo("a.example", 1)):\n'
    '  try: call()\n'
    '  except PermissionError as error: print(error)\n'
  )
  assert done.stdout.split('\n')[:2] == [
    'the app looks up no name such as 192.0.2.1',
    'the app looks up no name such as a.example',
  ]


def test_mistakes_on_the_command_line(capsys, tmp_path):
  from one4d_jax import cli

  def say(*argv: str) -> str:
    assert cli.run(view.main, view.parser(), argv) == 2
    return capsys.readouterr().err

  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = str(taken.getsockname()[1])
    assert say('--app', '--port', port) == (
      f'error: the app cannot listen on 127.0.0.1:{port} (Address already in use); choose another --port or --host\n'
    )
  assert 'cannot listen on 127.0.0.1:99999' in say('--app', '--port', '99999')
  (tmp_path / 'file').touch()
  assert '--jobs' in say('--app', '--port', '0', '--jobs', str(tmp_path / 'file'))
  assert 'no weights at' in say('--app', '--port', '0', '--weights', str(tmp_path))
  assert '--keep must be 1' in say('--app', '--keep', '0')
  assert '--upload-limit above 0' in say('--app', '--upload-limit', 'nan')
  assert 'or --app to make scenes' in say()
  assert 'or --app to make scenes' in say('out', '--app')
  assert 'go with --app' in say('out', '--keep', '3')


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
  from one4d_jax import cli

  monkeypatch.setitem(sys.modules, 'gradio', None)
  assert cli.run(view.main, view.parser(), ['--app']) == 2
  assert "pip install '.[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('end', 'status', 'named'), [(signal.SIGINT, 0, False), (signal.SIGTERM, 143, True), (signal.SIGKILL, -9, False)]
)
def test_at_the_end_nothing_is_left_but_scenes_in_a_named_folder(tmp_path, capfd, end, status, named):
  folder = tmp_path / 'new' / 'jobs' if named else None
  code = (
    'import signal\n'
    'signal.signal(signal.SIGINT, signal.default_int_handler)\n'  # ignored by what a shell runs in the background
    'from one4d_jax.app import jobs, server\n'
    'class Busy(jobs.Jobs):\n'
    '  def __enter__(self):\n'
    '    super().__enter__().submit(["--prompt=wait never"])\n'
    '    return self\n'
    'server.Jobs = Busy\n'
    f'server.serve(port=0, folder={folder and str(folder)!r}, function={FAKE!r})'
  )
  with serving('-c', code, TMPDIR=str(tmp_path)) as (process, address):
    assert address.startswith('http://127.0.0.1:')
    started = eventually(lambda: children(process.pid))
    if named:
      (folder / 'old').mkdir()
    host, port = address.removeprefix('http://').split(':')
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=20)) as page_that_stays_open:
      page_that_stays_open.request('GET', '/gradio_api/heartbeat/somebody')
      assert page_that_stays_open.getresponse().status == 200
      process.send_signal(end)
      assert process.wait(20) == status
  eventually(lambda: all(map(gone, started)))
  said = capfd.readouterr().err
  assert 'Traceback' not in said and 'ERROR' not in said
  if named:
    assert os.listdir(folder) == ['old']
  elif end != signal.SIGKILL:
    assert os.listdir(tmp_path) == []


def test_a_token_is_asked_for_once(tmp_path):
  async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'the page'})

  guard = server.Guard(app, uploads=Uploads(tmp_path, limit=2**20), hosts=None, token='a-long-token')
  client = TestClient(guard, base_url='http://127.0.0.1', follow_redirects=False)
  for path in ('/', '/?token=', '/?token=another-token', '/scenes/a/scene.html?token=a-long-token', '/config'):
    assert client.get(path).status_code == 401
  assert client.get('/', headers=[(b'cookie', b'one4d_token=\xff; "=;')]).status_code == 401
  answer = client.get('/?token=a-long-token')
  assert answer.status_code == 303 and answer.headers['location'] == '/'
  assert 'HttpOnly; SameSite=Strict' in answer.headers['set-cookie']
  assert client.get('/').content == client.get('/config').content == b'the page'
  client = TestClient(guard, base_url='http://127.0.0.1', cookies={'one4d_token': 'a-long-token'})
  assert client.get('/scenes/a/scene.html').status_code == 200


def test_only_the_newest_pages_are_remembered(tmp_path, monkeypatch):
  monkeypatch.setattr(server, '_SESSIONS', 3)
  made, build = [], page.build
  monkeypatch.setattr(page, 'build', lambda *args, **more: made.append(build(*args, **more)) or made[0])
  with Jobs(tmp_path, FAKE) as jobs, Uploads(tmp_path, limit=2**20) as checked:
    server.build(jobs, checked, weights=EMBEDDED, host='127.0.0.1')
    sessions = made[0].state_holder
    for i in range(5):
      sessions[f'page-{i}']
    sessions.update('page-4')
  assert list(sessions.session_data) == ['page-2', 'page-3', 'page-4']


def test_short_tokens_are_refused():
  with pytest.raises(UserError, match='8 or more letters'):
    server.serve(token='1234')
