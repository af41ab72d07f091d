"""From a downloaded data set to a prepared one: plan, units of work, and the versioned set that they make.

  OUT/SOURCE/work/plan.json                    every clip there is to cut, in order
  OUT/SOURCE/work/unit-00012.{json,SPLIT.array_record}   32 of them: statistics and records of what could be read
  OUT/SOURCE/captions.jsonl                    texts that a model wrote
  OUT/SOURCE/1.0.0/                            the set: hard links to the units' files, see ``prepared``

A unit is whole or absent, so work that was stopped goes on where it was, on any machine that sees the folder. Clips
that the filters drop are kept in a split of their own: other limits make a new version of what is there, without the
source.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

from one4d_jax.data import captioners, captioning, codec, curate, prepared, shards, sources
from one4d_jax.data.sources.recording import Recording, cuts
from one4d_jax.errors import DataError
from one4d_jax.model.files import write_whole

WORK, PLAN, CAPTIONS = 'work', 'plan.json', 'captions.jsonl'
SPLITS = ('train', 'test', 'dropped')
_UNIT = 32  # clips: some 0.8 GB at 81x352x624


@dataclasses.dataclass(frozen=True)
class Job:
  """What to prepare, and where; small, as every worker gets it.

  Attributes:
    out: where sets go, each into a folder of its source's name.
    strict: what cannot be read stops the work; otherwise it is left out, counted and named.
  """

  source: str
  root: str
  out: pathlib.Path
  curation: curate.Curation
  strict: bool = False

  @property
  def folder(self) -> pathlib.Path:
    return self.out / self.source

  @property
  def work(self) -> pathlib.Path:
    return self.folder / WORK

  @property
  def units(self) -> int:
    return -(-len(_plan(self)['clips']) // _plan(self)['unit'])


# -- Plan -------------------------------------------------------------------------------------------------------------


def plan(job: Job, *, limit: int | None = None) -> dict:
  """The plan of a job: the one that was begun, or a new one. ``limit`` takes the first recordings only.

  Raises:
    DataError: nothing of this format under the root; a plan for other clips; with ``strict``, a recording that cannot
      be opened.
  """
  key = {k: v for k, v in dataclasses.asdict(job.curation).items() if k not in ('limits', 'held_out')}
  path = job.work / PLAN
  if path.is_file() and not pathlib.Path(job.root).is_dir():  # enough to sort what is there by other limits
    return _same(job, _read_json(path), key)
  listed = sources.load(job.source).find(job.root)[:limit]
  names = hashlib.sha256('\n'.join(found.name for found in listed).encode()).hexdigest()
  key |= {'recordings': len(listed), 'names': names}
  if path.is_file():
    return _same(job, _read_json(path), key)

  clips, problems, notes = [], [], {'unverified': set(), 'licence': set()}
  for found in tqdm.tqdm(listed, desc='plan', unit='recording'):
    try:
      recording = found.open()
    except DataError as error:
      if job.strict:
        raise
      problems.append({'name': found.name, 'problem': str(error)})
      continue
    ranges = cuts(
      len(recording),
      recording.fps,
      frames=job.curation.frames,
      target=job.curation.fps,
      shortest=job.curation.shortest,
    )
    if not ranges:
      problems.append({'name': found.name, 'problem': f'{len(recording)} frames are too short for a clip'})
    clips += [[found.name, r.start, r.stop, r.step] for r in ranges]
    notes['unverified'].update(recording.unverified)
    notes['licence'].add(recording.licence)
  made = {
    'key': key,
    'unit': _UNIT,
    'clips': clips,
    'problems': problems,
    **{name: sorted(some) for name, some in notes.items()},
  }
  job.work.mkdir(parents=True, exist_ok=True)
  write_whole(path, json.dumps(made))
  return made


def _same(job: Job, known: dict, key: dict) -> dict:
  """The plan that was begun, if it is for the same clips."""
  key = json.loads(json.dumps(key))  # tuples become lists
  differing = [name for name in key if known['key'].get(name) != key[name]]
  if differing:
    raise DataError(
      f'{job.folder} was begun with {_pairs(known["key"], differing)}, now {_pairs(key, differing)}; '
      'give another --out, or remove that folder to begin again'
    )
  return known


# -- Units ------------------------------------------------------------------------------------------------------------


def work_off(job: Job, *, workers: int = 1, beam: str | None = None) -> None:
  """Makes the units that are not there yet, in this process, in ``workers`` others, or by an Apache Beam pipeline.

  Args:
    beam: options of the pipeline as on a command line, such as ``--runner=DirectRunner``.

  Raises:
    DataError: a worker died; with ``strict``, the first clip that cannot be read.
  """
  todo = [number for number in range(job.units) if not is_finished(job, number)]
  make = functools.partial(make_unit, job)
  bar = functools.partial(
    tqdm.tqdm,
    desc='prepare',
    unit='clip',
    total=len(_plan(job)['clips']),
    initial=(job.units - len(todo)) * _plan(job)['unit'],
  )
  if not todo:
    return
  if beam is not None:
    _by_beam(make, todo, beam)
  elif workers <= 1:
    with bar() as shown:
      for number in todo:
        shown.update(make(number))
  else:
    # A fresh interpreter each: the parent may have started threads.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool, bar() as shown:
      waiting = [pool.submit(make, number) for number in todo]
      try:
        for done in concurrent.futures.as_completed(waiting):
          shown.update(done.result())
      except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
          'a worker process was killed, most likely for lack of memory; what is finished is kept: '
          'run the same command again, with fewer --workers'
        ) from error
      finally:
        pool.shutdown(cancel_futures=True)


def _by_beam(make: Callable[[int], int], numbers: Sequence[int], options: str) -> None:
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise DataError("--beam needs Apache Beam: pip install '.[beam]'") from error
  with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
    _ = pipeline | beam.Create(numbers) | beam.Reshuffle() | beam.Map(make)


def make_unit(job: Job, number: int) -> int:
  """Cuts, measures and stores the clips of one unit; how many it was to make. Raises DataError without the source."""
  made = _plan(job)
  _listed(job.source, job.root)  # raises here, as a unit without its source would be stored as whole, and empty
  clips = made['clips'][number * made['unit'] :][: made['unit']]
  payloads, rows, problems = {}, [], []
  for name, start, stop, step in clips:
    try:
      row, payload = _curated(job, name, range(start, stop, step))
    # Whatever a damaged file makes a decoder raise is the clip's fault; the rest of a long job is not.
    except (DataError, OSError, ValueError, LookupError, ArithmeticError) as error:
      if job.strict or not pathlib.Path(job.root).is_dir():  # or the disk went away meanwhile
        raise
      problems.append({'name': f'{job.source}/{name} {start}:{stop}:{step}', 'problem': _one_line(error)})
      continue
    reasons = curate.reasons(row['statistics'], job.curation.limits)
    rows.append(row | {'split': _split(row, reasons, job.curation)})
    payloads[row['id']] = payload
  _store(job, number, rows, payloads, problems)
  return len(clips)


def _curated(job: Job, name: str, indices: range) -> tuple[dict, bytes]:
  """A clip's row of facts and its record."""
  recording = _recording(job.source, job.root, name)
  clip = recording.read(indices, curate.fit(recording.size, job.curation.sizes))
  facts = {k: v for k, v in clip.meta.items() if k != 'numbers'}
  row = facts | {
    'size': [clip.frames, *clip.size],
    'caption': clip.caption,
    'statistics': curate.statistics(clip),
  }
  return row, prepared.serialise(codec.encode(clip, quality=job.curation.quality))


def _split(row: dict, reasons: dict[str, str], curation: curate.Curation) -> str:
  """Where a clip belongs; ``reasons`` are those to drop it."""
  if reasons:
    return 'dropped'
  return 'test' if curate.held_out(row['scene'], curation.held_out) else 'train'


def is_finished(job: Job, number: int) -> bool:
  """Whether a unit is whole."""
  path = _unit_path(job, number)
  if not path.is_file():
    return False
  files = _read_json(path)['files'].values()
  sizes = [(job.work / file['file'], file['bytes']) for file in files]
  return all(file.is_file() and file.stat().st_size == size for file, size in sizes)


def _store(job: Job, number: int, rows: list[dict], payloads: dict[str, bytes], problems: list[dict]) -> None:
  """Writes the files of a unit, the one that says it is whole last."""
  files = {}
  for split in SPLITS:
    some = [payloads[row['id']] for row in rows if row['split'] == split]
    if some:
      files[split] = shards.write_file(_unit_path(job, number).with_suffix(f'.{split}.array_record'), some)
  write_whole(_unit_path(job, number), json.dumps({'files': files, 'rows': rows, 'problems': problems}))


# -- The set ----------------------------------------------------------------------------------------------------------


def finish(job: Job) -> pathlib.Path:
  """The set of all units under the limits of ``job``: a new version, or the last one if it is the same.

  Raises DataError where no clip could be read.
  """
  made, texts = _plan(job), captioning.Captions(job.folder / CAPTIONS)
  units = [_read_json(_unit_path(job, number)) for number in range(job.units)]
  rows = [row for unit in units for row in unit['rows']]
  reasons = {row['id']: curate.reasons(row['statistics'], job.curation.limits) for row in rows}
  kept = {row['id']: curate.hashes(row['statistics']) for row in rows if not reasons[row['id']]}
  for name, first in curate.duplicates(kept, job.curation.limits).items():
    reasons[name]['duplicate'] = f'shows the same as {first}'
  for number, unit in enumerate(units):
    wanted = [row | {'split': _split(row, reasons[row['id']], job.curation)} for row in unit['rows']]
    if wanted != unit['rows']:
      units[number] = _redistribute(job, number, unit, wanted)

  files, listed = {split: [] for split in SPLITS}, []
  for split in SPLITS:
    for unit in units:
      if split in unit['files']:
        files[split].append(job.work / unit['files'][split]['file'])
    for row in (row for unit in units for row in unit['rows'] if row['split'] == split):
      text = texts.get(row['id']) or row['caption']
      facts = {'reasons': reasons[row['id']], 'notes': curate.notes(row['statistics'])}
      listed.append(row | {'caption': text, **facts})
  problems = made['problems'] + [problem for unit in units for problem in unit['problems']]
  if not listed:
    raise DataError(
      f'none of the {len(made["clips"])} clips under {job.root} could be read, the first problem being '
      f'{problems[0]["name"]}: {problems[0]["problem"]}; remove {job.work} to read them again'
    )
  meta = {
    'source': job.source,
    'licence': made['licence'],
    'unverified': made['unverified'],
    'problems': problems,
    'curation': dataclasses.asdict(job.curation),
  }
  content = hashlib.sha256(json.dumps([listed, meta]).encode()).hexdigest()
  versions = sorted(_versions(job.folder), key=lambda path: tuple(map(int, path.name.split('.'))))
  if versions and prepared.read_meta(versions[-1])['content'] == content:
    return versions[-1]
  version = f'1.{int(versions[-1].name.split(".")[1]) + 1}.0' if versions else '1.0.0'
  return prepared.finish(
    job.folder / version, name=job.source, shards=files, rows=listed, meta=meta | {'content': content}
  )


def caption(
  job: Job, made: pathlib.Path, captioner: captioners.Captioner, *, per_minute: float | None = None
) -> pathlib.Path:
  """The set ``made`` with texts for the kept clips that have none: a new version. Texts are kept beside the versions.

  Raises UserError where asking on is pointless; the answers up to there are kept.
  """
  sets = [prepared.open(made, split) for split in prepared.splits(made) if split != 'dropped']
  silent = [(some, i) for some in sets for i, row in enumerate(some.rows) if not row['caption']]
  frames = {some.rows[i]['id']: functools.partial(_frames, some, i) for some, i in silent}
  store = captioning.Captions(job.folder / CAPTIONS)
  found = captioning.write_captions(frames.items(), captioner, store, per_minute=per_minute, desc='caption')
  for name, problem in found.failed.items():
    tqdm.tqdm.write(f'{name}: no caption: {problem}', file=sys.stderr)
  return finish(job)


def _frames(source: prepared.Source, i: int) -> tuple[np.ndarray, float]:
  """A clip's frames and their rate: whole steps of a source seldom give the one that was asked for."""
  record = source.record(i)
  return codec.frames(record, range(len(record['jpeg_lengths']))), source.rows[i]['fps']


def _redistribute(job: Job, number: int, unit: dict, rows: list[dict]) -> dict:
  """The unit with its records sorted into other splits; earlier versions keep the files they link to."""
  payloads = {}
  for split, file in unit['files'].items():
    ids = [row['id'] for row in unit['rows'] if row['split'] == split]
    payloads |= dict(zip(ids, shards.read_file(job.work / file['file']), strict=True))
  _store(job, number, rows, payloads, unit['problems'])
  for split in set(unit['files']) - {row['split'] for row in rows}:
    (job.work / unit['files'][split]['file']).unlink()
  return _read_json(_unit_path(job, number))


def _versions(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  return (path for path in folder.iterdir() if prepared.VERSION.fullmatch(path.name) and path.is_dir())


# -- What workers keep ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _plan(job: Job) -> dict:
  return _read_json(job.work / PLAN)


@functools.lru_cache(maxsize=1)
def _listed(source: str, root: str) -> dict[str, Callable[[], Recording]]:
  return {found.name: found.open for found in sources.load(source).find(root)}


@functools.lru_cache(maxsize=2)
def _recording(source: str, root: str, name: str) -> Recording:
  """Clips of a recording follow each other, so each is opened once."""
  return _listed(source, root)[name]()


def _unit_path(job: Job, number: int) -> pathlib.Path:
  return job.work / f'unit-{number:05d}.json'


def _read_json(path: pathlib.Path) -> dict:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise DataError(f'{path} cannot be read ({error}); remove it and run the same command again') from error


def _pairs(values: dict, names: Sequence[str]) -> str:
  return ', '.join(f'{name}={values.get(name)}' for name in names)


def _one_line(error: BaseException) -> str:
  text = ' '.join(str(error).split())
  return text if isinstance(error, DataError) else f'{type(error).__name__}: {text}'
