"""Traces for people."""

import gzip
import json

import jax.numpy as jnp

from one4d_jax import profile


def events(folder) -> set[str]:
  """Names of what a trace holds."""
  [file] = folder.rglob('perfetto_trace.json.gz')
  return {event.get('name') for event in json.loads(gzip.decompress(file.read_bytes()))['traceEvents']}


def test_a_trace_holds_what_ran_inside(tmp_path):
  with profile.trace(tmp_path):
    jnp.ones(8) @ jnp.ones(8)
  assert events(tmp_path)
  [xplane] = tmp_path.rglob('*.xplane.pb')
  assert xplane.stat().st_size > 1000


def test_steps_are_traced_from_the_first_to_the_last(tmp_path):
  made = lambda: list(tmp_path.rglob('*.xplane.pb'))
  with profile.Steps(tmp_path, 3, 2) as traced:
    for step in range(1, 7):
      traced.before(step)
      traced.after(step, jnp.ones(8) + step)
      assert bool(made()) == (step >= 4)
  assert len(made()) == 1


def test_a_loop_that_ends_early_closes_its_trace(tmp_path):
  with profile.Steps(tmp_path, 1) as traced:
    traced.before(1)
  assert list(tmp_path.rglob('*.xplane.pb'))


def test_no_folder_is_no_trace(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with profile.trace(None), profile.Steps(None, 1) as traced:
    traced.before(1)
    traced.after(3, jnp.ones(1))
  assert not list(tmp_path.iterdir())
