"""The video VAE against diffusers' AutoencoderKLWan: time and memory by frames and size.

  python benchmarks/vae.py
  python benchmarks/vae.py --sizes 17x128x128 --rounds 3

Wan's full width, batch 1, float32, random weights, as many threads for either; both work on one latent frame
at a time. Writes a table of docs/performance.md.
"""

import argparse
import functools
import itertools
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page, race  # noqa: E402
from one4d_jax import cli  # noqa: E402


def parser() -> argparse.ArgumentParser:
  p = page.parser('vae', __doc__, page='docs/performance.md')
  sizes = lambda text: [tuple(map(int, size.split('x'))) for size in text.split(',')]
  default = '5x128x128,17x128x128,17x256x256'
  p.add_argument('--sizes', type=sizes, default=default, metavar='FxHxW,...', help='(default: %(default)s)')
  p.add_argument('--rounds', type=int, default=5, help='(default: %(default)s)')
  return p


def ours(entry: dict):
  """The program of an entry; see ``race.enter``."""
  import jax

  from one4d_jax.wan.config import VAEConfig
  from one4d_jax.wan.vae import WanVAE, chunk_for

  yield
  vae, key = WanVAE(VAEConfig()), jax.random.key(0)
  params = jax.jit(vae.init)(key)
  F, H, W = entry['size']
  size = (F, H, W, 3) if entry['what'] == 'encode' else ((F - 1) // 4 + 1, H // 8, W // 8, 16)
  network = functools.partial(getattr(vae, entry['what']), chunk=chunk_for(F, H, W, 'cpu'))
  run, x = jax.jit(network), jax.random.normal(key, (1, *size))
  yield lambda: run(params, x).block_until_ready()


def theirs(entry: dict):
  """The same of diffusers."""
  import diffusers
  import torch

  yield
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  vae = diffusers.AutoencoderKLWan().eval()
  F, H, W = entry['size']
  video, latent = torch.randn(1, 3, F, H, W), torch.randn(1, 16, (F - 1) // 4 + 1, H // 8, W // 8)

  @torch.no_grad()
  def run():
    vae.encode(video) if entry['what'] == 'encode' else vae.decode(latent)

  yield run


def main(args: argparse.Namespace) -> None:
  work = itertools.product(args.sizes, ('encode', 'decode'))
  rows = [race.pair(__file__, {'size': size, 'what': what}, BUILDERS, args.rounds) for size, what in work]
  page.record(args, race.about(args.rounds, 'jax', 'torch', 'diffusers') | {'rows': rows}, tables, readme=readme)


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  lines = [('x'.join(map(str, row['size'])), row['what'], *race.columns(row, *BUILDERS)) for row in results['rows']]
  return {'vae': report.table(lines, ('frames x height x width', 'work', *race.headings(*BUILDERS)))}


readme = race.readme
BUILDERS = {'ours': ours, 'diffusers': theirs}

if __name__ == '__main__':
  race.enter(BUILDERS)
  sys.exit(cli.run(main, parser()))
