"""Each network alone, against the one whose weights it was given."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from one4d_jax.model import bundle
from one4d_jax.wan import dit
from one4d_jax.wan.clip import CLIPEncoder
from one4d_jax.wan.umt5 import UMT5Encoder
from one4d_jax.wan.vae import WanVAE
from tests.parity.models import Models, half
from tests.parity.results import Result, errors, first, last, normal

TEXT = 512  # rows of text; fixed in diffusers


def velocities(model, x, t, text, image) -> np.ndarray:
  """Of the diffusers transformer; inputs as ours."""
  given = (torch.from_numpy(a).to(model.dtype) for a in (text, image))
  with torch.no_grad():
    return last(model(first(x).to(model.dtype), torch.from_numpy(t), *given, return_dict=False)[0])


def run_dit(loaded: bundle.Bundle, precision: dit.Precision, *inputs) -> np.ndarray:
  cfg = loaded.config.dit
  run = jax.jit(lambda base, *inputs: dit.velocity(cfg, base, *inputs, precision=precision, policy='none'))
  return run(loaded.params['base'], *inputs)


def dit_case(models: Models, networks: str, files: str, *, grid: tuple[int, int, int], tokens: int) -> Result:
  """``grid`` is of the latent, ``tokens`` are of the image encoder."""
  model = getattr(models, networks).dit
  c = model.config
  text = normal(2, 2, TEXT, c.text_dim)
  text[0, 7:] = 0  # as short prompts are padded
  inputs = normal(1, 2, *grid, 36), np.array([875.3, 12.0], np.float32), text, normal(3, 2, tokens, c.image_dim)
  expected = velocities(model, *inputs)
  found = run_dit(models.bundle(networks, 'native'), dit.FLOAT32, *inputs)
  theirs = velocities(half(model, models.release(networks, 'diffusers') / 'transformer'), *inputs)
  ours = run_dit(models.bundle(networks, 'native', 'bfloat16'), dit.BFLOAT16, *inputs)
  return Result(
    'DiT',
    f'{c.num_layers} layers, {c.num_attention_heads} heads x {c.attention_head_dim}, latent {"x".join(map(str, grid))}',
    files,
    *errors(found, expected),
    bfloat16=(errors(ours, expected)[1], errors(theirs, expected)[1]),
  )


def dit_cases(models: Models) -> Iterator[Result]:
  yield dit_case(models, 'whole', 'safetensors', grid=(3, 10, 14), tokens=257)
  yield dit_case(models, 'odd', '3 shards, bfloat16', grid=(5, 6, 2), tokens=11)


def vae_pair(model, video, z):
  """``(latent, pixels)`` of the diffusers VAE, with the normalisation that its pipelines apply."""
  dtype, c = model.dtype, model.config
  mean, std = np.float32(c.latents_mean), np.float32(c.latents_std)
  with torch.no_grad():
    latent = model.encode(first(video).to(dtype)).latent_dist.mode()
    pixels = model.decode(first(z * std + mean).to(dtype)).sample
  return (last(latent) - mean) / std, last(pixels)


def run_vae(loaded: bundle.Bundle, dtype, video, z):
  vae = WanVAE(loaded.config.vae, dtype)
  run = jax.jit(lambda params, video, z: (vae.encode(params, video), vae.decode(params, z)))
  return run(loaded.params['vae'], video, z)


def vae_case(
  models: Models, networks: str, *, frames: int, height: int, width: int, bfloat16: bool
) -> Iterator[Result]:
  model = getattr(models, networks).vae
  video = np.tanh(normal(1, 1, frames, height, width, 3))
  z = normal(2, 1, (frames - 1) // 4 + 1, height // 8, width // 8, 16)
  expected = vae_pair(model, video, z)
  inside = np.abs(expected[1]) < 1  # the rest was clamped
  if inside.mean() < 0.99:
    raise ValueError(f'only {inside.mean():.0%} of the pixels are comparable')
  loaded = models.bundle(networks, 'native')
  found = run_vae(loaded, jnp.float32, video, z)
  ours = theirs = (None, None)
  if bfloat16:
    ours = run_vae(loaded, jnp.bfloat16, video, z)
    theirs = vae_pair(half(model, models.release(networks, 'diffusers') / 'vae'), video, z)
  for i, name in enumerate(('VAE encode', 'VAE decode')):
    compare = lambda a, i=i: errors(np.clip(a[i], -1, 1) if i else a[i], expected[i])
    yield Result(
      name,
      f'width {model.config.base_dim}, {frames} frames of {height}x{width}',
      '.pth',
      *compare(found),
      bfloat16=(compare(ours)[1], compare(theirs)[1]) if bfloat16 else None,
    )


def vae_cases(models: Models) -> Iterator[Result]:
  for frames in (1, 5, 17):
    yield from vae_case(models, 'whole', frames=frames, height=24, width=40, bfloat16=frames == 5)
  yield from vae_case(models, 'wide', frames=5, height=16, width=16, bfloat16=False)


def umt5_cases(models: Models) -> Iterator[Result]:
  model, loaded = models.whole.text, models.bundle('whole', 'native')
  lengths, rows = (151, 23), 160  # beyond 91 all distances share a row of the position table
  mask = np.arange(rows) < np.array(lengths)[:, None]
  ids = np.where(mask, np.random.default_rng(1).integers(2, model.config.vocab_size, mask.shape), 0).astype(np.int32)

  def original(model):
    with torch.no_grad():
      out = model(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).last_hidden_state
    return out.float().numpy() * mask[..., None]  # the pipelines cut padding off

  def run(loaded, dtype):
    encoder = UMT5Encoder(loaded.config.text, dtype, dtype)
    return jax.jit(encoder.encode)(loaded.params['text'], ids, mask)

  expected = original(model)
  ours = run(models.bundle('whole', 'native', 'bfloat16'), jnp.bfloat16)
  theirs = original(half(model, models.release('whole', 'diffusers') / 'text_encoder'))
  c = model.config
  yield Result(
    'UMT5',
    f'{c.num_layers} layers, {c.num_heads} heads x {c.d_kv}, prompts of {" and ".join(map(str, lengths))} tokens',
    '.pth, bfloat16',
    *errors(run(loaded, jnp.float32), expected),
    bfloat16=(errors(ours, expected)[1], errors(theirs, expected)[1]),
  )


def clip_cases(models: Models) -> Iterator[Result]:
  model, loaded = models.whole.image, models.bundle('whole', 'native')
  picture = np.tanh(normal(1, 2, 90, 70, 3))
  processor = transformers.CLIPImageProcessorPil()
  mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
  c = model.config

  def original(model):
    """Wan's own preparation: a cubic resize to a square. That of transformers cuts the picture instead."""
    x = torch.from_numpy(np.moveaxis(picture, -1, 1).copy())
    x = torch.nn.functional.interpolate(x, (c.image_size, c.image_size), mode='bicubic', align_corners=False)
    x = ((x * 0.5 + 0.5 - mean) / std).to(model.dtype)
    with torch.no_grad():
      return model(x, output_hidden_states=True).hidden_states[-2].float().numpy()

  def run(loaded, dtype):
    encoder = CLIPEncoder(loaded.config.image, dtype, dtype)
    return jax.jit(encoder.encode)(loaded.params['image'], picture)

  expected = original(model)
  ours = run(models.bundle('whole', 'native', 'bfloat16'), jnp.bfloat16)
  theirs = original(half(model, models.release('whole', 'diffusers') / 'image_encoder'))
  yield Result(
    'CLIP',
    f'{c.num_hidden_layers} layers, {c.num_attention_heads} heads x 80, picture 90x70 to {c.image_size}x{c.image_size}',
    '.pth',
    *errors(run(loaded, jnp.float32), expected),
    bfloat16=(errors(ours, expected)[1], errors(theirs, expected)[1]),
  )
