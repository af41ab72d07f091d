"""The text and the image encoder against transformers.

  python benchmarks/text.py

UMT5-XXL's width at two of its 24 layers with a vocabulary of 1,000, one prompt of 512 tokens; CLIP ViT-H/14 whole, one
picture. Float32, random weights, as many threads for either. Writes a table of docs/performance.md.
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page, race  # noqa: E402
from one4d_jax import cli  # noqa: E402

LAYERS, VOCAB, TOKENS = 2, 1000, 512


def parser() -> argparse.ArgumentParser:
  p = page.parser('text', __doc__, page='docs/performance.md')
  p.add_argument('--rounds', type=int, default=7, help='(default: %(default)s)')
  return p


def ours(entry: dict):
  """The program of an entry; see ``race.enter``."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import numpy as np

  from one4d_jax.wan.clip import CLIPEncoder
  from one4d_jax.wan.config import CLIPConfig, UMT5Config
  from one4d_jax.wan.umt5 import UMT5Encoder

  yield
  key = jax.random.key(0)
  if entry['what'] == 'UMT5':
    encoder = UMT5Encoder(UMT5Config(layers=LAYERS, vocab=VOCAB), jnp.float32, jnp.float32)
    inputs = np.ones((1, TOKENS), np.int32), np.ones((1, TOKENS), bool)
  else:
    encoder = CLIPEncoder(CLIPConfig(), jnp.float32, jnp.float32)
    inputs = (np.zeros((1, 224, 224, 3), np.float32),)
  params = nn.unbox(jax.jit(encoder.init)(key))
  run = jax.jit(encoder.encode)
  yield lambda: run(params, *inputs).block_until_ready()


def theirs(entry: dict):
  """The same of transformers."""
  import torch
  import transformers

  yield
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  if entry['what'] == 'UMT5':
    sizes = dict(d_model=4096, d_ff=10240, num_heads=64, d_kv=64, num_layers=LAYERS, vocab_size=VOCAB)
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes, feed_forward_proj='gated-gelu')).eval()
    inputs = torch.ones(1, TOKENS, dtype=torch.long), torch.ones(1, TOKENS, dtype=torch.long)
  else:
    config = transformers.CLIPVisionConfig(
      hidden_size=1280, intermediate_size=5120, num_hidden_layers=31, num_attention_heads=16, patch_size=14
    )  # the last of 32 blocks is never run: Wan reads the output of the one before
    model, inputs = transformers.CLIPVisionModel(config).eval(), (torch.zeros(1, 3, 224, 224),)

  @torch.no_grad()
  def run():
    model(*inputs)

  yield run


def main(args: argparse.Namespace) -> None:
  rows = [race.pair(__file__, {'what': what}, BUILDERS, args.rounds) for what in ('UMT5', 'CLIP')]
  page.record(args, race.about(args.rounds, 'jax', 'torch', 'transformers') | {'rows': rows}, tables, readme=readme)


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  lines = [(row['what'], *race.columns(row, *BUILDERS)) for row in results['rows']]
  return {'text': report.table(lines, ('encoder', *race.headings(*BUILDERS)))}


readme = race.readme
BUILDERS = {'ours': ours, 'transformers': theirs}

if __name__ == '__main__':
  race.enter(BUILDERS)
  sys.exit(cli.run(main, parser()))
