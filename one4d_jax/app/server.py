"""What the app makes reachable, and to whom: the page, and the files of a scene to those who know its id.

Nothing outside of finished scenes is served, the program never connects to anywhere, and requests are bounded in
size. There are no accounts: who reaches the port may use the page, unless a token is asked for.
"""

import contextlib
import http.cookies
import importlib.util
import io
import ipaddress
import logging
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterator

from one4d_jax.app.jobs import Jobs
from one4d_jax.app.uploads import Uploads
from one4d_jax.errors import DataError, UserError
from one4d_jax.model.files import EMBEDDED

_MAKE = 'one4d_jax.app.tasks:produce'

# What the page asks for; gradio has more doors than that.
_PATHS = re.compile(
  r'/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)/.*|/scenes/[\w-]+/[\w.-]+'
  r'|/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|reset|heartbeat/\w+|startup-events)'
)
_UPLOAD = '/gradio_api/upload'
_COOKIE = 'one4d_token'
_SMALL = 2**20  # bytes: the most that any other request may bring
_SESSIONS = 1000  # pages that are remembered, the newest; gradio takes 0.2 MB for each, and would keep 10,000

# A scene's page runs its own scripts, but not in the name of ours.
_HEADERS = {
  'Content-Security-Policy': "sandbox allow-scripts allow-downloads; frame-ancestors 'self'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'private, max-age=3600',
}


def serve(
  *,
  host: str = '127.0.0.1',
  port: int = 8080,
  weights: str | pathlib.Path = EMBEDDED,
  folder: str | None = None,
  keep: int = 20,
  upload_limit: float = 500.0,
  token: str | None = None,
  function: str = _MAKE,
) -> None:
  """Serves the page until it is interrupted.

  Args:
    weights: a bundle.
    folder: of the jobs, whose scenes then stay; None: a temporary one that is deleted at the end.
    keep: number of newest scenes that are kept.
    upload_limit: of one file, in MB (2**20 bytes).
    token: what a browser must bring once, in the link; empty makes one up; None asks for none.
    function: makes a scene; see ``jobs.Jobs``.

  Raises UserError where gradio is missing, the port is taken or the folder cannot be written.
  """
  if keep < 1 or not upload_limit > 0:
    raise UserError('--keep must be 1 or more, and --upload-limit above 0')
  token = secrets.token_urlsafe(16) if token == '' else token
  if token is not None and not re.fullmatch(r'[\w-]{8,}', token):
    raise UserError('--token must be 8 or more letters, digits, - and _; without a value one is made up')
  if any(importlib.util.find_spec(name) is None for name in ('gradio', 'uvicorn')):
    raise UserError("the app needs gradio; install it with: pip install '.[app]'")
  with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that this block is left
    stack.callback(signal.signal, signal.SIGTERM, before)
    listener = stack.enter_context(_listen(host, port))
    home = stack.enter_context(_home(folder))
    uploads = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='.uploads-', dir=home)))
    os.environ['GRADIO_TEMP_DIR'] = str(uploads)  # before it is imported: it makes folders as it starts
    import uvicorn

    limit = int(upload_limit * 2**20)
    jobs = stack.enter_context(Jobs(home, function, keep=keep))
    checked = stack.enter_context(Uploads(uploads, limit=limit))
    app = build(jobs, checked, weights=pathlib.Path(weights), host=host, token=token)
    sys.addaudithook(_stay_at_home)
    link = f'/?token={token}' if token else ''
    print(f'http://{_shown(host)}:{listener.getsockname()[1]}{link}  (Ctrl-C to end)', flush=True)
    if not _is_local(host) and not token:
      print('note: everyone who can reach this address can use the page; --token asks for one', flush=True)
    config = uvicorn.Config(app, log_level='warning', loop='asyncio', timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    # It ends the connections of pages that are open, and would print a traceback for each.
    logging.getLogger('uvicorn.error').addFilter(lambda _: not web.should_exit)
    web.run(sockets=[listener])


def build(jobs: Jobs, uploads: Uploads, *, weights: pathlib.Path, host: str, token: str | None = None):
  """The ASGI application."""
  import fastapi
  import gradio

  from one4d_jax.app import page

  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

  @app.get('/scenes/{id}/{name}')
  def scene_file(id: str, name: str):
    folder = jobs.scene(id)
    if folder is not None and name == page.ARCHIVE:
      headers = {**_HEADERS, 'Content-Disposition': f'attachment; filename="{page.ARCHIVE}"'}
      return fastapi.responses.StreamingResponse(archive(folder), media_type='application/zip', headers=headers)
    if folder is None or name not in {path.name for path in folder.glob('*') if path.is_file()}:
      raise fastapi.HTTPException(404)
    return fastapi.responses.FileResponse(folder / name, headers=_HEADERS)

  made = page.build(jobs, uploads, weights=weights)
  made.state_session_capacity = _SESSIONS
  made.has_launched = True  # only then does gradio refuse requests that name another file of this machine as an upload
  gradio.mount_gradio_app(
    app,
    made,
    path='/',
    footer_links=[],
    run_history=False,
    enable_monitoring=False,
    mcp_server=False,
    ssr_mode=False,
    pwa=False,
    show_error=False,
    max_file_size=uploads.limit,
    **page.look(),
  )
  hosts = (host, '127.0.0.1', 'localhost', '::1') if _is_local(host) else None
  return Guard(app, uploads=uploads, hosts=hosts, token=token)


class Guard:
  """ASGI middleware: only paths the page needs, bodies of bounded size, a host name that is ours, and the token.

  Uploads stop while the disk has no room for two of the largest: scenes need some as well.

  The host name keeps a foreign web page from reaching a local server by a name that it points at 127.0.0.1. The token
  comes with the first request for the page and stays in a cookie.
  """

  def __init__(self, app, *, uploads: Uploads, hosts: tuple[str, ...] | None, token: str | None = None):
    self._app, self._uploads, self._hosts, self._token = app, uploads, hosts, token

  async def __call__(self, scope, receive, send) -> None:
    if scope['type'] == 'lifespan':
      return await self._app(scope, receive, send)
    if scope['type'] != 'http':
      return await send({'type': 'websocket.close'})
    headers = dict(scope['headers'])
    left = self._uploads.limit + _SMALL if scope['path'] == _UPLOAD else _SMALL
    if self._hosts and _host_name(headers.get(b'host', b'').decode('latin-1')) not in self._hosts:
      return await _answer(send, 421)
    if not _PATHS.fullmatch(scope['path']):
      return await _answer(send, 404)
    if self._token and not self._right(_cookie(headers)):
      given = urllib.parse.parse_qs(scope['query_string'].decode('latin-1')).get('token', [''])[0]
      if scope['path'] != '/' or not self._right(given):
        return await _answer(send, 401)
      cookie = f'{_COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/'
      return await _answer(send, 303, (b'location', b'/'), (b'set-cookie', cookie.encode()))
    if int(headers.get(b'content-length', b'0')) > left:
      return await _answer(send, 413)
    if scope['path'] == _UPLOAD and shutil.disk_usage(self._uploads.folder).free < 2 * left:
      return await _answer(send, 507, text='the disk of this app is nearly full; try again later')

    async def bounded():
      nonlocal left
      message = await receive()
      left -= len(message.get('body', b''))
      return message if left >= 0 else {'type': 'http.disconnect'}

    await self._app(scope, bounded, send)

  def _right(self, given: str) -> bool:
    return secrets.compare_digest(given.encode(), self._token.encode())


def archive(folder: pathlib.Path) -> Iterator[bytes]:
  """The files of a folder as a zip, piece by piece, stored: they are compressed already."""
  sink = _Sink()
  with zipfile.ZipFile(sink, 'w', zipfile.ZIP_STORED) as stored:
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
      info = zipfile.ZipInfo.from_file(path, path.relative_to(folder.parent))
      with path.open('rb') as source, stored.open(info, 'w', force_zip64=True) as target:
        while piece := source.read(2**20):
          target.write(piece)
          yield sink.take()
  yield sink.take()


class _Sink(io.RawIOBase):
  """Holds what was written until it is taken; cannot seek, so that zipfile never goes back."""

  def __init__(self):
    self._held = bytearray()

  def writable(self) -> bool:
    return True

  def write(self, data) -> int:
    self._held += data
    return len(data)

  def take(self) -> bytes:
    held = bytes(self._held)
    self._held.clear()
    return held


async def _answer(send, status: int, *headers: tuple[bytes, bytes], text: str = '') -> None:
  headers = [(b'content-type', b'text/plain'), *headers]
  await send({'type': 'http.response.start', 'status': status, 'headers': headers})
  await send({'type': 'http.response.body', 'body': (text or str(status)).encode()})


def _cookie(headers: dict[bytes, bytes]) -> str:
  """The token that a request brings."""
  try:
    found = http.cookies.SimpleCookie(headers.get(b'cookie', b'').decode('latin-1')).get(_COOKIE)
  except http.cookies.CookieError:
    return ''
  return found.value if found else ''


def _host_name(header: str) -> str:
  """Without the port: 'a:80' -> 'a', '[::1]:80' -> '::1'."""
  return header[1:].partition(']')[0] if header.startswith('[') else header.partition(':')[0]


def _shown(host: str) -> str:
  return f'[{host}]' if ':' in host else host


def _is_local(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def _listen(host: str, port: int) -> socket.socket:
  """A bound, listening socket; port 0 takes any free one."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family, backlog=128)
  except (OSError, OverflowError) as error:
    reason = str(getattr(error, 'strerror', None) or error).partition(' (')[0]
    raise DataError(f'the app cannot listen on {host}:{port} ({reason}); choose another --port or --host') from error


@contextlib.contextmanager
def _home(folder: str | None) -> Iterator[pathlib.Path]:
  """The folder of the jobs."""
  if folder is None:
    with tempfile.TemporaryDirectory(prefix='one4d-') as made:
      yield pathlib.Path(made)
    return
  path = pathlib.Path(folder).expanduser().resolve()
  try:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise DataError(f'--jobs {folder} cannot be written ({error.strerror}); name another folder') from error
  yield path


def _stay_at_home(event: str, args: tuple) -> None:
  """An audit hook: gradio would fetch whatever address a request names; this process connects to nowhere."""
  if event == 'socket.connect' and isinstance(args[1], tuple) and not _is_local(str(args[1][0])):
    raise PermissionError(f'the app makes no connection to {args[1][0]}')
  if event == 'socket.getaddrinfo' and args[0] is not None and not _is_local(str(args[0])):
    raise PermissionError(f'the app looks up no name such as {args[0]}')
