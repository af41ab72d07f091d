"""A mistake of the user is one line and status 2; a bug keeps its traceback."""

import argparse
import shlex
import subprocess
import sys

import pytest

from one4d_jax import cli, sample
from one4d_jax.errors import DataError


def parser():
  made = argparse.ArgumentParser(prog='x')
  made.add_argument('--steps', type=int, default=3)
  return made


def raiser(error):
  def main(args):
    raise error

  return main


def test_success_returns_zero_and_sees_the_arguments():
  seen = []
  assert cli.run(lambda args: seen.append(args.steps), parser(), ['--steps', '7']) == 0
  assert seen == [7]


@pytest.mark.parametrize(
  'error, line',
  [
    (DataError('clip.mp4 has\nno frames'), 'error: clip.mp4 has no frames'),
    (FileNotFoundError(2, 'No such file or directory', 'a.mp4'), 'error: a.mp4: No such file or directory'),
    (OSError('disk on fire'), 'error: disk on fire'),
    (KeyboardInterrupt(), 'error: interrupted'),
  ],
)
def test_user_errors_are_one_line(capsys, error, line):
  assert cli.run(raiser(error), parser(), []) == 2
  out, err = capsys.readouterr()
  assert (out, err) == ('', line + '\n')


@pytest.mark.parametrize('argv', [['--steps', 'many'], ['--stesp', '3'], ['stray']])
def test_bad_arguments_are_one_line(capsys, argv):
  assert cli.run(lambda args: None, parser(), argv) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ') and err.count('\n') == 1 and argv[-1] in err


def test_debug_raises():
  with pytest.raises(DataError):
    cli.run(raiser(DataError('x')), parser(), ['--debug'])


def test_bugs_are_not_swallowed():
  with pytest.raises(KeyError):
    cli.run(raiser(KeyError('x')), parser(), [])


def test_help_exits_zero(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.run(lambda args: None, parser(), ['--help'])
  assert stop.value.code == 0 and '--debug' in capsys.readouterr().out


@pytest.mark.parametrize('argv', [
  [],
  ['--prompt=-ball'],
  ['--prompt=--config.x=1', '--seed', '3', '--overwrite'],
  ['--metric', 'focal=30', '--metric', "it's", '--config', 'a.py', '--config.loss=l1', '--config.b=[1, 2]'],
])  # fmt: skip
def test_a_recorded_command_gives_the_same_arguments(argv):
  words = shlex.split(cli.command(sample.parser(), cli.parse(sample.parser(), argv)))
  assert words[:3] == ['python', '-m', 'one4d_jax.sample'] and len(words) == 3 + len(argv)
  assert cli.parse(sample.parser(), words[3:]) == cli.parse(sample.parser(), argv)


@pytest.mark.parametrize('name', ['encode', 'evaluate', 'export', 'plan', 'prepare', 'sample', 'train', 'view'])
def test_help_does_not_load_jax(name):
  run = f"runpy.run_module('one4d_jax.{name}', run_name='__main__')"
  code = f"import runpy, sys; sys.argv[1:] = ['--help']; sys.modules['jax'] = None; {run}"
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0 and 'usage:' in done.stdout, done
