"""Random networks of diffusers and transformers, written as the files that Wan2.1 is published in.

  native      config.json, diffusion_pytorch_model.safetensors (or shards and an index), Wan2.1_VAE.pth,
              models_t5_umt5-xxl-enc-bf16.pth, models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth,
              google/umt5-xxl/spiece.model
  diffusers   transformer/  vae/  text_encoder/  image_encoder/  tokenizer/
  single      one safetensors file of the DiT, names behind ``model.diffusion_model.``

Every weight is drawn at random, norms and biases too: fresh ones are 1 and 0, which hides a swap.
"""

import io
import json
import pathlib
from typing import NamedTuple

import sentencepiece
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from tests.parity import names

VAE_FILE = 'Wan2.1_VAE.pth'
TEXT_FILE = 'models_t5_umt5-xxl-enc-bf16.pth'
CLIP_FILE = 'models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth'
PREFIX = 'model.diffusion_model.'


class Networks(NamedTuple):
  """The parts of one model; float32, in evaluation mode. What a release does not hold is None."""

  dit: WanTransformer3DModel | None = None
  vae: AutoencoderKLWan | None = None
  text: transformers.UMT5EncoderModel | None = None
  image: transformers.CLIPVisionModel | None = None


def dit(*, heads: int, head_width: int, layers: int, ffn: int, text: int, image: int) -> WanTransformer3DModel:
  width = heads * head_width
  return WanTransformer3DModel(
    num_attention_heads=heads,
    attention_head_dim=head_width,
    in_channels=36,
    text_dim=text,
    ffn_dim=ffn,
    num_layers=layers,
    image_dim=image,
    added_kv_proj_dim=width,
  )


def umt5(*, width: int, heads: int, layers: int, ffn: int, vocab: int) -> transformers.UMT5EncoderModel:
  return transformers.UMT5EncoderModel(
    transformers.UMT5Config(
      vocab_size=vocab, d_model=width, d_kv=width // heads, d_ff=ffn, num_layers=layers, num_heads=heads
    )
  )


def clip(*, width: int, layers: int, mlp: int, image: int) -> transformers.CLIPVisionModel:
  """Heads are 80 wide, which is all that a native file without a config says."""
  return transformers.CLIPVisionModel(
    transformers.CLIPVisionConfig(
      hidden_size=width,
      intermediate_size=mlp,
      num_hidden_layers=layers,
      num_attention_heads=width // 80,
      image_size=image,
      patch_size=16,
      hidden_act='gelu',
    )
  )


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int, *, bfloat16: bool = False) -> torch.nn.Module:
  """Draws every parameter of ``module``; with ``bfloat16`` values that a bfloat16 file keeps. In evaluation mode."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in module.named_parameters():
    n = torch.randn(p.shape, generator=generator)
    if name.endswith('gamma') or (p.ndim == 1 and name.endswith('weight')):
      n = 1 + 0.2 * n
    elif 'table' in name:
      n *= 0.3
    elif p.ndim == 1 and name.endswith('bias'):
      n *= 0.1
    elif name.endswith('_embedding') or 'position_embedding' in name:
      n *= 0.5
    elif 'shared' not in name and 'relative_attention_bias' not in name:
      n /= p[0].numel() ** 0.5
    if '.SelfAttention.q.' in name:  # UMT5 divides its logits by nothing
      n /= 4
    p.copy_(n.bfloat16() if bfloat16 else n)
  return module.eval().requires_grad_(False)


def sentencepiece_model() -> bytes:
  """A SentencePiece model with UMT5's special ids."""
  model = io.BytesIO()
  line = 'a slow camera moves around the old red boat on the lake while rain falls and birds fly over trees '
  lines = [(line[i:] + line[:i]).strip() for i, letter in enumerate(line) if letter == ' ']
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=model, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    hard_vocab_limit=False, minloglevel=2, num_threads=1,
  )  # fmt: skip
  return model.getvalue()


def native_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
  """The weights of ``module`` as Wan's own file names and shapes them."""
  match module:
    case WanTransformer3DModel():
      return {names.native(k, names.DIT): v for k, v in module.state_dict().items()}
    case AutoencoderKLWan():
      return {names.native(k, names.VAE): v for k, v in module.state_dict().items()}
    case transformers.UMT5EncoderModel():
      state = {names.native(k, names.UMT5): v for k, v in module.state_dict().items()}
      del state['encoder.embed_tokens.weight']  # the same tensor as ``shared``
      return state
    case transformers.CLIPVisionModel():
      return clip_state(module)


def clip_state(module: transformers.CLIPVisionModel) -> dict[str, torch.Tensor]:
  state = {names.native(k, names.CLIP): v for k, v in module.state_dict().items()}
  for end in ('weight', 'bias'):
    for i in range(module.config.num_hidden_layers):
      name = f'transformer.{i}.attn.to_qkv.'
      state[f'{name}{end}'] = torch.cat([state.pop(f'{name}{part}.{end}') for part in 'qkv'])
  state['cls_embedding'] = state['cls_embedding'][None, None]
  state['pos_embedding'] = state['pos_embedding'][None]
  state['head'] = torch.ones(module.config.hidden_size, 8)
  visual = {f'visual.{k}': v for k, v in state.items()}
  return visual | {'log_scale': torch.tensor(1.0), 'textual.token_embedding.weight': torch.ones(4, 4)}


def native_config(module: WanTransformer3DModel) -> dict:
  """``config.json`` beside a native DiT: it has neither the text width nor the image width."""
  c = module.config
  return {
    '_class_name': 'WanModel',
    'model_type': 'i2v',
    'dim': c.num_attention_heads * c.attention_head_dim,
    'eps': c.eps,
    'ffn_dim': c.ffn_dim,
    'freq_dim': c.freq_dim,
    'in_dim': c.in_channels,
    'num_heads': c.num_attention_heads,
    'num_layers': c.num_layers,
    'out_dim': c.out_channels,
    'text_len': 512,
  }


def write_native(
  folder: pathlib.Path, networks: Networks, *, shards: int = 1, dtype=torch.float32, tokenizer: bytes | None = None
) -> pathlib.Path:
  """The layout of Wan-AI/Wan2.1-I2V-* (shards) and of Wan2.1-Fun-*-InP (one file); ``dtype`` is that of the DiT."""
  folder.mkdir(parents=True)
  if networks.dit is not None:
    (folder / 'config.json').write_text(json.dumps(native_config(networks.dit)))
    state = {k: v.to(dtype) for k, v in native_state(networks.dit).items()}
    if shards == 1:
      save_file(state, folder / 'diffusion_pytorch_model.safetensors')
    else:
      write_shards(folder, state, shards)
  for module, file, kind in (
    (networks.vae, VAE_FILE, torch.float32),
    (networks.text, TEXT_FILE, torch.bfloat16),
    (networks.image, CLIP_FILE, torch.float32),
  ):
    if module is not None:
      torch.save({k: v.to(kind) for k, v in native_state(module).items()}, folder / file)
  if tokenizer is not None:
    (folder / 'google' / 'umt5-xxl').mkdir(parents=True)
    (folder / 'google' / 'umt5-xxl' / 'spiece.model').write_bytes(tokenizer)
  return folder


def write_shards(folder: pathlib.Path, state: dict[str, torch.Tensor], shards: int) -> None:
  """Tensors dealt out in turn, so that every layer lies in every file."""
  index = {}
  for i in range(shards):
    part = dict(list(state.items())[i::shards])
    file = f'diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors'
    save_file(part, folder / file)
    index |= dict.fromkeys(part, file)
  size = sum(v.nbytes for v in state.values())
  content = {'metadata': {'total_size': size}, 'weight_map': dict(sorted(index.items()))}
  (folder / 'diffusion_pytorch_model.safetensors.index.json').write_text(json.dumps(content))


def write_diffusers(
  folder: pathlib.Path, networks: Networks, *, shard: str = '10GB', tokenizer: bytes | None = None
) -> pathlib.Path:
  """The layout of Wan-AI/Wan2.1-*-Diffusers, by ``save_pretrained``; ``shard`` is the largest size of a file."""
  folder.mkdir(parents=True)
  for module, part in zip(networks, ('transformer', 'vae', 'text_encoder', 'image_encoder'), strict=True):
    if module is not None:
      module.save_pretrained(folder / part, max_shard_size=shard)
  if networks.image is not None:  # transformers 5 leaves out the prefix that the published files have
    for file in (folder / 'image_encoder').glob('*.safetensors'):
      save_file({f'vision_model.{k}': v for k, v in load_file(file).items()}, file, {'format': 'pt'})
    for file in (folder / 'image_encoder').glob('*.index.json'):
      index = json.loads(file.read_text())
      index['weight_map'] = {f'vision_model.{k}': v for k, v in index['weight_map'].items()}
      file.write_text(json.dumps(index))
  if tokenizer is not None:
    (folder / 'tokenizer').mkdir()
    (folder / 'tokenizer' / 'spiece.model').write_bytes(tokenizer)
  return folder


def write_single(folder: pathlib.Path, module: WanTransformer3DModel) -> pathlib.Path:
  """One file and nothing beside it, as the DiT is shared for graphical front ends; returns the file."""
  folder.mkdir(parents=True)
  file = folder / 'wan2.1_i2v_14B_fp32.safetensors'
  save_file({PREFIX + k: v for k, v in native_state(module).items()}, file)
  return file
