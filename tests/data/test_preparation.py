"""Prepared sets: planned once, made in units that survive anything, sorted anew without the source."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess

import numpy as np
import pytest

from one4d_jax.data import curate, preparation, prepared, report, shards
from one4d_jax.data.preparation import Job
from one4d_jax.errors import DataError
from tests.data.sources.formats import tartanair

RECORDINGS, FRAMES, CUT = 3, 20, 9
SMALL = curate.Curation(frames=CUT, shortest=5, sizes=((32, 48),), held_out=0.0)
ANY = 1e9
OPEN = curate.Limits(  # lets everything through: what is filtered is asked of curate
  **dict.fromkeys(('fps', 'known', 'known_frame', 'nearest', 'path', 'dark'), 0.0),
  **dict.fromkeys(('consistency', 'consistency_long', 'consistency_seen'), 0.0),
  **dict.fromkeys(('sky', 'depth_range', 'farthest', 'rotation', 'translation', 'jump', 'bright', 'cut'), ANY),
  **dict.fromkeys(('pose_error', 'frozen', 'margin'), ANY),
  duplicate=-1.0,
)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  root = tmp_path_factory.mktemp('downloads')
  tartanair.write(root, recordings=RECORDINGS, frames=FRAMES, size=(48, 72))
  return root


@pytest.fixture
def job(source, tmp_path, monkeypatch):
  monkeypatch.setattr(preparation, '_UNIT', 2)
  return Job('tartanair', str(source), tmp_path / 'out', dataclasses.replace(SMALL, limits=OPEN))


def run(job: Job, **options) -> pathlib.Path:
  preparation._plan.cache_clear()  # one process stands in for several runs
  preparation._listed.cache_clear()
  preparation._recording.cache_clear()
  preparation.plan(job)
  preparation.work_off(job, **options)
  return preparation.finish(job)


def content(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != report.FILE}


def ids(folder: pathlib.Path, split: str) -> list[str]:
  return [row['id'] for row in prepared.open(folder, split).rows] if split in prepared.splits(folder) else []


def test_every_clip_is_there_once(job):
  made = run(job)
  found = [name for split in prepared.splits(made) for name in ids(made, split)]
  assert len(found) == len(set(found)) == RECORDINGS * (FRAMES // CUT)
  clip = prepared.open(made, 'train')[0]
  assert clip.rgb.shape == (CUT, 32, 48, 3) and clip.meta['source'] == 'tartanair'
  prepared.verify(made)


def test_the_same_again_makes_nothing(job, monkeypatch):
  made = run(job)
  before = {path: path.stat().st_mtime_ns for path in job.folder.rglob('*')}
  monkeypatch.setattr(preparation, 'make_unit', lambda *_: pytest.fail('a finished unit was made again'))
  assert run(job) == made
  assert {path: path.stat().st_mtime_ns for path in job.folder.rglob('*')} == before


def test_a_run_that_died_goes_on(job, monkeypatch, tmp_path):
  whole = content(run(dataclasses.replace(job, out=tmp_path / 'whole')))
  made, make = [], preparation.make_unit

  def dies(job, number):
    if len(made) == 1:
      raise KeyboardInterrupt
    made.append(number)
    return make(job, number)

  monkeypatch.setattr(preparation, 'make_unit', dies)
  with pytest.raises(KeyboardInterrupt):
    run(job)
  kept = {path: path.read_bytes() for path in job.work.glob('unit-*')}
  made.clear()
  monkeypatch.setattr(preparation, 'make_unit', lambda job, number: made.append(number) or make(job, number))
  again = run(job)
  assert made == [1, 2]
  assert all(path.read_bytes() == data for path, data in kept.items())
  assert {k: v for k, v in content(again).items() if 'array_record' in k} == {
    k: v for k, v in whole.items() if 'array_record' in k
  }


@pytest.mark.parametrize('lost', ['later', 'meanwhile', 'before a unit is made again'])
def test_a_source_that_is_away_costs_no_clip(job, monkeypatch, tmp_path, lost):
  source, away, make = tmp_path / 'disk', tmp_path / 'away', preparation.make_unit
  shutil.copytree(job.root, source)
  job = dataclasses.replace(job, root=str(source))

  def leaves(job, number):
    done = make(job, number)
    source.rename(away)
    if lost == 'later':
      raise KeyboardInterrupt
    return done

  if lost == 'before a unit is made again':
    run(job)
    source.rename(away)
    next(job.work.glob('unit-00001.*.array_record')).unlink()
  else:
    monkeypatch.setattr(preparation, 'make_unit', leaves)
    with pytest.raises((KeyboardInterrupt, DataError)):
      run(job)
    monkeypatch.undo()
    assert [path.name for path in job.work.glob('unit-*.json')] == ['unit-00000.json']
  with pytest.raises(DataError, match='disk'):
    run(job)
  away.rename(source)
  made = run(job)
  assert len(ids(made, 'train')) == RECORDINGS * (FRAMES // CUT) and not prepared.read_meta(made)['problems']


def test_a_folder_that_is_no_version_is_let_be(job):
  made = run(job)
  for name in ('1.0.0_old', '1.0.0.bak', '1.5.0-copy'):
    shutil.copytree(made, job.folder / name)
  assert run(job) == made
  limits = dataclasses.replace(OPEN, known=2.0)
  assert run(dataclasses.replace(job, curation=dataclasses.replace(job.curation, limits=limits))).name == '1.1.0'


def test_other_limits_make_a_new_version_without_the_source(job, tmp_path):
  source = shutil.copytree(job.root, tmp_path / 'copy')
  job = dataclasses.replace(job, root=str(source))
  first = run(job)
  before = content(first)
  shutil.rmtree(source)
  strict = dataclasses.replace(job.curation, limits=dataclasses.replace(OPEN, known=2.0))
  second = run(dataclasses.replace(job, curation=strict))
  assert (first.name, second.name) == ('1.0.0', '1.1.0')
  assert ids(first, 'train') == ids(second, 'dropped') and not ids(second, 'train')
  row = prepared.open(second, 'dropped').rows[0]
  assert row['reasons'] and row['statistics'] == prepared.open(first, 'train').rows[0]['statistics']
  assert content(first) == before, 'what was written stays as it is'
  prepared.verify(first)
  prepared.verify(second)
  third = run(job)
  assert ids(third, 'train') == ids(first, 'train')
  a, b = prepared.open(third, 'train')[1], prepared.open(first, 'train')[1]
  np.testing.assert_array_equal(a.depth, b.depth)


def test_other_clips_are_refused(job):
  run(job)
  with pytest.raises(DataError, match=r'begun with frames=9, now frames=5'):
    run(dataclasses.replace(job, curation=dataclasses.replace(job.curation, frames=5)))


def test_scenes_are_held_out_whole(job):
  made = run(dataclasses.replace(job, curation=dataclasses.replace(job.curation, held_out=1.0)))
  assert not ids(made, 'train') and len(ids(made, 'test')) == RECORDINGS * (FRAMES // CUT)


def test_copies_are_dropped(job, tmp_path):
  source = shutil.copytree(job.root, tmp_path / 'twice')
  environments = sorted(path for path in source.iterdir() if path.is_dir())
  shutil.copytree(environments[0], source / 'zz_copy')
  limits = dataclasses.replace(OPEN, duplicate=0.0)
  curation = dataclasses.replace(job.curation, limits=limits)
  made = run(dataclasses.replace(job, root=str(source), curation=curation))
  copies = [row for row in prepared.open(made, 'dropped').rows if 'duplicate' in row['reasons']]
  assert copies and all('zz_copy' in row['id'] for row in copies)
  assert all(environments[0].name in row['reasons']['duplicate'] for row in copies)


def damage(job: Job, tmp_path: pathlib.Path) -> tuple[Job, pathlib.Path]:
  source = shutil.copytree(job.root, tmp_path / 'damaged')
  image = sorted(source.rglob('image_left/*.png'))[3]
  image.write_bytes(image.read_bytes()[:200])
  return dataclasses.replace(job, root=str(source)), image


def test_a_damaged_file_costs_its_clip_and_is_named(job, tmp_path):
  whole = run(job)
  damaged, image = damage(dataclasses.replace(job, out=tmp_path / 'other'), tmp_path)
  made = run(damaged)
  problems = prepared.read_meta(made)['problems']
  assert len(problems) == 1 and image.name in problems[0]['problem']
  assert len(set(ids(whole, 'train')) - set(ids(made, 'train'))) == 1
  page = report.write(made)[0].read_text()
  assert image.name in page and 'could not be read' in page


def test_strict_stops_at_a_damaged_file(job, tmp_path):
  damaged, image = damage(job, tmp_path)
  with pytest.raises(DataError, match=image.name):
    run(dataclasses.replace(damaged, strict=True))


def test_processes_and_beam_make_the_same_files(job, tmp_path, monkeypatch):
  alone = content(run(job))
  monkeypatch.undo()  # workers are fresh processes: their units hold the usual number of clips
  several = content(run(dataclasses.replace(job, out=tmp_path / 'several'), workers=2))
  pytest.importorskip('apache_beam', reason="needs Apache Beam (pip install '.[beam]')")
  beam = content(run(dataclasses.replace(job, out=tmp_path / 'beam'), beam='--runner=DirectRunner'))
  assert several.keys() == beam.keys()
  assert {k: v for k, v in several.items() if 'array_record' in k} == {
    k: v for k, v in beam.items() if 'array_record' in k
  }
  assert several['clips.jsonl'] == beam['clips.jsonl'] == alone['clips.jsonl']


def die(job, number):
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported(job, monkeypatch):
  monkeypatch.setattr(preparation, 'make_unit', die)
  with pytest.raises(DataError, match='killed, most likely for lack of memory'):
    run(job, workers=2)
  assert not list(job.work.glob('unit-*'))


def test_a_full_disk_leaves_whole_units_and_the_work_goes_on(job, tmp_path, monkeypatch):
  disk = tmp_path / 'disk'
  disk.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=160k', 'tmpfs', disk], capture_output=True).returncode:
    pytest.skip('no right to mount a small disk')
  try:
    job = dataclasses.replace(job, out=disk)
    with pytest.raises((OSError, DataError)) as caught:
      run(job)
    assert getattr(caught.value, 'errno', errno.ENOSPC) == errno.ENOSPC and 'space' in str(caught.value)
    for unit in job.work.glob('unit-*.json'):
      for file in json.loads(unit.read_text())['files'].values():
        assert len(list(shards.read_file(job.work / file['file']))) == file['count']
    subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
    prepared.verify(run(job))
  finally:
    subprocess.run(['umount', disk], check=True)


def test_nothing_readable_is_an_error(job, tmp_path):
  source = shutil.copytree(job.root, tmp_path / 'damaged')
  for depth in source.rglob('depth_left/*.npy'):
    depth.write_bytes(b'')
  with pytest.raises(DataError, match=r'none of the 6 clips .*tartanair/.*\.npy.*; remove .*work to read them again$'):
    run(dataclasses.replace(job, root=str(source)))


def test_too_short_recordings_are_named(job):
  made = run(dataclasses.replace(job, curation=dataclasses.replace(job.curation, frames=17)))
  assert len(prepared.open(made, 'train')) == RECORDINGS
  with pytest.raises(DataError, match=r'none of the 0 clips .*: 20 frames are too short for a clip; remove'):
    run(
      dataclasses.replace(job, out=job.out / 'long', curation=dataclasses.replace(job.curation, frames=33, shortest=33))
    )


class Describer:
  """Stands in for a model: says how bright a clip is."""

  name = 'describer'
  asked = 0

  def __init__(self):
    self.rates = set()

  def __call__(self, frames, fps):
    self.asked += 1
    self.rates.add(fps * (CUT - 1) / (len(frames) - 1))  # of the clip
    return f'A scene of mean brightness {frames.mean():.2f}, seen by a camera that moves.'


def test_captions_make_a_version_and_are_asked_once(job):
  first, describer = run(job), Describer()
  made = preparation.caption(job, first, describer)
  source = prepared.open(made)
  assert (first.name, made.name, describer.asked) == ('1.0.0', '1.1.0', len(source))
  assert all('brightness' in source[i].caption for i in range(len(source)))
  assert describer.rates == {10.0}, 'the rate of the source, not the one asked for'
  assert prepared.open(first)[0].caption == ''
  assert preparation.caption(job, made, describer) == made == run(job) and describer.asked == len(source)
