"""Releases into bundles: what is written, what is refused, and what survives a kill."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from one4d_jax import cli
from one4d_jax.errors import CheckpointError
from one4d_jax.model import bundle as bundles
from one4d_jax.model import weights
from one4d_jax.nn import quantize
from one4d_jax.wan import dit
from tests.weight_conversion import release
from weight_conversion import command, reader, rules, wan_to_flax, writer
from weight_conversion.tables import TABLES
from weight_conversion.wan_to_flax import convert_release

ROOT = pathlib.Path(__file__).parent.parent.parent
ALL = tuple(release.FILES)
needs_torch = pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='.pth files need torch')


@pytest.fixture
def src(tmp_path):
  return release.write(tmp_path / 'src', ('base',))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def in_memory(part: str) -> dict:
  cfg, table = release.CONFIGS[part], TABLES[part]
  native = {k: v.astype(np.float32) for k, v in release.tensors(part).items()}
  return rules.convert(native, table.rules(cfg, 'native'), ignore=table.ignored(cfg, 'native'))


def same_trees(a, b) -> None:
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x, np.float32), y), a, b)


@needs_torch
def test_a_whole_release(tmp_path):
  src = release.write(tmp_path / 'src', shards=3)
  convert_release(src, tmp_path / 'dst', verify=True)
  bundle = bundles.load(tmp_path / 'dst')
  for part in ALL:
    same_trees(bundle.params[part], in_memory(part))
    assert TABLES[part].config(release_tensors(part), 'native', described(part)) == release.CONFIGS[part]
  config = bundle.config
  assert (config.dit, config.vae, config.text, config.image) == tuple(release.CONFIGS[part] for part in ALL)
  assert config.adapters.link_layers == (0, 1, 2, 3)
  assert bundle.params['base']['blocks']['ffn_in']['kernel'].dtype == jnp.bfloat16
  assert bundle.params['base']['blocks']['modulation'].dtype == jnp.float32
  assert bundle.params['vae']['encoder']['conv_in']['kernel'].dtype == jnp.float32
  assert (tmp_path / 'dst/tokenizer/spiece.model').read_bytes() == release.pieces()
  assert bundle.tokenizer(['a red ball'])[1].sum() > 3
  assert list(bundle.record) == list(ALL)


def release_tensors(part: str) -> dict[str, rules.Tensor]:
  return {name: rules.Tensor(value.shape, str(value.dtype)) for name, value in release.tensors(part).items()}


def described(part: str) -> dict:
  return {'num_heads': release.CONFIGS['base'].heads} if part == 'base' else {}


def test_the_manifest_can_be_checked_by_anyone(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',))
  folder = tmp_path / 'dst/base'
  manifest = json.loads((folder / 'manifest.json').read_text())
  sums = ''.join(f'{hashlib.sha256(c).hexdigest()}  {n}\n' for n, c in contents(folder).items() if n != 'manifest.json')
  assert (
    hashlib.sha256(''.join(sorted(sums.splitlines(True), key=lambda l: l[66:])).encode()).hexdigest()
    == (manifest['sha256'])
  )
  named = {name for file in manifest['files'].values() for name in file.get('from', ())}
  assert named == set(release.tensors('base'))


def test_progress_ends_at_the_total(src, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(command, 'bar', lambda total, name, quiet: Bar(seen, total))
  convert_release(src, tmp_path / 'dst', ('base',), int8=True, verify=True)
  assert len(seen) == 3 and all(total == sum(counts) for total, counts in seen)


class Bar:
  def __init__(self, seen, total):
    self.counts = []
    seen.append((total, self.counts))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def update(self, count):
    self.counts.append(count)


def test_orbax_alone_reads_it(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',), dtype='float32')
  same_trees(ocp.StandardCheckpointer().restore((tmp_path / 'dst/base').resolve()), in_memory('base'))


@pytest.mark.parametrize('prefix', reader.PREFIXES[:2])
def test_a_single_file_with_a_prefix(prefix, tmp_path):
  wrapped = {prefix + name: value for name, value in release.tensors('base').items()}
  safetensors.numpy.save_file(wrapped, tmp_path / 'wan_fun.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps({'num_heads': 2}))
  convert_release(tmp_path / 'wan_fun.safetensors', tmp_path / 'dst')
  same_trees(bundles.load(tmp_path / 'dst').params['base'], in_memory('base'))


@needs_torch
def test_prompts_can_be_left_as_they_are(tmp_path):
  src = release.write(tmp_path / 'src', ('text',))
  convert_release(src, tmp_path / 'dst', ('text',), raw_prompts=True)
  assert bundles.describe(tmp_path / 'dst')[0].text == dataclasses.replace(release.CONFIGS['text'], clean=False)


def test_dtypes(src, tmp_path):
  values = {}
  for dtype in ('bfloat16', 'float16', 'float32'):
    convert_release(src, tmp_path / dtype, ('base',), dtype=dtype)
    values[dtype] = weights.load(tmp_path / dtype / 'base')['blocks']['self_q']
    assert values[dtype]['kernel'].dtype == dtype
  np.testing.assert_array_equal(values['float32']['bias'], values['bfloat16']['bias'].astype(np.float32))
  rounded = np.asarray(values['float32']['kernel']).astype(np.float16)
  np.testing.assert_array_equal(values['float16']['kernel'], rounded)


def test_int8(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',), int8=True, verify=True)
  base = weights.load(tmp_path / 'dst/base')
  expected = quantize.quantize(np.asarray(in_memory('base')['blocks']['ffn_out']['kernel']))
  np.testing.assert_array_equal(base['blocks']['ffn_out']['kernel'].int8, expected.int8)
  np.testing.assert_allclose(base['blocks']['ffn_out']['kernel'].scale, expected.scale, rtol=1e-6)
  assert base['head']['out']['kernel'].dtype == jnp.bfloat16
  cfg = release.CONFIGS['base']
  x = jax.random.normal(jax.random.key(0), (1, 1, 4, 4, cfg.in_channels))
  text, image = jnp.ones((1, 3, cfg.text_width)), jnp.ones((1, 2, cfg.image_width))
  run = jax.jit(lambda base: dit.velocity(cfg, base, x, jnp.array([500.0]), text, image, precision=dit.FLOAT32))
  exact = run(jax.tree.map(jnp.asarray, in_memory('base')))
  assert float(jnp.abs(run(base) - exact).max() / jnp.abs(exact).max()) < 0.05


def test_large_leaves_are_cut_along_their_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(writer, 'BLOCK_BYTES', 1 << 10)
  pytest.importorskip('torch', reason='.pth files need torch')
  src = release.write(tmp_path / 'src', ('text',))
  convert_release(src, tmp_path / 'dst', ('text',), verify=True)
  same_trees(weights.load(tmp_path / 'dst/text'), in_memory('text'))
  assert len(list((tmp_path / 'dst/text/embedding/c').iterdir())) == 16


# -- Interruption and repetition


KILL = """
import os, signal, sys
sys.path.insert(0, {root!r})
from weight_conversion import wan_to_flax, writer
measure, seen = writer.measure, []
def killing(path):
  seen.append(path)
  if len(seen) == {after}:
    os.kill(os.getpid(), signal.SIGKILL)
  return measure(path)
writer.measure = killing
wan_to_flax.convert_release({src!r}, {dst!r}, ('base',))
"""


def test_a_killed_conversion_continues(src, tmp_path, monkeypatch):
  whole = convert_release(src, tmp_path / 'whole', ('base',)) / 'base'
  files = json.loads((whole / 'manifest.json').read_text())['files']
  code = KILL.format(root=str(ROOT), src=str(src), dst=str(tmp_path / 'dst'), after=len(files) // 2)
  killed = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert killed.returncode == -signal.SIGKILL
  partial = tmp_path / 'dst/base.partial'
  assert partial.is_dir() and not (tmp_path / 'dst/base').exists()
  with pytest.raises(CheckpointError, match='unfinished'):
    weights.locate(tmp_path / 'dst', 'base')
  written = len((partial / 'progress.jsonl').read_text().splitlines()) - 1
  assert len(files) // 4 < written < len(files)
  victim = next(iter(sorted((partial / 'blocks.ffn_in.kernel/c').rglob('*'), key=str, reverse=True)))
  victim.write_bytes(b'torn')  # a file that a crash left torn is made again

  read = []
  original = reader.Source.read
  monkeypatch.setattr(reader.Source, 'read', lambda self, *a: read.append(a[0]) or original(self, *a))
  convert_release(src, tmp_path / 'dst', ('base',))
  assert contents(tmp_path / 'dst/base') == contents(whole)
  assert len(read) < len(release.tensors('base')) - written + 10, 'finished tensors were read again'
  assert not partial.exists()


def test_killed_between_the_last_tensor_and_the_rename(src, tmp_path, monkeypatch):
  whole = convert_release(src, tmp_path / 'whole', ('base',)) / 'base'

  class Killed(BaseException):
    pass

  def kill(*_):
    raise Killed

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(writer, 'replace_folder', kill)
    convert_release(src, tmp_path / 'dst', ('base',))
  monkeypatch.setattr(reader.Source, 'read', kill)  # nothing is read again
  convert_release(src, tmp_path / 'dst', ('base',))
  assert contents(tmp_path / 'dst/base') == contents(whole)


def test_another_source_starts_over(src, tmp_path):
  (tmp_path / 'dst/base.partial').mkdir(parents=True)
  stale = {'about': {}, 'int8': False, 'source': []}
  (tmp_path / 'dst/base.partial/progress.jsonl').write_text(json.dumps(stale) + '\n["head.out.bias/c/0", {"bytes": 1}]')
  convert_release(src, tmp_path / 'dst', ('base',))
  same_trees(weights.load(tmp_path / 'dst/base'), in_memory('base'))


def test_what_is_there_is_kept_or_refused(src, tmp_path, capsys):
  convert_release(src, tmp_path / 'dst', ('base',))
  before = contents(tmp_path / 'dst')
  (tmp_path / 'dst/bundle.json').unlink()  # as if killed just before its writing
  convert_release(src, tmp_path / 'dst', ('base',), quiet=False)
  assert 'already there' in capsys.readouterr().out and contents(tmp_path / 'dst') == before
  with pytest.raises(CheckpointError, match=r'another conversion.*--overwrite'):
    convert_release(src, tmp_path / 'dst', ('base',), dtype='float32')
  assert contents(tmp_path / 'dst') == before
  convert_release(src, tmp_path / 'dst', ('base',), dtype='float32', overwrite=True)
  assert weights.read_manifest(tmp_path / 'dst/base')['dtype'] == 'float32'


# -- Damage: each is refused with a message of its own, before the destination exists


def refused(src, dst, parts=('base',), **options) -> str:
  with pytest.raises(CheckpointError) as error:
    convert_release(src, dst, parts, **options)
  assert not dst.exists()
  return str(error.value)


def change(src: pathlib.Path, edit) -> None:
  path = src / release.FILES['base']
  found = dict(safetensors.numpy.load_file(path))
  edit(found)
  safetensors.numpy.save_file(found, path)


def test_truncated(tmp_path):
  src = release.write(tmp_path / 'src', ('base',), shards=2)
  shard = src / 'diffusion_pytorch_model-00002-of-00002.safetensors'
  shard.write_bytes(shard.read_bytes()[:-100])
  message = refused(src, tmp_path / 'dst')
  assert shard.name in message and 'not a whole safetensors file' in message


def test_a_shard_or_its_index_is_missing(tmp_path):
  src = release.write(tmp_path / 'src', ('base',), shards=2)
  index = src / (release.FILES['base'] + '.index.json')
  text = json.loads(index.read_text())
  text['weight_map']['head.head.bias'] = 'diffusion_pytorch_model-00009-of-00002.safetensors'
  index.write_text(json.dumps(text))
  assert "lacks 1 of 3 shards: ['diffusion_pytorch_model-00009" in refused(src, tmp_path / 'dst')
  text['weight_map'].pop('head.head.bias')
  index.write_text(json.dumps(text))
  assert "disagree on ['head.head.bias']" in refused(src, tmp_path / 'dst')
  index.unlink()
  assert 'no diffusion_pytorch_model.safetensors.index.json' in refused(src, tmp_path / 'dst')


def test_other_formats_and_broken_descriptions(src, tmp_path):
  other = tmp_path / 'wan.gguf'
  other.write_bytes(b'GGUF')
  assert 'wan.gguf is neither a safetensors nor a torch file' in refused(other, tmp_path / 'dst')
  (src / 'config.json').write_text('{"dim": ')
  assert 'config.json is not JSON' in refused(src, tmp_path / 'dst')
  (src / 'config.json').write_text('{"dim": 64, "num_heads": 2}')
  assert 'dim is 64 there and 32 in the weights' in refused(src, tmp_path / 'dst')


def test_a_source_that_shrinks_and_a_disk_that_fails(src, tmp_path, monkeypatch):
  plan = wan_to_flax.plan_part

  def shrink(source, **options):
    planned = plan(source, **options)
    os.truncate(src / release.FILES['base'], 5000)
    return planned

  with monkeypatch.context() as patch:
    patch.setattr(wan_to_flax, 'plan_part', shrink)
    with pytest.raises(CheckpointError, match=r'ends inside .* start again'):
      convert_release(src, tmp_path / 'dst', ('base',))
  release.write(src, ('base',))
  create = writer.Stored.create

  def blocked(self, root, context):
    store = create(self, root, context)
    (root / self.folder / 'c').write_text('not a folder')
    return store

  with monkeypatch.context() as patch:
    patch.setattr(writer.Stored, 'create', blocked)
    with pytest.raises(CheckpointError, match=r'cannot be written .* run again to continue'):
      convert_release(src, tmp_path / 'dst', ('base',))
  assert not (tmp_path / 'dst/base').exists()


@pytest.mark.parametrize('place', ['sums', 'notes', 'cache'])
def test_a_flipped_byte_where_the_publisher_states_the_sum(place, src, tmp_path):
  path = src / release.FILES['base']
  good = hashlib.sha256(path.read_bytes()).hexdigest()
  if place == 'sums':
    (src / 'SHA256SUMS').write_text(f'{good}  {path.name}\n')
  elif place == 'notes':
    note = src / '.cache/huggingface/download' / f'{path.name}.metadata'
    note.parent.mkdir(parents=True)
    note.write_text(f'{"0" * 40}\n{good}\n1700000000.0\n')
  else:
    blob = tmp_path / 'blobs' / good
    blob.parent.mkdir()
    path.rename(blob)
    path.symlink_to(blob)
  shutil.copytree(src, tmp_path / 'kept', symlinks=True)
  convert_release(src, tmp_path / 'good', ('base',))
  about = weights.read_manifest(tmp_path / 'good/base')['source']['files']
  assert about == {path.name: {'bytes': path.stat().st_size, 'sha256': good}}
  data = bytearray(path.read_bytes())
  data[-3] ^= 1
  path.write_bytes(data)
  message = refused(src, tmp_path / 'dst')
  assert f'published is {good}' in message and 'download it again' in message


@needs_torch
def test_a_flipped_byte_in_a_torch_file(tmp_path):
  src = release.write(tmp_path / 'src', ('vae',))
  path = src / release.FILES['vae']
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert 'is damaged (Bad CRC-32' in refused(src, tmp_path / 'dst', ('vae',))


@needs_torch
def test_a_truncated_torch_file(tmp_path):
  src = release.write(tmp_path / 'src', ('vae',))
  path = src / release.FILES['vae']
  path.write_bytes(path.read_bytes()[:-200])
  assert 'not a whole torch file' in refused(src, tmp_path / 'dst', ('vae',))


class Trap:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@needs_torch
def test_a_pickled_function_is_not_run(tmp_path):
  src = release.write(tmp_path / 'src', ('vae',))
  found = {name: release.to_torch(value) for name, value in release.tensors('vae').items()}
  release.torch_save(found | {'trap': Trap(tmp_path / 'sprung')}, src / release.FILES['vae'])
  message = refused(src, tmp_path / 'dst', ('vae',))
  assert 'holds pickled code (posix.mkdir)' in message and not (tmp_path / 'sprung').exists()
  release.torch_save({'state': {'a': 1}}, src / release.FILES['vae'])
  assert "must be a flat dict of tensors; ['state'] are none" in refused(src, tmp_path / 'dst', ('vae',))


def test_names_shapes_and_dtypes_are_reported_together(src, tmp_path):
  def edit(found):
    del found['blocks.1.self_attn.q.weight']
    found['blocks.2.extra.weight'] = np.zeros(3, np.float32)
    found['blocks.3.ffn.0.bias'] = found['blocks.3.ffn.0.bias'][:-1]
    found['head.head.bias'] = found['head.head.bias'].astype(np.int32)

  change(src, edit)
  message = refused(src, tmp_path / 'dst')
  for part in ('blocks.1.self_attn.q.weight', 'blocks.2.extra.weight', 'blocks.3.ffn.0.bias [47] instead of [48]'):
    assert part in message
  assert 'head.head.bias int32' in message


def test_values_that_are_not_finite(src, tmp_path):
  change(src, lambda found: found['blocks.3.ffn.2.weight'].__setitem__((0, 0), np.nan))
  with pytest.raises(CheckpointError, match=r'blocks\.3\.ffn\.2\.weight holds NaN or infinite'):
    convert_release(src, tmp_path / 'dst', ('base',))
  assert not (tmp_path / 'dst/base').exists()


def test_float16_that_overflows(src, tmp_path):
  change(src, lambda found: found['blocks.0.ffn.0.weight'].__setitem__((0, 0), 1e6))
  with pytest.raises(CheckpointError, match=r'blocks\.0\.ffn\.0\.weight exceeds the range of float16'):
    convert_release(src, tmp_path / 'dst', ('base',), dtype='float16')


def test_parts_that_are_missing(src, tmp_path):
  message = refused(src, tmp_path / 'dst', ALL)
  assert 'lacks vae (Wan2.1_VAE' in message and 'umt5 (' in message and 'clip (' in message and '--part' in message
  assert 'dit' not in message.split('lacks')[1]
  assert 'does not exist' in refused(tmp_path / 'nowhere', tmp_path / 'dst')


@needs_torch
def test_parts_of_different_models(src, tmp_path, monkeypatch):
  convert_release(src, tmp_path / 'dst', ('base',))
  monkeypatch.setitem(release.CONFIGS, 'text', dataclasses.replace(release.CONFIGS['text'], width=16))
  other = release.write(tmp_path / 'other', ('text',))
  with pytest.raises(CheckpointError, match=r'takes text features of width 32, the text encoder makes 16'):
    convert_release(other, tmp_path / 'dst', ('text',))
  assert not (tmp_path / 'dst/text').exists()


@needs_torch
def test_a_part_into_a_bundle_that_was_trained(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',))
  sizes, record = bundles.describe(tmp_path / 'dst')
  bundles.write_description(tmp_path / 'dst', sizes, record | {'one4d': {'steps': 3}})
  convert_release(release.write(tmp_path / 'other', ('vae',)), tmp_path / 'dst', ('vae',))
  assert set(bundles.describe(tmp_path / 'dst')[1]) == {'base', 'one4d', 'vae'}


@needs_torch
def test_no_tokenizer(tmp_path):
  src = release.write(tmp_path / 'src', ('text',))
  shutil.rmtree(src / 'google')
  assert 'spiece.model' in refused(src, tmp_path / 'dst', ('text',))


def test_no_torch(tmp_path, monkeypatch):
  (tmp_path / 'src').mkdir()
  (tmp_path / 'src' / release.FILES['vae']).write_bytes(b'')
  find = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torch' else find(name))
  assert "pip install -e '.[convert]'" in refused(tmp_path / 'src', tmp_path / 'dst', ('vae',))


def test_no_room(src, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=1000))
  with pytest.raises(OSError, match=r'needs 0\.0 GB'):
    convert_release(src, tmp_path / 'dst', ('base',))
  assert not (tmp_path / 'dst').exists()


def test_verify_sees_a_changed_destination(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',))
  victim = next(file for file in (tmp_path / 'dst/base/blocks.self_q.kernel/c').rglob('*') if file.is_file())
  data = bytearray(victim.read_bytes())
  data[0] ^= 1
  victim.write_bytes(data)
  with pytest.raises(CheckpointError, match=r'contents differ.*blocks\.self_q\.kernel'):
    convert_release(src, tmp_path / 'dst', ('base',), verify=True)


def test_verify_sees_another_source(src, tmp_path):
  convert_release(src, tmp_path / 'dst', ('base',))
  change(src, lambda found: found['blocks.2.ffn.0.weight'].__setitem__((0, 0), 7))
  with pytest.raises(CheckpointError, match=r'1 tensors differ .*blocks\.2\.ffn\.0\.weight'):
    convert_release(src, tmp_path / 'dst', ('base',), verify=True)


# -- The command, and bundles of converted parts


def test_the_command(src, tmp_path, capsys):
  run = lambda *argv: cli.run(wan_to_flax.main, wan_to_flax.parser(), argv)
  assert run() == 0
  assert 'Wan2.1_VAE.pth' in capsys.readouterr().out
  where = ['--src', str(src), '--dst', str(tmp_path / 'dst')]
  assert run(*where, '--part', 'dit', '--verify') == 0
  assert 'bit for bit' in capsys.readouterr().out
  assert run(*where) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and error.startswith('error: ') and 'lacks vae' in error


def test_bundles_refer_to_converted_parts(src, tmp_path):
  convert_release(src, tmp_path / 'wan', ('base',))
  loaded = bundles.load(tmp_path / 'wan')
  trained = loaded.replace({'adapters': {'links': np.ones((1, 2), np.float32)}})
  bundles.save(trained, tmp_path / 'run/export')
  assert not list((tmp_path / 'run/export').glob('base*'))
  again = bundles.load(tmp_path / 'run/export')
  assert again.hashes['base'] == loaded.hashes['base'] and again.config == loaded.config
  same_trees(again.params['base'], in_memory('base'))
  change(src, lambda found: found['blocks.2.ffn.0.weight'].__setitem__((0, 0), 7))
  convert_release(src, tmp_path / 'wan', ('base',), overwrite=True)
  with pytest.raises(CheckpointError, match=r'was made with base weights .*train again'):
    bundles.load(tmp_path / 'run/export')
