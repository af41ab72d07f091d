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
from benchmarks import page  # noqa: E402
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
  from one4d_jax.evaluation import benchmarks, methods, report
  from one4d_jax.flow import rectified
  from one4d_jax.flow.sampling import sample
  from one4d_jax.model import bundle as bundles
  from one4d_jax.model import umc

  bundle = bundles.load(args.weights)
  params = jax.tree.map(jnp.asarray, bundle.params)
  size = {name: getattr(bundle.config, name) for name in ('frames', 'height', 'width')}
  truths = [benchmarks.truth(benchmarks.held_out_clip('medium', i, **size), str(i)) for i in range(args.clips)]
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

  def row(what: str, latent, pixels=None) -> dict:
    found = {'what': what, 'abs_rel': error(np.asarray(decode(latent)), code)}
    return found | {'psnr': None if pixels is None else psnr(np.asarray(decode(pixels)), np.asarray(rgb))}

  rows = [row('VAE', z[1], z[0])]
  for sigma in SIGMAS:
    rows.append(row(f'each channel alone, σ {sigma:g}', alone(sigma)))
    rows.append(row(f'network, σ {sigma:g}', *estimate(sigma)[::-1]))
  for shift in SHIFTS:
    settings = {'shape': z.shape, 'steps': STEPS, 'shift': shift, 'guidance': 1.0}
    run = jax.jit(lambda key, settings=settings: sample(key, velocity, condition, **settings))
    rows.append(row(f'samples, shift {shift:g}', *run(jax.random.key(5))[::-1]))
  results = {'weights': bundle.hash, 'clips': args.clips, 'steps': STEPS, 'rows': rows}
  page.record(args, results, {'noise': report.table(*table(rows))})


def table(rows: list[dict]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
  """A row for each noise level or shift, in the columns of what was estimated."""
  found = {row['what']: row for row in rows}
  cell = lambda what, name, style: format(found[what][name], style) if what in found else '-'
  lines = []
  for what in (what for what in found if not what.startswith('each')):
    name = what.removeprefix('network, ')
    alone = cell(f'each channel alone, {name}', 'abs_rel', '.3f')
    lines.append((name, alone, cell(what, 'abs_rel', '.3f'), cell(what, 'psnr', '.1f')))
  return lines, ('latents', 'Abs Rel of each channel alone', 'Abs Rel of XYZ', 'PSNR RGB, dB')


def error(made: np.ndarray, code: np.ndarray) -> float:
  """Abs Rel of z where both show a point, after the scale of the median, of each clip; their mean."""
  from one4d_jax.model import pointmap

  found = []
  for a, b in zip(made, code, strict=True):
    shown = pointmap.valid_from_code(a) & pointmap.valid_from_code(b)
    a, b = (np.asarray(pointmap.denormalise(pointmap.undo_soft_limit(x)))[shown, 2] for x in (a, b))
    a, b = a[b > 0], b[b > 0]
    found.append(np.mean(np.abs(a * np.median(b) / np.median(a) - b) / b))
  return float(np.mean(found))


def psnr(made: np.ndarray, true: np.ndarray) -> float:
  """In dB, over all clips, of values from -1 to 1."""
  return float(-10 * np.log10(np.mean(np.square(made - true)) / 4))


if __name__ == '__main__':
  sys.exit(cli.run(main, parser()))
