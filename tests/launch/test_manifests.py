"""The Kubernetes manifests: JobSet's own part against its schema, what it contains against those of Kubernetes."""

import copy
import json
import pathlib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ['gpu', 'tpu']
KUBERNETES = '1.33'


def manifest(name: str) -> dict:
  return yaml.safe_load((ROOT / f'launch/gke/{name}.yaml').read_text())


def template(jobset: dict) -> dict:
  (workers,) = jobset['spec']['replicatedJobs']
  return workers['template']


def validate(jobset: dict) -> None:
  jsonschema = pytest.importorskip('jsonschema', reason='needs jsonschema (pip install kubernetes-validate)')
  kubernetes = pytest.importorskip('kubernetes_validate', reason='needs kubernetes-validate')
  jsonschema.validate(jobset, json.loads((pathlib.Path(__file__).parent / 'jobset.schema.json').read_text()))
  job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'one4d'}, **template(jobset)}
  kubernetes.validate(job, KUBERNETES, strict=True)
  pod = {'apiVersion': 'v1', 'kind': 'Pod', 'metadata': {'name': 'one4d'}, **job['spec']['template']}
  kubernetes.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize('name', NAMES)
def test_schema(name):
  validate(manifest(name))


@pytest.mark.parametrize(
  'change',
  [
    lambda j: j.update(kind='Jobset'),
    lambda j: j['spec'].update(coordinater={}),
    lambda j: j['spec']['failurePolicy'].update(maxRestarts='20'),
    lambda j: template(j)['spec'].update(completion=2),
    lambda j: template(j)['spec']['template']['spec'].update(restart='Never'),
    lambda j: template(j)['spec']['template']['spec']['containers'][0].pop('name'),
  ],
)
def test_the_schemas_see_a_mistake(change):
  broken = copy.deepcopy(manifest('gpu'))
  change(broken)
  with pytest.raises(Exception, match=r'(?i)valid|expected|required|allowed'):
    validate(broken)


@pytest.mark.parametrize('name', NAMES)
def test_places_fit(name):
  jobset = manifest(name)
  job = template(jobset)['spec']
  (container,) = job['template']['spec']['containers']
  env = {e['name']: e.get('value') for e in container['env']}
  assert job['completions'] == job['parallelism'] and job['completionMode'] == 'Indexed'
  assert (ROOT / 'launch/env' / f'{env["ONE4D_MACHINE"]}.sh').is_file()
  assert container['command'] == ['bash', 'launch/train.sh'] and (ROOT / container['command'][1]).is_file()
  workdir = container['args'][container['args'].index('--workdir') + 1]
  assert env['FINISHED_BY'] == f'{workdir}/export'
  mounted = {m['name'] for m in container['volumeMounts']}
  assert mounted == {v['name'] for v in job['template']['spec']['volumes']}
  if name == 'gpu':
    assert int(env['JAX_NUM_PROCESSES']) == job['completions']
    assert jobset['spec']['coordinator']['replicatedJob'] == jobset['spec']['replicatedJobs'][0]['name']
    assert env['JAX_COORDINATOR_ADDRESS'] == f'$(COORDINATOR):{container["ports"][0]["containerPort"]}'
