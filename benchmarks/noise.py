"""At which noise levels the embedded model knows geometry, and what of it its samples have.

  python benchmarks/noise.py

Held-out clips of the level medium, given whole. First, what the network makes of true latents under noise of one level:
their best estimate, decoded, beside the estimate that knows each channel's mean and variance alone. Then samples, by
the shift of the solver's noise levels. Writes a table of docs/tiny.md.
"""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import embedded, page  # noqa: E402
from one4d_jax import cli  # noqa: E402

SIGMAS = (0.99, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1)
SHIFTS = (5.0, 20.0, 80.0)
STEPS = 50


def parser() -> argparse.ArgumentParser:
  p = page.parser('noise', __doc__, page='docs/tiny.md')
  p.add_argument('--weights', metavar='DIR', help='a bundle; default: the embedded model')
  p.add_argument('--clips', type=int, default=8, help='(default: %(default)s)')
  return p


def main(args: argparse.Namespace) -> None:
  import jax
  import jax.numpy as jnp

  from one4d_jax.data.clip import signed
  from one4d_jax.evaluation import methods
  from one4d_jax.evaluation.video import psnr
  from one4d_jax.flow import rectified
  from one4d_jax.flow.sampling import sample
  from one4d_jax.model import bundle as bundles
  from one4d_jax.model import umc

  bundle = bundles.load(args.weights)
  params = jax.tree.map(jnp.asarray, bundle.params)
  truths = [embedded.held_out(bundle, 'medium', i) for i in range(args.clips)]
  rgb = jnp.stack([signed(truth.rgb) for truth in truths])
  code = np.stack([methods.true_code(truth) for truth in truths])

  encode = jax.jit(lambda video: bundle.vae.encode(params['vae'], video))
  decode = jax.jit(lambda z: bundle.vae.decode(params['vae'], z))
  text = bundle.text.encode(params['text'], *bundle.tokenizer([truth.caption for truth in truths]))
  image = bundle.image.encode(params['image'], rgb[:, 0])
  condition = umc.make_condition(encode, rgb, jnp.ones(rgb.shape[:2], bool), text, image)
  z = jnp.stack([encode(rgb), encode(jnp.asarray(code))])
  eps = jax.random.normal(jax.random.key(1), z.shape)

  def velocity(z, sigma, condition):
    return bundle.model.velocity(params['base'], params['adapters'], z, jnp.full(z.shape[1], sigma), condition)

  @jax.jit
  def estimate(sigma):
    noisy = rectified.interpolate(z, eps, sigma)
    return noisy - sigma * velocity(noisy, sigma, condition)

  @jax.jit
  def alone(sigma):
    """Of XYZ, by the mean and the variance of each channel over these clips."""
    mean, variance = z[1].mean((0, 1, 2, 3)), z[1].var((0, 1, 2, 3))
    gain = variance * (1 - sigma) / (variance * (1 - sigma) ** 2 + sigma**2)
    return mean + gain * (rectified.interpolate(z, eps, sigma)[1] - (1 - sigma) * mean)

  def row(what: str, latents, by_channel=None) -> dict:
    pixels, made = map(np.asarray, map(decode, latents))
    alone = None if by_channel is None else error(np.asarray(decode(by_channel)), code)
    return {'what': what, 'alone': alone, 'abs_rel': error(made, code), 'psnr': psnr(pixels, np.asarray(rgb))}

  rows = [row('VAE', z), *(row(f'σ {sigma:g}', estimate(sigma), alone(sigma)) for sigma in SIGMAS)]
  for shift in SHIFTS:
    settings = {'shape': z.shape, 'steps': STEPS, 'shift': shift, 'guidance': 1.0}
    run = jax.jit(lambda key, settings=settings: sample(key, velocity, condition, **settings))
    rows.append(row(f'samples, shift {shift:g}', run(jax.random.key(5))))
  page.record(args, {'weights': bundle.hash, 'clips': args.clips, 'steps': STEPS, 'rows': rows}, tables)


def tables(results: dict) -> dict[str, str]:
  from one4d_jax.evaluation import report

  columns = {'alone': ('Abs Rel of each channel alone', '.3f'), 'abs_rel': ('Abs Rel of XYZ', '.3f')}
  columns |= {'psnr': ('PSNR RGB, dB', '.1f')}
  cell = lambda value, style: '-' if value is None else format(value, style)
  lines = [(row['what'], *(cell(row[name], style) for name, (_, style) in columns.items())) for row in results['rows']]
  return {'noise': report.table(lines, ('latents', *(heading for heading, _ in columns.values())))}


def error(made: np.ndarray, code: np.ndarray) -> float:
  """Abs Rel of z, after the scale of the median, of each clip; their mean."""
  pairs = [embedded.depths(a, b) for a, b in zip(made, code, strict=True)]
  return float(np.mean([np.mean(np.abs(a * np.median(b) / np.median(a) - b) / b) for a, b in pairs]))


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
