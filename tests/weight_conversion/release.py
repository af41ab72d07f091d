"""A tiny release in Wan's native layout, its names made by the tables."""

import functools
import io
import json
import pathlib

import ml_dtypes
import numpy as np
import safetensors.numpy
import sentencepiece

from one4d_jax.wan.config import CLIPConfig, DiTConfig, UMT5Config, VAEConfig
from tests.weight_conversion import random

CONFIGS = {
  'base': DiTConfig(width=32, ffn_width=48, heads=2, layers=4, text_width=32, image_width=80, freq_width=16),
  'vae': VAEConfig(width=4),
  'text': UMT5Config(vocab=256, width=32, ffn_width=40, heads=4, layers=2),
  'image': CLIPConfig(image_size=32, patch=16, width=80, layers=3, heads=1, mlp_width=96),
}
FILES = {
  'base': 'diffusion_pytorch_model.safetensors',
  'vae': 'Wan2.1_VAE.pth',
  'text': 'models_t5_umt5-xxl-enc-bf16.pth',
  'image': 'models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth',
}
DTYPES = {'base': 'bfloat16', 'vae': 'float32', 'text': 'bfloat16', 'image': 'float32'}


def tensors(part: str) -> dict[str, np.ndarray]:
  """Random tensors with the native names of one part, and of what its file has besides."""
  found = random(part, CONFIGS[part], 'native', DTYPES[part])
  extra = {'log_scale': np.zeros((), np.float32), 'textual.token': np.zeros((3, 2), np.float32)}
  return found | extra if part == 'image' else found


def write(folder: pathlib.Path, parts: tuple[str, ...] = tuple(FILES), *, shards: int = 1) -> pathlib.Path:
  """The files of a release; the DiT in ``shards`` of them."""
  folder.mkdir(parents=True, exist_ok=True)
  for part in parts:
    found = tensors(part)
    if part != 'base':
      torch_save({name: to_torch(value) for name, value in found.items()}, folder / FILES[part])
    elif shards == 1:
      safetensors.numpy.save_file(found, folder / FILES['base'])
    else:
      write_shards(folder, found, shards)
  if 'base' in parts:
    cfg = CONFIGS['base']
    (folder / 'config.json').write_text(json.dumps({'model_type': 'i2v', 'dim': cfg.width, 'num_heads': cfg.heads}))
  if 'text' in parts:
    (folder / 'google/umt5-xxl').mkdir(parents=True, exist_ok=True)
    (folder / 'google/umt5-xxl/spiece.model').write_bytes(pieces())
  return folder


@functools.cache
def pieces() -> bytes:
  """A SentencePiece model of fewer pieces than the text encoder knows."""
  model = io.BytesIO()
  words = ['the', 'camera', 'moves', 'around', 'a', 'red', 'ball', 'on', 'grey', 'stone', 'over', 'green', 'hills']
  lines = [' '.join(words[i:] + words[:i]) for i in range(len(words))]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=model, vocab_size=CONFIGS['text'].vocab, hard_vocab_limit=False,
    pad_id=0, eos_id=1, unk_id=3, bos_id=2, num_threads=1, minloglevel=2,
  )  # fmt: skip
  return model.getvalue()


def write_shards(folder: pathlib.Path, found: dict[str, np.ndarray], shards: int) -> None:
  weight_map = {}
  for i in range(shards):
    name = f'diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors'
    part = dict(list(found.items())[i::shards])
    safetensors.numpy.save_file(part, folder / name)
    weight_map |= dict.fromkeys(part, name)
  (folder / f'{FILES["base"]}.index.json').write_text(json.dumps({'weight_map': weight_map}))


def to_torch(value: np.ndarray):
  import torch

  if value.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
  return torch.from_numpy(np.array(value))


def torch_save(content, path: pathlib.Path) -> None:
  import torch

  torch.save(content, path)
