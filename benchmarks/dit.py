"""The DiT against diffusers and PEFT, and One4D's two branches against other ways to make two videos.

  python benchmarks/dit.py --rounds 3
  python benchmarks/dit.py --layers 30 --tokens 1560 --work forward --rounds 2 --add

The width of Wan 1.3B with an image condition, batch 1, float32, random weights, as many threads for either. A step is
forward, backward and AdamW of a LoRA of rank 64 on every linear of the blocks. Writes the tables of
docs/performance.md.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import page, race  # noqa: E402
from one4d_jax import cli  # noqa: E402

# Tokens along frames, rows, columns; the last is the paper's size.
GRIDS = {390: (5, 6, 13), 1560: (5, 12, 26), 3120: (5, 24, 26), 18018: (21, 22, 39)}
RANK, TEXT, IMAGE = 64, 512, 257
WORK = {  # what is run, and how much of the forward pass the backward pass does again
  'forward': 'forward',
  'step': 'step, nothing recomputed',
  'remat': 'step, blocks recomputed',
}
FORWARDS = {'forward': 1, 'two forwards': 2}  # of the base alone
MODELS = ('no_links', 'dlc', 'spatial_concat', 'channel_concat')
THEIRS = 'diffusers'


def parser() -> argparse.ArgumentParser:
  p = page.parser('dit', __doc__, page='docs/performance.md')
  numbers = lambda text: [int(n) for n in text.split(',')]
  p.add_argument('--layers', type=numbers, default=[2], metavar='N,...', help='(default: 2)')
  p.add_argument(
    '--tokens', type=numbers, default=[390, 1560], metavar='N,...', help=f'of {", ".join(map(str, GRIDS))}'
  )
  names = lambda text: text.split(',')
  for flag, known in (('--work', WORK), ('--joined', (*MODELS, THEIRS))):
    about = f'of {", ".join(known)}; or none'
    p.add_argument(flag, type=names, default=list(known), metavar='A,B,...', help=about)
  p.add_argument('--rounds', type=int, default=5, help='(default: %(default)s)')
  p.add_argument('--add', action='store_true', help='to what --out holds')
  return p


def ours(entry: dict):
  """The program of an entry; see ``race.enter``."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  from one4d_jax.model import baselines, dlc
  from one4d_jax.model.one4d import base_shapes
  from one4d_jax.model.umc import Condition
  from one4d_jax.nn import lora, remat
  from one4d_jax.wan import dit

  yield
  cfg, adapted = config(entry['layers'])
  f, h, w = GRIDS[entry['tokens']]
  key = jax.random.key(0)
  base = nn.unbox(jax.jit(lambda key: dit.init_base(key, cfg, dit.FLOAT32))(key))
  x = jax.random.normal(key, (2, 1, f, 2 * h, 2 * w, cfg.in_channels))
  text, image = jax.random.normal(key, (1, TEXT, cfg.text_width)), jax.random.normal(key, (1, IMAGE, cfg.image_width))
  timestep = jnp.full(1, 500.0)
  plain = lambda base, x: dit.velocity(cfg, base, x, timestep, text, image, precision=dit.FLOAT32)
  what = entry['what']

  if what in FORWARDS:
    run = jax.jit(plain)
    yield lambda: [run(base, one).block_until_ready() for one in x[: FORWARDS[what]]]
  elif what in MODELS:
    model = baselines.MODELS[what](cfg, adapted, dit.FLOAT32)
    adapters = nn.unbox(model.init_adapters(key, base))
    mask, latent = jnp.split(x[0, ..., cfg.out_channels :], [4], axis=-1)
    condition = Condition(latent=latent, mask=mask, text=text, image=image)
    run = jax.jit(model.velocity)
    z = x[..., : cfg.out_channels]
    yield lambda: run(base, adapters, z, timestep / 1000, condition).block_until_ready()
  else:
    policy = 'block' if what == 'remat' else 'none'
    stack = functools.partial(remat.stack, policy=policy)
    adapters = nn.unbox(lora.init(key, base_shapes(cfg, dit.FLOAT32)['blocks'], rank=RANK, modalities=1))
    optimizer = optax.adamw(1e-4)

    def loss(adapters, base):
      grid = dit.token_grid(cfg, x.shape[1:])
      e, context = dit.embed_inputs(cfg, base, grid, timestep, text, image, dit.FLOAT32)
      tokens = dit.WanEmbed(cfg, dit.FLOAT32).apply({'params': base['embed']}, x[0], method='tokens')
      through = functools.partial(dlc.run, link_layers=(), precision=dit.FLOAT32, stack=stack)
      [y] = through(cfg, base['blocks'], {'lora': adapters}, tokens[None], context)
      out = dit.WanHead(cfg, dit.FLOAT32).apply({'params': base['head']}, y, e)
      return jnp.square(dit.read_out(cfg, out, grid, x[0, ..., : cfg.out_channels], timestep / 1000)).mean()

    def step(state, base):
      grads = jax.grad(loss)(state[0], base)
      updates, moments = optimizer.update(grads, state[1], state[0])
      return optax.apply_updates(state[0], updates), moments

    run = jax.jit(step, donate_argnums=0)
    state = [adapters, optimizer.init(adapters)]

    def once():
      state[:] = jax.block_until_ready(run(tuple(state), base))

    yield once


def links(layers: int) -> tuple[int, ...]:
  """After an eighth of the layers, evenly spaced, as in the paper; after one at least."""
  count = max(1, layers // 8)
  return tuple((i + 1) * layers // count - 1 for i in range(count))


def theirs(entry: dict):
  """The same of diffusers."""
  import diffusers
  import peft
  import torch

  yield
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(0)
  model = diffusers.WanTransformer3DModel(
    num_attention_heads=12, attention_head_dim=128, in_channels=36, out_channels=16, text_dim=4096, freq_dim=256,
    ffn_dim=8960, num_layers=entry['layers'], image_dim=1280, added_kv_proj_dim=1536,
  ).eval()  # fmt: skip
  f, h, w = GRIDS[entry['tokens']]
  x = torch.randn(1, 36, f, 2 * h, 2 * w)
  inputs = x, torch.tensor([500.0]), torch.randn(1, TEXT, 4096), torch.randn(1, IMAGE, 1280)
  if entry['what'] in FORWARDS:

    @torch.no_grad()
    def forward():
      for _ in range(FORWARDS[entry['what']]):
        model(*inputs, return_dict=False)

    yield forward
    return
  model.requires_grad_(False)
  names = [name for name, part in model.blocks.named_modules() if isinstance(part, torch.nn.Linear)]
  model.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[f'blocks.{name}' for name in names]))
  if entry['what'] == 'remat':
    model.enable_gradient_checkpointing()
    model.train()
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

  def step():
    model(*inputs, return_dict=False)[0].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()

  yield step


def config(layers: int):
  """The network of a row, and its adapters."""
  from one4d_jax.model.one4d import AdapterConfig
  from one4d_jax.wan.config import DiTConfig

  cfg = DiTConfig(width=1536, ffn_width=8960, heads=12, layers=layers)
  return cfg, AdapterConfig(rank=RANK, link_layers=links(layers))


def pairs(args: argparse.Namespace) -> list[dict]:
  """Both libraries at the same work."""
  rows = []
  for layers, tokens, what in itertools.product(args.layers, args.tokens, [w for w in WORK if w in args.work]):
    entry = {'layers': layers, 'tokens': tokens, 'what': what}
    rows.append(race.pair(__file__, entry, BUILDERS, args.rounds))
    print(rows[-1], flush=True)
  return rows


def joined(args: argparse.Namespace) -> list[dict]:
  """Ways to make both videos, beside two forward passes of the base."""
  rows, models = [], [model for model in MODELS if model in args.joined]
  for layers, tokens in itertools.product(args.layers, args.tokens) if models else ():
    entry = {'layers': layers, 'tokens': tokens}
    entries = {what: entry | {'who': 'ours', 'what': what} for what in ('two forwards', *models)}
    if THEIRS in args.joined:
      entries[f'{THEIRS}, two forwards'] = entry | {'who': THEIRS, 'what': 'two forwards'}
    found = race.race(__file__, entries, args.rounds)
    rows += [entry | {'what': what, **result._asdict()} for what, result in found.items()]
  return rows


def operations(row: dict) -> int:
  """Of what a row of ``joined`` ran."""
  from one4d_jax.training import flops

  (cfg, adapters), sizes = config(row['layers']), flops.Sizes(1, GRIDS[row['tokens']], TEXT, IMAGE)
  if row['what'] in MODELS:
    return sum(flops.one4d(cfg, dataclasses.replace(adapters, kind=row['what']), sizes).forward.values())
  return 2 * sum(flops.base(cfg, sizes).forward.values())


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  label = lambda row: (str(row['layers']), str(row['tokens']), WORK[row['what']])
  rows = [(*label(row), *race.columns(row, *BUILDERS)) for row in results['pairs']]
  made = {'dit': report.table(rows, ('layers', 'tokens', 'work', *race.headings(*BUILDERS)))}
  place = lambda row: (row['layers'], row['tokens'])
  two = {place(row): row for row in results['joined'] if row['what'] == 'two forwards'}
  rows = []
  for row in results['joined']:
    base = two[place(row)]
    shares = row['seconds'] / base['seconds'], operations(row) / operations(base)
    rows.append((*map(str, place(row)), row['what'], f'{row["seconds"]:.2f}', *(f'{share:.2f}' for share in shares)))
  return made | {
    'joined': report.table(rows, ('layers', 'tokens a video', 'what', 's', 'of two forwards', 'operations of two'))
  }


def main(args: argparse.Namespace) -> None:
  made = {'pairs': pairs(args), 'joined': joined(args)}
  if args.add:
    results = json.loads(pathlib.Path(args.out).read_text())
    results |= {name: results[name] + rows for name, rows in made.items()}
  else:
    results = race.about(args.rounds, 'jax', 'torch', 'diffusers', 'peft') | made
  page.record(args, results, tables, readme=readme)


readme = race.readme
BUILDERS = {'ours': ours, THEIRS: theirs}

if __name__ == '__main__':
  race.enter(BUILDERS)
  sys.exit(cli.run(main, parser()))
