"""The command ``prepare``: what a user sees of it."""

import pathlib

import numpy as np
import pytest

from one4d_jax import cli, prepare
from one4d_jax.data import prepared
from one4d_jax.data.sources import NAMES
from one4d_jax.viewer import scene as scenes
from tests.data.sources.formats import tartanair

FITTING = ('--config.frames=9', '--config.shortest=9', '--config.sizes=[[48,64]]', '--workers=1')


def run(capsys, *argv) -> tuple[int, str, str]:
  status = cli.run(prepare.main, prepare.parser(), [str(word) for word in argv])
  out, err = capsys.readouterr()
  return status, out, err


@pytest.fixture(scope='module')
def downloads(tmp_path_factory):
  root = tmp_path_factory.mktemp('downloads')
  tartanair.write(root, recordings=1, frames=18, size=(96, 128))
  return root


@pytest.fixture(scope='module')
def made(downloads, tmp_path_factory):
  out = tmp_path_factory.mktemp('data')
  argv = ('--source', 'tartanair', '--root', str(downloads), '--out', str(out), *FITTING)
  assert cli.run(prepare.main, prepare.parser(), argv) == 0
  return out / 'tartanair/1.0.0'


def test_from_downloads_to_a_set_and_its_page(capsys, downloads, tmp_path):
  status, out, err = run(capsys, '--source', 'tartanair', '--root', downloads, '--out', tmp_path, *FITTING)
  *counts, folder, page = out.splitlines()
  assert status == 0 and folder == str(tmp_path / 'tartanair/1.0.0')
  assert len(prepared.open(folder)) == 2 and any('train' in line and '2' in line for line in counts)
  assert '<img' in pathlib.Path(page).read_text()
  assert 'prepare: 100%' in err


def test_inspect_and_a_record_as_a_scene(capsys, made, tmp_path):
  status, out, _ = run(capsys, '--inspect', made, '--record', 1, '--out', tmp_path / 'scene')
  assert status == 0 and 'tartanair' in out and str(tmp_path / 'scene' / 'scene.html') in out
  clip, scene = prepared.open(made)[1], scenes.load(tmp_path / 'scene')
  np.testing.assert_array_equal(scene.rgb, clip.rgb)
  np.testing.assert_array_equal(scene.depth, clip.depth)
  assert scene.observed.all() and scene.scale == 1
  again = ('--inspect', made, '--record', 0, '--out', tmp_path / 'scene')
  status, _, err = run(capsys, *again)
  assert status == 2 and '--overwrite' in err
  assert run(capsys, *again, '--overwrite')[0] == 0
  np.testing.assert_array_equal(scenes.load(tmp_path / 'scene').rgb, prepared.open(made)[0].rgb)


def test_verify(capsys, made, tmp_path):
  status, out, _ = run(capsys, '--verify', made)
  assert status == 0 and 'matches' in out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ((), f'give one of --source ({", ".join(NAMES)}), --verify or --inspect'),
    (('--source', 'tartanair'), '--source needs --root and --out'),
    (('--source', 'kitti', '--root', 'x', '--out', 'y'), 'invalid choice'),
    (('--source', 'tartanair', '--root', 'nowhere', '--out', 'y'), 'nowhere'),
    (('--source', 'tartanair', '--root', '.', '--out', 'y', '--workers', '0'), 'at least 1; got 0'),
    (('--source', 'tartanair', '--root', '.', '--out', 'y', '--config.frames=10'), 'frames=10 must be 4n+1'),
    (('--source', 'tartanair', '--root', '.', '--out', 'y', '--config.limits.blur=1'), "key 'limits.blur'"),
    (('--source', 'tartanair', '--root', '.', '--out', 'y', '--captions', 'gpt'), 'gpt'),
    (('--verify', 'x', '--inspect', 'y'), 'give one of'),
    (('--verify', 'nowhere'), 'nowhere is no prepared set'),
    (('--inspect', 'x', '--record', '3'), '--record needs --out'),
    (('--inspect', 'nowhere'), 'nowhere holds no data set'),
  ],
)  # fmt: skip
def test_mistakes_are_one_line_before_any_work(capsys, tmp_path, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  status, out, err = run(capsys, *argv)
  assert status == 2 and not out
  assert err.startswith('error: ') and err.count('\n') == 1 and message in err
  assert not list(tmp_path.iterdir())
