"""What must hold for any input, tried on many (hypothesis; the same ones every time)."""

import argparse
import contextlib
import html
import itertools
import json
import pathlib
import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from one4d_jax import batch, cli, request, sample
from one4d_jax import config as configs
from one4d_jax.data import codec
from one4d_jax.data.clip import Clip
from one4d_jax.errors import UserError
from one4d_jax.geometry import se3
from one4d_jax.model import pointmap, umc, windows
from one4d_jax.viewer import metric
from one4d_jax.wan import tokenizer, vae

settings.register_profile('same', max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile('same')

CONFIG = f'{pathlib.Path(__file__).parent.parent / "configs/one4d.py"}:tiny'
TEXT = st.text(max_size=200)
PROMPT = st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=200)


def refused(function, *arguments) -> None:
  """It returns, or it says in one line what is wrong."""
  with contextlib.suppress(UserError, OSError):
    function(*arguments)


# -- What people write --------------------------------------------------------------------------------------------


@given(PROMPT, st.integers(0, 2**32 - 1), st.floats(0, 20), st.lists(PROMPT, max_size=2))
@example('-ball', 0, 0.0, ['-1'])
@example('it\'s "quoted"\n$HOME `ls`', 1, 6.5, [])
def test_the_recorded_command_gives_its_arguments_back(prompt, seed, guidance, metric):
  parser = sample.parser()
  args = argparse.Namespace(**vars(cli.parse(parser, [])))
  args.prompt, args.seed, args.guidance, args.metric = prompt, seed, guidance, metric or None
  words = shlex.split(cli.command(parser, args))
  assert words[:3] == ['python', '-m', 'one4d_jax.sample']
  assert vars(cli.parse(sample.parser(), words[3:])) == vars(args)


@given(TEXT)
@example('\0')
@example('١,٢')
def test_lists_of_frames(text):
  with contextlib.suppress(UserError):
    chosen = request.parse_observed(text)
    assert chosen == sorted(set(chosen)) and all(isinstance(i, int) for i in chosen)


KINDS = st.sampled_from(['baseline', 'focal', 'distance', 'depth'])


@given(st.one_of(TEXT, st.builds('{}={}:{}'.format, KINDS, TEXT, TEXT)))
@example('baseline=0,1:nan')
@example('depth=0,1,1:1e400')
def test_measures(text):
  with contextlib.suppress(UserError):
    (measure,) = metric.parse([text])
    assert np.isfinite(measure.value) and measure.value > 0 and all(i >= 0 for i in measure.frames)


CHANGED = (
  'data.frames',
  'data.source',
  'train.batch',
  'train.ema',
  'model.dit.heads',
  'model.adapters.targets',
  'sample.guidance_interval',
  'parallel.mesh',
  'train',
  'nothing.there',
)


@given(st.sampled_from(CHANGED), TEXT)
@example('sample.guidance_interval', '[0.2]')
@example('model.dit.heads', '0')
@example('train.ema', '.nan')
@example('data.frames', '[1, 2')
@example('train', '')
def test_changes_of_the_configuration(key, value):
  refused(configs.load, CONFIG, [f'{key}={value}'])


VALUES = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
  lambda inner: st.lists(inner, max_size=3),
  max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([*batch.KEYS, 'other']), VALUES, max_size=4))
@example({'prompt': 'a', 'name': '../../etc'})
@example({'prompt': 'a', 'name': 'a\n'})
@example({'prompt': 'a', 'seed': 10**400})
def test_lines_of_a_list_stay_in_its_folder(given):
  args = cli.parse(sample.parser(), ['--input', 'list.jsonl', '--out', 'scenes'])
  with contextlib.suppress(UserError, OSError):
    line = batch.parse(1, json.dumps(given), args)
    assert pathlib.Path(line.args.out).parent == pathlib.Path('scenes') and re.fullmatch(r'[\w -]+', line.name)


@given(TEXT)
@example('<script>alert(1)</script>&amp;')
def test_what_is_shown_is_escaped(text):
  page = pytest.importorskip('one4d_jax.app.page', reason="needs gradio (pip install '.[app]')")
  shown = page._note(text)
  assert html.unescape(re.fullmatch(r'<div class="note" role="alert">([^<>]*)</div>', shown)[1]) == text


@given(st.text(max_size=400), st.integers(1, 64))
def test_bytes_of_a_prompt(text, length):
  ids, mask = tokenizer.load('bytes', length)([text])
  assert ids.shape == mask.shape == (1, length) and (ids >= 0).all() and (ids[~mask.astype(bool)] == 0).all()
  count = int(mask.sum())
  assert mask[0, :count].all() and ids[0, count - 1] == tokenizer.EOS


# -- Frames -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 81), st.integers(-1, 90))
def test_windows_cover_a_clip(frames, most, overlap):
  with contextlib.suppress(UserError):
    found = windows.spans(frames, most, overlap)
    windows.check_spans(found, frames)
    assert {len(span) for span in found} == {min(frames, most)}
    assert all(a.stop - b.start >= overlap for a, b in itertools.pairwise(found))


@given(st.integers(2, 400), st.floats(1e-3, 1))
def test_sparse_frames_hold_the_ends(frames, fraction):
  observed = umc.observed_frames('sparse', frames, fraction=fraction)
  assert observed[0] and observed[-1] and 2 <= observed.sum() <= frames


@given(st.integers(0, 30), st.integers(1, 60), st.integers(1, 60))
def test_latents_of_a_video(f, h, w):
  size = 4 * f + 1, 8 * h, 8 * w
  assert vae.video_size(*vae.latent_grid(*size)) == size


# -- Geometry -----------------------------------------------------------------------------------------------------

NUMBER = st.floats(-(2**7), 2**7, width=32)


@given(arrays.arrays(np.float32, (2, 3, 4, 3), elements=NUMBER), arrays.arrays(bool, (2, 3, 4)))
def test_normalised_points_come_back(points, valid):
  with contextlib.suppress(UserError):
    scaled, S = pointmap.normalise(points, valid)
    largest = np.abs(points[valid]).max()
    np.testing.assert_allclose(pointmap.denormalise(scaled, S)[valid], points[valid], atol=1e-5 * max(S, largest))
    assert (pointmap.denormalise(scaled, S)[~valid] == 0).all()


@given(arrays.arrays(np.float32, (5, 6), elements=st.floats(-1.75, 1.75, width=16)))
def test_motions_there_and_back(tangent):
  matrix = se3.exp(jnp.asarray(tangent))
  np.testing.assert_allclose(se3.compose(matrix, se3.inverse(matrix)), np.broadcast_to(np.eye(4), (5, 4, 4)), atol=2e-5)
  np.testing.assert_allclose(se3.log(matrix), tangent, atol=2e-4)


@given(arrays.arrays(np.float32, (2, 16, 16), elements=st.floats(2**-10, 2**17, width=32)), st.integers(0, 2**32 - 1))
def test_stored_depth_is_off_by_its_step(depth, seed):
  rng = np.random.default_rng(seed)
  valid = rng.random(depth.shape) < 0.8
  K, world_from_cam = (rng.standard_normal((2, n, n), np.float32) for n in (3, 4))
  masks = {'valid': valid, 'sky': ~valid & (rng.random(depth.shape) < 0.5), 'dynamic': ~valid}
  rgb = np.zeros((*depth.shape, 3), np.uint8)
  clip = Clip(rgb=rgb, depth=depth, **masks, K=K, world_from_cam=world_from_cam, caption='', meta={'id': 'x'})
  found = codec.decode(codec.encode(clip, quality=90))
  for name in ('valid', 'sky', 'dynamic', 'K', 'world_from_cam'):
    np.testing.assert_array_equal(getattr(found, name), getattr(clip, name))
  if valid.any():
    low, high = depth[valid].min(), depth[valid].max()
    np.testing.assert_allclose(found.depth[valid], depth[valid], rtol=np.exp(np.log(high / low) / 131066) - 1 + 1e-6)
