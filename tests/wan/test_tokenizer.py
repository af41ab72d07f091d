"""Cleaning, ends, truncation and padding; ids and masks against transformers' T5 tokenizers on the same model."""

import ast
import html
import importlib.util
import io
import json
import pathlib
import random
import types
import unicodedata

import ftfy
import numpy as np
import pytest
import sentencepiece

from one4d_jax.errors import ConfigError, DataError
from one4d_jax.model.files import EMBEDDED
from one4d_jax.structs import from_dict
from one4d_jax.wan import tokenizer
from one4d_jax.wan.config import UMT5Config

UMT5 = {'bos_id': 2, 'unk_id': 3}  # the ids of google/umt5-xxl
T5 = {'bos_id': -1, 'unk_id': 2}

SENTENCES = (
  'A red fox jumps over the fresh snow, and the camera moves slowly through a quiet room. ("It\'s 3 x 5!")',
  'Eine Katze schläft auf dem warmen Sofa, während der Regen fällt.',
  'Le chat noir marche dans la rue à Paris; où va-t-il?',
  'Быстрая лиса бежит по снегу.',
  '一只红狐狸走过雪地，镜头缓慢移动。',
  '猫が窓辺に座っている。',
  '한국어 문장을 천천히 읽는 사람.',
  'مرحبا بالعالم',
  'नमस्ते दुनिया',
  'a dog & a cat < 10% #1 🐈🎬',
)


def write_model(folder: pathlib.Path, **ids: int) -> pathlib.Path:
  """A small unigram model, made as umT5's is: NFKC normalisation, bytes for what the vocabulary lacks."""
  rng, model = random.Random(0), io.BytesIO()
  lines = [' '.join(rng.choices(s.split(), k=6)) for s in SENTENCES for _ in range(20)]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*SENTENCES, *lines]), model_writer=model, model_type='unigram', vocab_size=800,
    hard_vocab_limit=False, byte_fallback=True, normalization_rule_name='nmt_nfkc', pad_id=0, eos_id=1, **ids,
    num_threads=1, minloglevel=2,
  )  # fmt: skip
  (folder / 'spiece.model').write_bytes(model.getvalue())
  return folder


@pytest.fixture(scope='module')
def release(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp('umt5-xxl'), **UMT5)


def ids(encode, text):
  """Without the padding, which is checked."""
  row, mask = (array[0] for array in encode([text]))
  assert not row[~mask].any() and row[mask][-1] == tokenizer.EOS and (np.diff(mask.astype(int)) <= 0).all()
  return row[mask].tolist()


# Text that a prompt may hold but special tokens, whose names are read as text here.
TEXTS = (
  *SENTENCES,
  '',
  ' ',
  '\n',
  '  A red   fox ',
  'a\tred\r\nfox\n\n\nand\x0ba\x0ccat',
  'a red\u00a0fox \u2003and\u3000a\u200b cat\u2028',
  'Ｆｏｘ　ｉｎ　ｔｈｅ　ｓｎｏｗ！ ｶﾞ',
  'e\u0301 \u00e9 \u1e9b\u0323 ﬁ ﬂ ½ ① ™ Å Ω',
  '“quoted” ‘single’ — dash… «à»',
  'a &lt;b&gt; &amp;amp; &amp;lt;c&amp;gt; &#39;d&#x27; &nbsp;e &notanentity; &copy',
  '<b>a &amp;lt; &amp;amp;lt;',
  'âœ” schÃ¶n l’Ã©tÃ©',
  '🙂 fox 🫠🫥🤖snow 👩‍👩‍👧 🇩🇪 ☔️ 🐈🎬',
  'a\x00b\x07c\x1b[31md\x7fe\ufefff\ufffdg',
  'a\x85b',
  '▁a▁red ▁ fox',
  'a_b{c}[d]|e\\f~g`^h$i@j*k',
  '𝔣𝔬𝔵 𐍈 龘 ꙮ ሰላም',
  'supercalifragilisticexpialidocious' * 5,
  'A red fox jumps over the fresh snow. ' * 100,
  '猫' * 600,
)


@pytest.mark.parametrize(
  ('text', 'cleaned'),
  [
    ('a red fox', 'a red fox'),
    ('  a\tred\r\n\r\nfox\u3000and \u00a0 a\u2003cat ', 'a red fox and a cat'),
    ('a &lt; b', 'a < b'),
    ('&amp;lt;', '<'),
    ('<b>&amp;lt;', '<b><'),  # where there is a tag, ftfy leaves entities to the two passes that follow
    ('<b>&amp;amp;lt;', '<b>&lt;'),
    ('<b>a &amp;amp; b</b>', '<b>a & b</b>'),
    ('it&#39;s &amp;quot;3&nbsp;&nbsp;x 5&amp;quot;', 'it\'s "3 x 5"'),
    ('âœ” schÃ¶n', '✔ schön'),
    ('“it’s”', '"it\'s"'),
    ('ｆｏｘ，ｓｎｏｗ', 'fox,snow'),
    ('ﬁre e\u0301', 'fire \u00e9'),
    ('a\x00b\x07\x1b[31mc\ufeff', 'abc'),
    ('\ud83d\ude42', '🙂'),
    ('&nbsp; \n', ''),
    ('', ''),
    ('一只红狐狸走过雪地。', '一只红狐狸走过雪地。'),
    ('A_B {c}, "d"; e: 1.5 / 2', 'A_B {c}, "d"; e: 1.5 / 2'),  # punctuation and case stay
  ],
)
def test_cleaning(text, cleaned):
  assert tokenizer.clean_text(text) == cleaned


def test_umt5_cleans_unless_told_otherwise(release):
  encode, raw = tokenizer.load(release, 64), tokenizer.load(release, 64, clean=False)
  for text in TEXTS:
    assert ids(encode, text) == ids(raw, tokenizer.clean_text(text))
  assert ids(encode, 'a &amp;lt; b') == ids(raw, 'a < b') != ids(raw, 'a &amp;lt; b')


def test_umt5_ends_truncates_and_pads(release):
  encode = tokenizer.load(release, 512)
  rows, mask = encode(
    ['', '猫', '猫' * 509, '猫' * 510, '猫' * 511, '猫' * 5000]
  )  # a word is the mark of its start + cats
  assert rows.dtype == np.int32 and mask.dtype == bool and rows.shape == mask.shape == (6, 512)
  np.testing.assert_array_equal(mask.sum(1), [1, 3, 511, 512, 512, 512])
  np.testing.assert_array_equal(rows[np.arange(6), mask.sum(1) - 1], tokenizer.EOS)
  np.testing.assert_array_equal(rows[3], rows[5])
  assert not rows[~mask].any() and (rows[mask] > 0).all() and rows.max() < encode.vocab


def test_a_run_of_unknown_characters_is_one_unknown(release):
  encode = tokenizer.load(release, 32, clean=False)
  start, cat, end = ids(encode, '猫')
  assert ids(encode, '🫠🫥猫龘 龘') == [start, UMT5['unk_id'], cat, UMT5['unk_id'], start, UMT5['unk_id'], end]


def test_marks_are_composed(release):
  encode = tokenizer.load(release, 32, clean=False)
  assert ids(encode, 'か\u3099') == ids(encode, 'が') != ids(encode, 'か')


@pytest.mark.parametrize('text', ['</s>', '<pad>', '<s>', '<unk>', '<extra_id_0>', '&lt;/s&gt;', '<0x41>'])
def test_names_of_special_tokens_are_text(release, text):
  encode = tokenizer.load(release, 64)
  inner = ids(encode, f'猫{text}猫')[1:-1]
  assert len(inner) > 4 and inner[0] == inner[-1] == ids(encode, '猫')[1]
  assert not {tokenizer.PAD, tokenizer.EOS, UMT5['bos_id']} & set(inner) and max(inner) < encode.vocab


def test_bytes_round_trip():
  text = ' eine &amp; Höhle,\t洞\x00\x07\ufffdnan '  # the tiny model takes every text as it is
  encode = tokenizer.load('bytes', 64)
  rows, mask = encode([text])
  assert rows.dtype == np.int32 and mask.dtype == bool and rows.shape == mask.shape == (1, 64)
  row = ids(encode, text)
  assert bytes(i - 3 for i in row[:-1]).decode() == text
  assert rows.max() < encode.vocab


def test_the_end_survives_truncation():
  rows, mask = tokenizer.load('bytes', 4)(['abcdefg', 'abc', 'ab', ''])
  a = ord('a') + 3
  np.testing.assert_array_equal(rows, [[a, a + 1, a + 2, 1], [a, a + 1, a + 2, 1], [a, a + 1, 1, 0], [1, 0, 0, 0]])
  np.testing.assert_array_equal(mask.sum(1), [4, 4, 3, 1])


def test_odd_input(release):
  # a lone surrogate, as in a badly decoded command line
  assert ids(tokenizer.load('bytes', 8), '\udcff') == [ord('?') + 3, 1]
  raw = tokenizer.load(release, 8, clean=False)
  assert ids(raw, 'a\udcff') == ids(raw, 'a?')
  for encode in (tokenizer.load('bytes', 8), raw, tokenizer.load(release, 8)):
    assert encode([])[0].shape == (0, 8)
    for bad in ('one string', [None], [b'bytes'], [float('nan')]):
      with pytest.raises(DataError, match='list of strings'):
        encode(bad)


def test_errors_name_the_way_out(tmp_path):
  with pytest.raises(ConfigError, match='at least 1'):
    tokenizer.load('bytes', 0)
  with pytest.raises(ConfigError, match=r'spiece\.model'):
    tokenizer.load(tmp_path, 8)
  for content in (b'', b'not a model'):
    (tmp_path / 'spiece.model').write_bytes(content)
    with pytest.raises(DataError, match='not a SentencePiece model'):
      tokenizer.load(tmp_path, 8)


def test_a_model_of_another_family_is_refused(tmp_path):
  rng = random.Random(0)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([' '.join(rng.sample('abcdefgh', 5)) for _ in range(50)]),
    model_prefix=str(tmp_path / 'spiece'), vocab_size=40, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  with pytest.raises(DataError, match=r'pads with id -1 and ends texts with 2, where umT5 has 0 and 1.*umt5-xxl'):
    tokenizer.load(tmp_path, 8)


def test_bundles_written_before_cleaning_existed():
  described = json.loads((EMBEDDED / 'bundle.json').read_text())['sizes']['text']
  described.pop('clean', None)
  assert from_dict(described, UMT5Config).clean
  assert not from_dict(described | {'clean': False}, UMT5Config).clean


def fuzz(count: int) -> list[str]:
  """Texts drawn from words, spaces, marks and characters of all scripts."""
  rng = random.Random(1)
  parts = [*' '.join(SENTENCES).split(), ' ', '  ', '\t', '\n', '▁', '\u00a0', '\u200b', '&amp;', '🫠', 'ﬁ']
  # Marks are left to the words above: transformers drops one that follows a character that is normalised.
  ranges = (*range(0x20, 0x3000), *range(0xE000, 0x1FBFF))
  characters = [chr(i) for i in ranges if not unicodedata.category(chr(i)).startswith('M')]
  draw = lambda: rng.choice(parts if rng.random() < 0.8 else characters)
  return [''.join(draw() for _ in range(rng.randrange(1, 30))) for _ in range(count)]


def reference(folder: pathlib.Path, kind: str):
  """What transformers makes of the folder: its own T5 tokenizer, or what a release's ``tokenizer.json`` says."""
  transformers = pytest.importorskip('transformers', reason='the reference tokenizer')
  if kind == 'spiece.model':
    return transformers.T5Tokenizer.from_pretrained(folder)
  convert = pytest.importorskip('transformers.convert_slow_tokenizer', reason='how a tokenizer.json is made')
  slow = types.SimpleNamespace(
    vocab_file=str(folder / 'spiece.model'), _extra_ids=0, convert_tokens_to_ids=lambda _: tokenizer.EOS
  )
  converted = convert.T5Converter(slow).converted()
  converted.add_special_tokens([f'<extra_id_{i}>' for i in range(299, -1, -1)])
  converted.save(str(folder / 'tokenizer.json'))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / 'tokenizer.json'), pad_token='<pad>', eos_token='</s>', unk_token='<unk>'
  )


@pytest.mark.parity
@pytest.mark.filterwarnings('ignore:The sentencepiece tokenizer that you are converting')
@pytest.mark.parametrize(('layout', 'kind'), [(T5, 'spiece.model'), (T5, 'tokenizer.json'), (UMT5, 'tokenizer.json')])
def test_ids_and_masks_equal_transformers(tmp_path, layout, kind):
  # Not T5Tokenizer with the ids of umT5: transformers 5 takes 2 for the unknown whatever the model says.
  theirs = reference(write_model(tmp_path, **layout), kind)
  texts = [text for text in (*TEXTS, *fuzz(300)) if '\x85' not in text]  # next line: dropped or split by transformers
  for clean, length in ((False, 512), (True, 512), (False, 7)):
    read = [tokenizer.clean_text(text) for text in texts] if clean else texts
    expected = theirs(read, padding='max_length', truncation=True, max_length=length)
    rows, mask = tokenizer.load(tmp_path, length, clean=clean)(texts)
    for i, text in enumerate(texts):
      assert rows[i].tolist() == expected['input_ids'][i], repr(text)
      assert mask[i].tolist() == [bool(real) for real in expected['attention_mask'][i]], repr(text)


@pytest.mark.parity
def test_cleaning_equals_diffusers():
  found = importlib.util.find_spec('diffusers')
  if found is None:
    pytest.skip('the reference cleaning is in diffusers')
  # Only these functions of the pipeline: importing it takes ten seconds.
  tree = ast.parse((pathlib.Path(found.origin).parent / 'pipelines' / 'wan' / 'pipeline_wan.py').read_text())
  tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.endswith('_clean')]
  scope = {
    'ftfy': ftfy,
    'html': html,
    're': pytest.importorskip('regex', reason='which diffusers uses'),
    'is_ftfy_available': lambda: True,
  }
  exec(compile(tree, 'pipeline_wan.py', 'exec'), scope)
  for text in [*TEXTS, *fuzz(300), *(f'a{chr(i)} b' for i in (*range(0x300), *range(0x2000, 0x2100)))]:
    assert tokenizer.clean_text(text) == scope['prompt_clean'](text), repr(text)
