"""All processes of a run meet at process 0 before JAX starts.

JAX's own wait for a missing process ends in an abort that does not say which one is missing. So process 0 listens first
on the port that JAX will use; the others connect and give their numbers. Once all are there the port is free again.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Iterable

from one4d_jax.errors import ConfigError

_PATIENCE = 5.0  # seconds before it is said whom we wait for, and for one attempt to connect
_RETRY = 0.2  # seconds between attempts
_LINE = 1 << 20  # bytes; no message is longer


def meet(coordinator: str, processes: int, process: int, *, timeout: float) -> None:
  """Returns when all of ``processes`` are there.

  Args:
    coordinator: ``HOST:PORT`` of process 0.
    timeout: seconds.

  Raises:
    ConfigError: in every process that came, with the numbers of those that did not; a number taken twice or another
      count of processes; a port in use; process 0 out of reach.
  """
  host, port = split(coordinator)
  if process == 0:
    _receive(port, processes, timeout)
  else:
    _join(host, port, {'process': process, 'processes': processes}, timeout)


def split(coordinator: str) -> tuple[str, int]:
  """``HOST:PORT``, where an IPv6 address stands in brackets.

  Raises:
    ConfigError: it is not that.
  """
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise ConfigError(f'coordinator {coordinator!r} is no HOST:PORT, for example 10.0.0.1:8476')
  return host.strip('[]'), int(port)


# -- Process 0 ---------------------------------------------------------------------------------------------------------


def _receive(port: int, processes: int, timeout: float) -> None:
  """Collects the others, then tells each of them how it ended: an empty message if all is well."""
  both = socket.has_dualstack_ipv6()
  try:
    server = socket.create_server(
      ('', port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=processes
    )
  except OSError as error:
    why = os.strerror(error.errno)
    raise ConfigError(
      f'process 0 cannot listen on port {port} of this machine ({why}); give all processes another one'
    ) from error
  waiting: dict[int, socket.socket] = {}
  with server, selectors.DefaultSelector() as selector:
    selector.register(server, selectors.EVENT_READ)
    try:
      _collect(server, selector, waiting, processes, timeout)
      problem = ''
    except ConfigError as error:
      problem = str(error)
      raise
    except BaseException:
      problem = 'process 0 was interrupted while it waited'
      raise
    finally:
      for key in [*selector.get_map().values()]:
        if key.fileobj is not server:
          _send(key.fileobj, {'problem': problem})
          key.fileobj.close()


def _collect(server, selector, waiting: dict, processes: int, timeout: float) -> None:
  start, told = time.monotonic(), _PATIENCE
  while missing := sorted(set(range(1, processes)) - set(waiting)):
    past = time.monotonic() - start
    if past > timeout:
      raise ConfigError(
        f'{numbers(missing)} of {processes} did not come within {timeout:g} s ({numbers([0, *sorted(waiting)])} did); '
        'see what they printed, then start all of them again; --start-timeout waits longer'
      )
    if past > told:
      say(f'waiting for {numbers(missing)} of {processes} on port {server.getsockname()[1]}')
      told += 6 * _PATIENCE
    for key, _ in selector.select(min(_RETRY, timeout)):
      if key.fileobj is server:
        connection, _ = server.accept()
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
      else:
        _hear(key.fileobj, selector, waiting, processes)


def _hear(connection, selector, waiting: dict, processes: int) -> None:
  """One process gives its number, or is gone. Whoever else connects (a port scanner) is sent away."""
  try:
    hello = json.loads(connection.recv(_LINE))  # short enough for one packet; empty if the other side is gone
    number, count = hello['process'], hello['processes']
  except (OSError, ValueError, TypeError, KeyError):
    for gone in [n for n, other in waiting.items() if other is connection]:
      del waiting[gone]
    selector.unregister(connection)
    connection.close()
    return
  if count != processes:
    raise ConfigError(f'process {number} was started as one of {count} processes, process 0 as one of {processes}')
  if number in waiting:
    raise ConfigError(f'two processes have the number {number}; each needs its own, from 0 to {processes - 1}')
  waiting[number] = connection


# -- The others --------------------------------------------------------------------------------------------------------


def _join(host: str, port: int, hello: dict, timeout: float) -> None:
  """Tries until process 0 answers; then process 0 decides how long to wait."""
  start, told = time.monotonic(), _PATIENCE
  why = ''
  while (past := time.monotonic() - start) <= timeout:
    try:
      with socket.create_connection((host, port), timeout=_PATIENCE) as connection:
        connection.settimeout(timeout + _PATIENCE)
        _send(connection, hello)
        answer = connection.makefile('rb').readline(_LINE)
    except OSError as error:
      answer, why = b'', error.strerror or str(error)
    if answer:
      _obey(answer, f'{host}:{port}')
      return
    if past > told:
      say(f'waiting for process 0 at {host}:{port}: {why or "it went away"}')
      told += 6 * _PATIENCE
    time.sleep(_RETRY)
  raise ConfigError(
    f'process 0 did not answer at {host}:{port} within {timeout:g} s ({why or "it went away"}); is it running, and is '
    'this its address as seen from here?'
  )


def _obey(answer: bytes, address: str) -> None:
  try:
    problem = json.loads(answer)['problem']
  except (ValueError, TypeError, KeyError):
    raise ConfigError(
      f'{address} answers, but not as a process 0 that waits for others: another program has that port, or the run '
      'began without this process; stop all of them and start again'
    ) from None
  if problem:
    raise ConfigError(problem)


# -- Both --------------------------------------------------------------------------------------------------------------


def numbers(processes: Iterable[int]) -> str:
  """``process 3`` or ``processes 1, 3``."""
  processes = [*processes]
  return f'process{"es" if len(processes) > 1 else ""} {", ".join(map(str, processes))}'


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _send(connection: socket.socket, message: dict) -> None:
  with contextlib.suppress(OSError):  # gone; whoever reads nothing finds out
    connection.sendall(json.dumps(message).encode() + b'\n')
