"""Transforms there and back, and the one error that names everything that does not fit."""

import numpy as np
import pytest

from one4d_jax.errors import CheckpointError
from one4d_jax.wan.config import CLIPConfig, UMT5Config
from tests.weight_conversion import SMALL, described, fit, manifest, random
from weight_conversion import rules
from weight_conversion.rules import FIRST, KEEP, LINEAR, Rule, Tensor, plan
from weight_conversion.tables import TABLES

FULL_TEXT = UMT5Config()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('layout', ['native', 'diffusers'])
@pytest.mark.parametrize('part', SMALL)
def test_every_tensor_comes_back_to_the_byte(part, layout, dtype):
  tensors = random(part, SMALL[part], layout, dtype)
  for leaf in fit(part, SMALL[part], layout, {name: Tensor(w.shape, w.dtype.name) for name, w in tensors.items()}):
    for names in leaf.layers:
      ours = leaf.transform.forward(*(tensors[name] for name in names))
      assert ours.dtype.name == dtype and ours.shape == leaf.shape[leaf.stacked :]
      for name, back in zip(names, leaf.transform.backward(ours), strict=True):
        assert back.shape == tensors[name].shape and back.tobytes() == tensors[name].tobytes(), name


def test_orders_of_transforms():
  """Which axis goes where, on arrays whose elements all differ."""
  w = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
  assert LINEAR.forward(w[..., 0, 0])[2, 1] == w[1, 2, 0, 0]
  assert rules.CONV.forward(w)[3, 4, 2, 1] == w[1, 2, 3, 4]
  channels_first, channels_last = rules.patch(3, 4, 5), rules.patch(3, 4, 5, channels_last=True)
  assert channels_first.forward(w)[2 * 20 + 3 * 5 + 4, 1] == w[1, 2, 3, 4]
  assert channels_last.forward(w)[(3 * 5 + 4) * 3 + 2, 1] == w[1, 2, 3, 4]
  q, k, v = np.moveaxis(np.arange(18).reshape(2, 3, 3), -1, 0)
  np.testing.assert_array_equal(rules.fused(3).forward(q, k, v), np.concatenate([q.T, k.T, v.T], axis=1))
  assert rules.pointwise(4).forward(w[:, :, :1, :1])[2, 1] == w[1, 2, 0, 0]


def test_large_tensors_are_not_copied():
  w = np.zeros((2, 3, 3, 3, 3))
  for transform, source in ((KEEP, w), (LINEAR, w[..., 0, 0, 0]), (rules.CONV, w), (FIRST, w[:1])):
    assert np.shares_memory(transform.forward(source), w)
    assert np.shares_memory(transform.backward(transform.forward(source))[0], w)


def test_everything_that_does_not_fit_is_one_error():
  tensors = described('base', SMALL['base'], 'native')
  del tensors['blocks.1.ffn.0.bias'], tensors['head.head.bias']
  tensors['blocks.3.norm3.weight'] = Tensor((24,), 'float32')  # a fourth block
  tensors['blocks.0.ffn.0.weight'] = Tensor((24, 40), 'float32')
  tensors['head.modulation'] = Tensor((2, 24), 'float32')
  tensors['blocks.2.self_attn.q.weight'] = Tensor((24, 24), 'float8_e4m3fn')
  tensors['blocks.2.self_attn.k.weight'] = Tensor((24, 24), 'int8')
  tensors['blocks.2.self_attn.k.bias'] = Tensor((24,), 'float64')
  with pytest.raises(CheckpointError) as error:
    fit('base', SMALL['base'], 'native', tensors)
  message = str(error.value)
  for words in (
    '2 missing: head.head.bias, blocks.1.ffn.0.bias',
    '1 unexpected: blocks.3.norm3.weight',
    '2 mis-shaped: ',
    'head.modulation [2, 24] instead of [1, 2, 24]',
    'blocks.0.ffn.0.weight [24, 40] instead of [40, 24]',
    '3 not of a dtype in float32, bfloat16, float16: ',
    'blocks.2.self_attn.q.weight float8_e4m3fn (already quantised)',
    'blocks.2.self_attn.k.weight int8 (already quantised)',
    'blocks.2.self_attn.k.bias float64)',
  ):
    assert words in message, message
  assert '\n' not in message


def test_long_lists_are_cut():
  with pytest.raises(CheckpointError, match=r'48 missing: .* and 36 more') as error:
    fit('text', FULL_TEXT, 'native', {name: t for name, t in manifest('umt5', 'native').items() if '.norm' not in name})
  assert str(error.value).count('norm') == rules.SHOWN


@pytest.mark.parametrize(
  ('more', 'ours', 'problem'),
  [
    ((), {'x': (3, 2)}, '1 of the table unknown to our network: y'),
    ((), {'x': (3, 2), 'y': (3,), 'z': (1,)}, '1 of our network left empty: z'),
    ((Rule(('b',), 'z'),), {'x': (3, 2), 'y': (3,), 'z': (3,)}, '1 read twice: b'),
    ((Rule(('c',), 'y'),), {'x': (3, 2), 'y': (3,)}, '1 filled twice: y'),
  ],
)
def test_a_table_that_is_wrong_is_refused(more, ours, problem):
  tensors = {'a': Tensor((2, 3), 'float32'), 'b': Tensor((3,), 'float32'), 'c': Tensor((3,), 'float32')}
  table = [Rule(('a',), 'x', LINEAR), Rule(('b',), 'y')]
  good = plan(tensors, table, {'x': (3, 2), 'y': (3,)}, ignore=('c',))
  assert [leaf.source_shapes for leaf in good] == [((2, 3),), ((3,),)]
  with pytest.raises(CheckpointError) as error:
    plan(tensors, (*table, *more), ours, ignore=() if 'filled' in problem else ('c',))
  assert problem in str(error.value)


@pytest.mark.parametrize('gone', ['shared.weight', 'encoder.embed_tokens.weight', None])
def test_a_tied_tensor_under_either_name_or_both(gone):
  tensors = manifest('umt5', 'diffusers')
  tensors.pop(gone, None)
  (leaf,) = (leaf for leaf in fit('text', FULL_TEXT, 'diffusers', tensors) if leaf.target == 'embedding')
  assert leaf.layers == (('encoder.embed_tokens.weight' if gone == 'shared.weight' else 'shared.weight',),)
  assert TABLES['text'].config(tensors, 'diffusers', {}) == FULL_TEXT


def test_neither_name_of_a_tied_tensor():
  tensors = {name: t for name, t in manifest('umt5', 'diffusers').items() if t.shape[0] != FULL_TEXT.vocab}
  with pytest.raises(CheckpointError, match=r'1 missing: shared\.weight\)'):
    fit('text', FULL_TEXT, 'diffusers', tensors)


def test_ignored_tensors_need_not_be_there():
  whole = manifest('clip', 'native')
  visual = {name: t for name, t in whole.items() if name.startswith('visual.')}
  bare = {name: t for name, t in visual.items() if 'post_norm' not in name and name != 'visual.head'}
  assert (len(whole), len(visual), len(bare)) == (784, 392, 389)
  read = [[leaf.layers for leaf in fit('image', CLIPConfig(), 'native', tensors)] for tensors in (whole, visual, bare)]
  assert read[0] == read[1] == read[2]
