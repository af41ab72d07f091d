"""The solvers along the schedules of diffusers, and a whole denoising loop against its image-to-video pipeline."""

import dataclasses
from collections.abc import Iterator

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from PIL import Image

from one4d_jax.flow import solvers
from one4d_jax.flow.guidance import guided
from one4d_jax.model import bundle, umc
from one4d_jax.model.generate import generate
from one4d_jax.wan import dit
from tests.parity.models import SIDE, Models, half
from tests.parity.releases import Networks
from tests.parity.results import Result, errors, first, last, normal

FRAMES = 9
PROMPT = 'a slow camera moves around the old red boat, while rain falls on   the lake &amp; birds fly'


SCHEDULERS = {
  'euler': lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
  'unipc': lambda shift: diffusers.UniPCMultistepScheduler(
    prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=shift
  ),
  'dpm++': lambda shift: diffusers.DPMSolverMultistepScheduler(
    prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=shift
  ),
}


def solver_case(name: str, *, steps: int, shift: float) -> Result:
  """A field that is easy to write twice, followed by both along the noise levels of diffusers.

  Its Euler levels are ours too. UniPC and DPM++ there end at 0.001 before the shift, where Wan, and we, go to 0: our
  update rule is given theirs.
  """
  scheduler = SCHEDULERS[name](shift)
  scheduler.set_timesteps(steps)
  sigmas, times = scheduler.sigmas.double().numpy(), scheduler.timesteps.double().numpy()
  start = normal(1, 4, 5)
  x = torch.from_numpy(start)
  for t in scheduler.timesteps:
    x = scheduler.step(torch.tanh(0.7 * x) * (1 + t / 1000) + 0.5 * x, t, x, return_dict=False)[0]
  field = lambda x, time: jnp.tanh(0.7 * x) * (1 + time) + 0.5 * x
  if name == 'euler':
    found = solvers.solve(field, jnp.asarray(start), solver=name, steps=steps, shift=shift)
  else:
    found = solvers.follow(field, jnp.asarray(start), solvers.tabulate(name, sigmas, times))
  levels = 'own levels' if name == 'euler' else 'levels of diffusers'
  return Result(f'Solver {name}', f'{steps} steps, shift {shift:g}, {levels}', '', *errors(found, x))


def solver_cases(models: Models) -> Iterator[Result]:
  for name in SCHEDULERS:
    for steps, shift in ((8, 3.0), (20, 5.0)):
      yield solver_case(name, steps=steps, shift=shift)


def loop_case(
  models: Models, name: str, *, steps: int = 8, shift: float = 3.0, guidance: float = 4.0
) -> Iterator[Result]:
  """An image and a prompt to a video: the diffusers image-to-video pipeline, our base model, and our ``generate``.

  Made equal, because it is free in both:
    the noise, which the pipeline takes as ``latents`` and we draw from the seed;
    the picture, a square of the size of the image encoder: diffusers crops others, Wan and we squash them;
    the noise levels of UniPC, which diffusers takes as ``sigmas`` (see ``solver_case`` for its own);
    the last layer of the VAE, see ``quiet``.
  Not made equal, because both sides should come to the same: cleaning, ids and padding of the prompt, the condition
  with its mask, the levels and timesteps of Euler, guidance, and the update rule of either solver. We guide in one
  call of a doubled batch, diffusers in two calls. In bfloat16 the VAE stays float32 on both sides.
  """
  loaded = models.bundle('whole', 'native').untrained()
  whole = loaded.replace({}, config=dataclasses.replace(loaded.config, dtype='float32'))
  shape = (2, 1, (FRAMES - 1) // 4 + 1, SIDE // 8, SIDE // 8, 16)
  noise = np.asarray(jax.random.normal(jax.random.key(0), shape))[0]  # of the RGB branch, as ``generate`` draws it
  picture = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
  video = np.zeros((FRAMES, SIDE, SIDE, 3), np.float32)
  video[0] = picture / np.float32(127.5) - 1
  observed = umc.observed_frames('image', FRAMES)
  options = {'steps': steps, 'guidance': guidance, 'shift': shift, 'solver': name}

  def original(networks):
    if name == 'euler':
      scheduler = SCHEDULERS[name](shift)
    else:
      scheduler = with_levels(SCHEDULERS[name](1.0), solvers.schedule(name, steps=steps, shift=shift).sigmas[:-1])
    return run_pipeline(models, networks, scheduler, picture, noise, steps=steps, guidance=guidance)

  expected = original(models.whole)
  found = run_base(whole, video, observed, noise, **options)
  lower = None
  if name == 'euler':
    folder, parts = models.release('whole', 'diffusers'), models.whole
    folders = zip((parts.dit, parts.text, parts.image), ('transformer', 'text_encoder', 'image_encoder'), strict=True)
    transformer, text, image = (half(module, folder / part) for module, part in folders)
    theirs = original(Networks(transformer, parts.vae, text, image))
    lower = run_base(loaded, video, observed, noise, **options), theirs
  sizes = f'{steps} steps, shift {shift:g}, guidance {guidance:g}, {FRAMES} frames of {SIDE}x{SIDE}'
  for i, what in enumerate(('latents', 'video')):
    both = None if lower is None else tuple(errors(run[i], expected[i])[1] for run in lower)
    yield Result(f'Loop {name}: {what}', sizes, 'native release', *errors(found[i], expected[i]), bfloat16=both)
  if name == 'euler':  # the whole program takes a while to compile; solvers differ in their tables alone
    rgb = generate(whole, video, observed, PROMPT, **options).rgb
    yield Result(f'Loop {name}: generate()', sizes, 'native release', *errors(np.clip(rgb, -1, 1)[None], expected[1]))


def with_levels(scheduler, sigmas: np.ndarray):
  """``scheduler`` at noise levels that its pipeline cannot be given."""
  set_timesteps = scheduler.set_timesteps
  scheduler.set_timesteps = lambda steps, device=None: set_timesteps(device=device, sigmas=sigmas)
  return scheduler


def run_pipeline(models: Models, networks: Networks, scheduler, picture, noise, *, steps: int, guidance: float):
  """``(latents, pixels)`` of the image-to-video pipeline of ``networks``, channels last."""
  size = networks.image.config.image_size
  pipeline = diffusers.WanImageToVideoPipeline(
    tokenizer=transformers.T5Tokenizer.from_pretrained(models.release('whole', 'diffusers') / 'tokenizer', extra_ids=0),
    text_encoder=networks.text,
    vae=networks.vae,
    scheduler=scheduler,
    image_processor=transformers.CLIPImageProcessorPil(size={'shortest_edge': size}, crop_size=size),
    image_encoder=networks.image,
    transformer=networks.dit,
  )
  pipeline.set_progress_bar_config(disable=True)
  latents = []
  decoded = pipeline(
    image=Image.fromarray(picture),
    prompt=PROMPT,
    negative_prompt='',
    height=SIDE,
    width=SIDE,
    num_frames=FRAMES,
    num_inference_steps=steps,
    guidance_scale=guidance,
    latents=first(noise),
    output_type='pt',
    callback_on_step_end=lambda pipeline, step, t, state: latents.append(state['latents']) or state,
  ).frames
  return last(latents[-1]), decoded.movedim(2, -1).numpy() * 2 - 1


def run_base(loaded: bundle.Bundle, video, observed, noise, *, steps, guidance, shift, solver):
  """``(latents, pixels)`` of the base model alone, without the branches and the adapters of One4D."""
  ids, mask = loaded.tokenizer([PROMPT, ''])
  cfg, vae = loaded.config.dit, loaded.vae

  @jax.jit
  def run(params, video, observed, ids, mask, noise):
    text = loaded.text.encode(params['text'], ids, mask)
    image = loaded.image.encode(params['image'], video[:, 0])
    encode = lambda video: vae.encode(params['vae'], video)
    given = umc.make_condition(encode, video, observed, text[:1], image)

    def velocity(z, sigma, text):
      x = jnp.concatenate([z, given.mask, given.latent], axis=-1)
      return dit.velocity(
        cfg, params['base'], x, 1000 * sigma[None], text, given.image, precision=loaded.precision, policy='none'
      )

    field = guided(velocity, text[:1], text[1:], guidance)
    z = solvers.solve(field, noise, solver=solver, steps=steps, shift=shift)
    return z, jnp.clip(vae.decode(params['vae'], z), -1, 1)

  return run(loaded.params, video[None], observed[None], ids, mask, noise)


def loop_cases(models: Models) -> Iterator[Result]:
  for name in ('euler', 'unipc'):
    yield from loop_case(models, name)
