"""A VAE that starts as the best linear one, found from clips by principal components and least squares, not by descent.

A fresh VAE has its residual blocks closed, so what it computes is a chain of linear maps. Where pixels enter as patches
the chain is free to be any: pixels of a patch to their leading components, pairs of frames to
theirs, the leading ones to the latent; and back by least squares. Descent from random weights spends most of its steps
on this chain, whose small components it finds last; from here it has only the residual blocks to learn.

Every norm divides by the length of its input, which would lose the contrast of a patch. So the last channel holds a
constant much longer than all others together: the length is nearly the same everywhere, and norms nearly linear.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from one4d_jax.wan.config import VAEConfig
from one4d_jax.wan.vae import patchify

CONSTANT = 6.0  # the last channel, in usual lengths of the others
SMALL = 0.03  # size of channels in a half's last norm: silu is nearly linear there
LOG_VARIANCE = -7.0  # of the posterior: much narrower than its mean, so that noise does not drown colours
_PRESENT = (2, 1, 1)  # the tap of a causal kernel on the place itself


def applies(cfg: VAEConfig) -> bool:
  """Whether the chain is free: no spatial resampler, one width, and room in it for the latent and the constant."""
  return cfg.patch > 1 and set(cfg.mult) == {1} and cfg.width > cfg.latent_channels


def start(cfg: VAEConfig, params: dict, clips: Sequence[np.ndarray]) -> dict:
  """``params`` of a fresh VAE with the linear chain written into them, float32.

  Args:
    cfg: for which ``applies``.
    params: ``{'encoder': ..., 'decoder': ...}``; what residual blocks hold stays.
    clips: videos ``[b F H W 3]`` in [-1, 1], some dozens, of both modalities.
  """
  params = jax.tree.map(np.array, params)
  encoder, decoder = params['encoder'], params['decoder']
  count, constant = cfg.width - 1, CONSTANT * np.sqrt(cfg.width)
  patches = np.concatenate([patchify(clip, cfg.patch) for clip in clips])

  # -- In: the components of a patch, in one scale that makes them sqrt(width) long
  mean, axes, deviation = _components(_rows(patches), count)
  axes = axes * np.sqrt(cfg.width / np.square(deviation).sum())
  _write(encoder['conv_in'], {_PRESENT: axes}, -mean @ axes, constant)
  features, levels = (patches - mean) @ axes, []
  for block in _in_order(encoder, 'down'):
    if 'time' not in block:
      _balance(block['norm_1'], features)
      continue
    # -- Half the frames: the components of a pair, next to a first frame's own, which goes around
    levels.append(features)
    pairs = _pairs(features[:, 1:])
    mean, axes, _ = _components(_rows(pairs), count)
    same = np.einsum('ij,ij->j', axes[:count] + axes[count:], np.eye(count))
    axes = axes * np.where(same < 0, -1, 1) / np.sqrt(2)
    _write(block['time'], {(1, 0, 0): axes[:count], (2, 0, 0): axes[count:]}, -mean @ axes, constant)
    features = np.concatenate([features[:, :1], (pairs - mean) @ axes], axis=1)

  # -- The latent: the leading components, each scaled to the root of its deviation
  _middle(encoder, features)
  latent = features[..., : cfg.latent_channels]
  scale = 1 / np.sqrt(_rows(latent).std(axis=0))
  kernel, bias = _least_squares(_rows(_normed(features, encoder['norm_out'], constant)), _rows(latent * scale))
  _write(encoder['conv_out'], {_PRESENT: kernel}, bias)
  identity, narrow = np.eye(cfg.latent_channels), np.full(cfg.latent_channels, LOG_VARIANCE)
  _write(encoder['to_moments'], {(): identity}, np.concatenate([0 * narrow, narrow]))
  _write(decoder['from_latent'], {(): identity}, 0 * narrow)
  _write(decoder['conv_in'], {_PRESENT: identity / scale}, 0 * narrow, constant)
  features = np.pad(latent, (*[(0, 0)] * 4, (0, count - cfg.latent_channels)))

  _middle(decoder, features)
  for block in _in_order(decoder, 'up'):
    if 'time' not in block:
      _balance(block['norm_1'], features)
      continue
    # -- All frames again: pairs from the present and two places before
    rest = np.pad(features[:, 1:], ((0, 0), (2, 0), *[(0, 0)] * 3))
    seen = np.concatenate([rest[:, i : rest.shape[1] - 2 + i] for i in range(3)], axis=-1)
    kernel, bias = _least_squares(_rows(seen), _rows(_pairs(levels.pop()[:, 1:])))
    pairs = seen @ kernel + bias
    features = np.concatenate([features[:, :1], rearrange(pairs, 'b t h w (two c) -> b (t two) h w c', two=2)], axis=1)
    both = kernel.reshape(3, count, 2, count)
    kernel, bias = np.pad(both, ((0, 0), (0, 1), (0, 0), (0, 1))), np.pad(bias.reshape(2, count), ((0, 0), (0, 1)))
    bias[:, -1] = constant
    _write(block['time'], {(i, 0, 0): kernel[i].reshape(cfg.width, -1) for i in range(3)}, bias.reshape(-1))

  # -- Out: the pixels of a patch, from what it and its neighbours hold
  normed = np.pad(_normed(features, decoder['norm_out'], constant), (*[(0, 0)] * 2, (1, 1), (1, 1), (0, 0)))
  rows, columns = patches.shape[2:4]
  around = [normed[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
  kernel, bias = _least_squares(_rows(np.concatenate(around, axis=-1).astype(np.float32)), _rows(patches))
  _write(decoder['conv_out'], {(2, *divmod(n, 3)): k for n, k in enumerate(np.split(kernel, 9))}, bias)
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _rows(x: np.ndarray) -> np.ndarray:
  return x.reshape(-1, x.shape[-1])


def _pairs(x: np.ndarray) -> np.ndarray:
  return rearrange(x, 'b (t two) h w c -> b t h w (two c)', two=2)


def _in_order(half: dict, kind: str) -> list[dict]:
  """The blocks 'down' or 'up' of a half."""
  names = (name for name in half if name.startswith(f'{kind}_'))
  return [half[name] for name in sorted(names, key=lambda name: int(name.split('_')[1]))]


def _middle(half: dict, features: np.ndarray) -> None:
  for norm in (half['mid_1']['norm_1'], half['mid_attention']['norm'], half['mid_2']['norm_1']):
    _balance(norm, features)


def _balance(norm: dict, features: np.ndarray) -> None:
  """Sets ``gamma`` so that a block sees components scaled to the root of their deviation, in the mean of size 1."""
  size = np.sqrt(np.square(_rows(features)).mean(axis=0))
  present = size > 1e-6
  weight = np.where(present, 1 / np.sqrt(np.maximum(size, 1e-6)), 0)
  norm['gamma'][:] = np.append(CONSTANT * weight / np.sqrt(size[present].mean()), 0.1)


def _components(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean, leading axes ``[d count]`` and the standard deviation along each."""
  variance, axes = np.linalg.eigh(np.cov(x.T))
  leading = np.argsort(variance)[::-1][:count]
  return x.mean(axis=0), axes[:, leading], np.sqrt(np.maximum(variance[leading], 1e-8))


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Kernel and bias of the affine map from ``x`` to ``y``; a trace of ridge where ``x`` does not span."""
  x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
  products = (x.T @ x).astype(np.float64)
  ridge = 1e-9 * np.diag(products).mean() * np.append(np.ones(len(products) - 1), 0)
  solution = np.linalg.solve(products + np.diag(ridge), x.T @ y)
  return solution[:-1], solution[-1]


def _normed(features: np.ndarray, norm: dict, constant: float) -> np.ndarray:
  """Sets ``gamma`` of a half's last norm so that each channel is ``SMALL``; silu of what it then gives."""
  x = np.concatenate([features, np.full((*features.shape[:-1], 1), constant)], axis=-1)
  x *= np.sqrt(x.shape[-1]) / np.linalg.norm(x, axis=-1, keepdims=True)
  norm['gamma'][:] = SMALL / np.sqrt((_rows(x) ** 2).mean(axis=0) + 1e-9)
  norm['gamma'][-1] = SMALL / CONSTANT
  x *= norm['gamma']
  return x / (1 + np.exp(-x))


def _write(conv: dict, taps: dict, bias: np.ndarray, constant: float = 0) -> None:
  """The matrices of a convolution's taps, zero elsewhere; ``constant`` in the last channel where ``bias`` has none."""
  conv['kernel'][:], conv['bias'][:-1], conv['bias'][-1] = 0, 0, constant
  for tap, matrix in taps.items():
    conv['kernel'][tap][: matrix.shape[0], : matrix.shape[1]] = matrix
  conv['bias'][: len(bias)] = bias
