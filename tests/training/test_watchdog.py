"""The watchdog, in processes of their own: it ends them."""

import subprocess
import sys
import textwrap
import time

import pytest

PRELUDE = """
import sys, time, ctypes
from one4d_jax.training.watchdog import Watchdog

def stuck(seconds=60):
  time.sleep(seconds)

def watchdog(seconds):
  return Watchdog(seconds, lambda text: print(text, file=sys.stderr))
"""


def run(code: str) -> tuple[subprocess.CompletedProcess, float]:
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', PRELUDE + textwrap.dedent(code)], capture_output=True, text=True, timeout=50, check=False
  )
  return done, time.monotonic() - start


def test_a_hung_step_ends_the_process_and_shows_where():
  done, _ = run("""
    with watchdog(0.5) as dog:
      for step in range(1, 5):
        time.sleep(0.2)
        dog.beat(step)
      stuck()
  """)
  assert done.returncode == 75
  assert 'step 5 hangs: nothing for 0.5 s (train.hang_seconds)' in done.stderr
  assert 'in stuck' in done.stderr and 'watchdog.py' in done.stderr, 'the stacks of all threads'


def test_the_first_step_may_take_ten_times_as_long():
  done, _ = run("""
    with watchdog(0.3) as dog:
      time.sleep(1.0)
      dog.beat(101)
  """)
  assert done.returncode == 0, done.stderr
  done, took = run('with watchdog(0.1):\n  stuck()')
  assert done.returncode == 75 and 'the first step hangs: nothing for 1 s' in done.stderr and took < 30


@pytest.mark.parametrize(
  'code',
  [
    'with watchdog(0):\n  time.sleep(0.5)',
    'with watchdog(0.2) as dog:\n  dog.beat(1)\n  with dog.paused():\n    time.sleep(1)\n  dog.beat(2)',
    'with watchdog(0.2) as dog:\n  dog.beat(1)\ntime.sleep(1)',
  ],
  ids=['off', 'paused', 'left'],
)
def test_it_leaves_alone_what_it_does_not_watch(code):
  done, _ = run(code)
  assert done.returncode == 0 and not done.stderr


def test_a_pause_ends():
  done, _ = run("""
    with watchdog(0.2) as dog:
      dog.beat(7)
      with dog.paused():
        time.sleep(0.5)
      stuck()
  """)
  assert done.returncode == 75 and 'step 8 hangs' in done.stderr


def test_an_error_is_not_held_up():
  done, _ = run('with watchdog(30):\n  raise KeyError("lost")')
  assert done.returncode == 1 and "KeyError: 'lost'" in done.stderr


def test_it_ends_the_process_even_when_it_cannot_speak():
  done, _ = run("""
    def mute(text):
      raise BrokenPipeError

    with Watchdog(0.2, mute) as dog:
      dog.beat(1)
      stuck()
  """)
  assert done.returncode == 75


def test_native_code_that_holds_the_lock_is_ended_too():
  done, took = run("""
    with watchdog(0.5) as dog:
      dog.beat(1)
      ctypes.PyDLL(None).sleep(40)
  """)
  assert done.returncode == 1 and 'Timeout' in done.stderr and took < 30
