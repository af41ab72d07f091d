"""Public LoRA files in and out of our adapters."""

import json

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from one4d_jax.errors import CheckpointError
from one4d_jax.model.dlc import RGB, XYZ
from one4d_jax.model.one4d import AdapterConfig
from one4d_jax.wan.config import DiTConfig
from weight_conversion import lora
from weight_conversion.stream import write_safetensors

DIT = DiTConfig(width=16, ffn_width=24, heads=2, layers=2, in_channels=36, text_width=8, image_width=8, freq_width=8)
CFG = AdapterConfig(rank=4, alpha=2.0, link_layers=(1,))
FFN = {'ffn_in': (16, 24), 'ffn_out': (24, 16)}
PATHS = tuple(path.removeprefix('blocks/') for path in lora.modules('native') if path.startswith('blocks/'))
MODULES = tuple(
  lora.modules('native')[f'blocks/{path}'].format(l=layer) for path in PATHS for layer in range(DIT.layers)
)


def adapters(seed=0, cfg=CFG):
  """Random adapters of every linear layer of the blocks, 'lora' flat enough to look into."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  tree = {}
  for path in PATHS:
    din, dout = FFN.get(path, (16, 16))
    tree[path] = {'a': draw(2, 2, din, cfg.rank), 'b': draw(2, 2, cfg.rank, dout)}
  return {'lora': tree, 'links': draw(1, 2, 16, 16), 'patch_xyz': {'kernel': draw(144, 16), 'bias': draw(16)}}


def file(folder, tensors, config=None, metadata=None):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / 'x.safetensors', metadata=metadata
  )
  if config is not None:
    (folder / 'adapter_config.json').write_text(json.dumps(config))
  return folder / 'x.safetensors'


def pair(module, rank=4, *, seed=0, down='lora_A.weight', up='lora_B.weight', prefix=''):
  """One module's tensors, of the right widths for DIT."""
  rng = np.random.default_rng((seed, *map(ord, module)))
  din = 24 if module.endswith(('ffn.2', 'ffn_2')) else 16
  dout = 24 if module.endswith(('ffn.0', 'ffn_0')) else 16
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  return {f'{prefix}{module}.{down}': draw(rank, din), f'{prefix}{module}.{up}': draw(dout, rank)}


def change(tree, cfg, path, layer, modality):
  """What an adapter adds to a kernel."""
  a, b = (tree['lora'][path][half][layer, modality].astype(np.float64) for half in 'ab')
  return cfg.alpha / cfg.rank * a @ b


def write(folder, names, tree, cfg=CFG, modality=RGB):
  """As flax_to_wan.py does."""
  flat = traverse_util.flatten_dict(tree['lora'], sep='/')
  folder.mkdir()
  metadata = lora.metadata(PATHS, cfg.rank, cfg.alpha) if names == 'diffusers' else None
  write_safetensors(
    folder / 'adapter_model.safetensors', lora.tensors(flat, modality, names, cfg.alpha), metadata=metadata
  )
  if names == 'native':
    (folder / 'adapter_config.json').write_text(json.dumps(lora.description(PATHS, cfg.rank, cfg.alpha, names)))
  return folder


@pytest.mark.parametrize('modality', [RGB, XYZ])
@pytest.mark.parametrize('names', lora.NAMES)
def test_out_and_in_again_is_the_same_bytes(names, modality, tmp_path):
  """Whichever branch it came from, it goes into the RGB branch."""
  trained, other = adapters(), adapters(seed=1)
  public = lora.read(write(tmp_path / 'lora', names, trained, modality=modality))
  assert public.stated and set(public.modules) == set(MODULES)
  again, cfg = lora.into_adapters(other, public, CFG, DIT)
  assert cfg == CFG
  for path in PATHS:
    for half in 'ab':
      got = again['lora'][path][half]
      np.testing.assert_array_equal(got[:, RGB], trained['lora'][path][half][:, modality])
      np.testing.assert_array_equal(got[:, XYZ], other['lora'][path][half][:, XYZ])
  assert again['links'] is other['links'] and again['patch_xyz'] is other['patch_xyz']


@pytest.mark.parametrize(
  ('prefix', 'module', 'suffix'),
  [
    ('', 'blocks.1.self_attn.q', '.weight'),  # VideoX-Fun
    ('base_model.model.', 'blocks.1.self_attn.q', '.weight'),  # PEFT
    ('', 'blocks.1.self_attn.q', '.default.weight'),  # DiffSynth
    ('diffusion_model.', 'blocks.1.self_attn.q', '.weight'),  # ComfyUI
    ('transformer.', 'blocks.1.attn1.to_q', '.weight'),  # diffusers
    ('', 'blocks.1.attn1.to_q', '.some_name.weight'),
  ],
)
def test_prefixes_and_layouts_without_alpha(prefix, module, suffix, tmp_path):
  given = pair(module, down=f'lora_A{suffix}', up=f'lora_B{suffix}', prefix=prefix)
  path = file(tmp_path, given)
  public = lora.read(path)
  assert list(public.modules) == ['blocks.1.self_attn.q'] and not public.stated
  read = public.modules['blocks.1.self_attn.q']
  np.testing.assert_array_equal(read.down, given[f'{prefix}{module}.lora_A{suffix}'])
  np.testing.assert_array_equal(read.up, given[f'{prefix}{module}.lora_B{suffix}'])
  assert read.scale == 1
  assert lora.read(path, scale=0.5).modules['blocks.1.self_attn.q'].scale == 0.5


@pytest.mark.parametrize('prefix', ['lora_unet__', 'lora_unet_'])
def test_kohya_underscores_and_alphas(prefix, tmp_path):
  given = {}
  for i, module in enumerate(MODULES):
    flat = module.replace('.', '_')
    given |= pair(flat, down='lora_down.weight', up='lora_up.weight', prefix=prefix)
    given[f'{prefix}{flat}.alpha'] = np.array(i + 1, np.float32)
  public = lora.read(file(tmp_path, given))
  assert list(public.modules) and {m: p.alpha for m, p in public.modules.items()} == {
    m: i + 1 for i, m in enumerate(MODULES)
  }
  again, cfg = lora.into_adapters(adapters(), public, CFG, DIT)
  up, down = (
    given[f'{prefix}blocks_1_cross_attn_k_img.lora_{half}.weight'].astype(np.float64) for half in ('up', 'down')
  )
  expected = public.modules['blocks.1.cross_attn.k_img'].alpha / 4 * (up @ down).T
  np.testing.assert_allclose(change(again, cfg, 'cross_k_img', 1, RGB), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rank', [1, 3, 7])
def test_other_ranks_change_the_weights_alike(rank, tmp_path):
  given, alpha = {}, 3.0
  for module in MODULES:
    given |= pair(module, rank)
  config = {'peft_type': 'LORA', 'r': rank, 'lora_alpha': alpha}
  public = lora.read(file(tmp_path, given, config))
  before = adapters()
  after, cfg = lora.into_adapters(before, public, CFG, DIT)
  assert cfg.rank == max(rank, CFG.rank) and cfg.alpha / cfg.rank == CFG.alpha / CFG.rank
  for path in PATHS:
    for layer in range(DIT.layers):
      module = lora.modules('native')[f'blocks/{path}'].format(l=layer)
      up, down = (given[f'{module}.lora_{half}.weight'].astype(np.float64) for half in 'BA')
      expected = alpha / rank * (up @ down).T
      np.testing.assert_allclose(change(after, cfg, path, layer, RGB), expected, rtol=1e-5, atol=1e-6)
      np.testing.assert_array_equal(change(after, cfg, path, layer, XYZ), change(before, CFG, path, layer, XYZ))
  assert np.abs(after['lora']['self_q']['a']).sum(axis=2).all()  # spare columns can be trained


def test_modules_that_are_not_covered_contribute_nothing(tmp_path):
  given = {}
  for module in MODULES:
    if module.rpartition('.')[2] in 'qkv':
      given |= pair(module)
  after, cfg = lora.into_adapters(adapters(), lora.read(file(tmp_path, given)), CFG, DIT)
  covered = {path for path in PATHS if np.any(change(after, cfg, path, 0, RGB))}
  assert covered == {'self_q', 'self_k', 'self_v', 'cross_q', 'cross_k', 'cross_v'}
  assert np.any(change(after, cfg, 'ffn_in', 0, XYZ))


def test_peft_patterns_and_rank_stabilised_scale(tmp_path):
  given = pair('blocks.0.self_attn.q', 2) | pair('blocks.1.self_attn.q', 4) | pair('blocks.1.ffn.0', 2)
  config = {'r': 2, 'lora_alpha': 6, 'rank_pattern': {'blocks.1.self_attn.q': 4}, 'alpha_pattern': {r'ffn\.0': 1}}
  scales = lambda config: {m: p.scale for m, p in lora.read(file(tmp_path, given, config)).modules.items()}
  assert scales(config) == {'blocks.0.self_attn.q': 3, 'blocks.1.self_attn.q': 1.5, 'blocks.1.ffn.0': 0.5}
  stable = scales(config | {'use_rslora': True})
  assert stable['blocks.1.self_attn.q'] == 3 and stable['blocks.1.ffn.0'] == pytest.approx(2**-0.5)
  with pytest.raises(CheckpointError, match=r'blocks\.\*\.self_attn\.q: rank 4, its configuration says 2'):
    scales(config | {'rank_pattern': {}})


def test_everything_that_does_not_fit_is_named(tmp_path):
  given = pair('blocks.0.self_attn.q') | pair('blocks.0.self_attn.gate') | pair('blocks.1.self_attn.gate')
  given |= pair('blocks.0.self_attn.q', down='lora_down.weight', up='lora_up.weight')
  given |= {
    'blocks.0.norm3.diff': np.zeros(3),
    'blocks.0.ffn.0.diff_b': np.zeros(3),
    'blocks.0.ffn.2.lora_A.weight': np.zeros((4, 24)),
    'blocks.0.self_attn.k.lora_A.weight': np.zeros((4, 16)),
    'blocks.0.self_attn.k.lora_B.weight': np.zeros((16, 2)),
    'lora_te_text_model.lora_down.weight': np.zeros((4, 4)),
  }
  with pytest.raises(CheckpointError) as error:
    lora.read(file(tmp_path, given))
  for part in (
    'blocks.*.self_attn.gate.lora_A.weight: no linear layer of Wan',
    'blocks.*.self_attn.q.lora_down.weight: a second down',
    'blocks.*.norm3.diff: no',
    'blocks.*.ffn.0.diff_b: no',
    'blocks.*.ffn.2: without up (B)',
    'blocks.*.self_attn.k: down (4, 16) and up (16, 2)',
    'lora_te_text_model.lora_down.weight: no',
    '(11 tensors)',
  ):
    assert part in str(error.value)


def test_tensors_can_be_left_out_knowingly(tmp_path):
  given = pair('blocks.0.self_attn.q') | {'blocks.0.norm3.diff': np.zeros(3)} | pair('time_projection.1')
  public = lora.read(file(tmp_path, given), drop=['*.diff', 'time_projection.*'])
  assert list(public.modules) == ['blocks.0.self_attn.q']


def test_what_has_no_place_in_this_base_is_named(tmp_path):
  given = pair('blocks.2.self_attn.q') | pair('head.head') | pair('blocks.0.ffn.0') | pair('blocks.1.ffn.2')
  given['blocks.0.ffn.0.lora_B.weight'] = np.zeros((32, 4), np.float32)
  public = lora.read(file(tmp_path, given))
  with pytest.raises(CheckpointError) as error:
    lora.into_adapters(adapters(), public, CFG, DIT)
  for part in (
    'blocks.2.self_attn.q: this base has 2',
    'head.head: no adapter',
    'blocks.*.ffn.0: width 16 to 32, here 16 to 24',
  ):
    assert part in str(error.value)
  assert 'ffn.2' not in str(error.value)
  few = adapters()
  few['lora'] = {'self_q': few['lora']['self_q']}  # AdapterConfig.targets chose less
  with pytest.raises(CheckpointError, match=r'blocks\.\*\.ffn\.2: no adapter here'):
    lora.into_adapters(few, lora.read(file(tmp_path, pair('blocks.1.ffn.2'))), CFG, DIT)


def test_files_that_are_no_lora(tmp_path):
  with pytest.raises(CheckpointError, match='no LoRA at'):
    lora.read(tmp_path / 'absent.safetensors')
  with pytest.raises(CheckpointError, match='holds 0 safetensors files'):
    lora.read(tmp_path)
  with pytest.raises(CheckpointError, match='holds no LoRA'):
    lora.read(file(tmp_path, {}))
  given = pair('blocks.0.self_attn.q')
  with pytest.raises(CheckpointError, match='DoRA'):
    lora.read(file(tmp_path, given, {'use_dora': True}))
  with pytest.raises(CheckpointError, match='LOHA'):
    lora.read(file(tmp_path, given, {'peft_type': 'LOHA'}))
  with pytest.raises(CheckpointError, match=r"adapter_config.json holds '\[1, 2\]' in place of an object"):
    lora.read(file(tmp_path, given, [1, 2]))
  for config, wrong in (
    ({'r': '4'}, "r is '4', not a number"),
    ({'lora_alpha': {}}, "lora_alpha is '{}', not a number"),
    ({'lora_alpha': float('nan')}, "lora_alpha is 'nan', not a number"),
    ({'rank_pattern': {'q': [4]}}, r"q is '\[4\]', not a number"),
    ({'rank_pattern': [4]}, r"rank_pattern is '\[4\]', not numbers by patterns"),
    ({'alpha_pattern': {'(': 4}}, 'alpha_pattern is .*, not numbers by patterns'),
  ):
    with pytest.raises(CheckpointError, match=f'adapter_config.json: {wrong}'):
      lora.read(file(tmp_path, given, config))
  several = given | {'blocks.0.self_attn.q.alpha': np.ones(2, np.float32)}
  with pytest.raises(CheckpointError, match=r'q: alpha \(2,\) is not one number'):
    lora.read(file(tmp_path / 'alpha', several))
  with pytest.raises(CheckpointError, match=f"{lora.METADATA} of .*x.safetensors holds 'None'"):
    lora.read(file(tmp_path / 'header', given, metadata={lora.METADATA: 'null'}))
  (tmp_path / 'x.safetensors').write_bytes(b'no header')
  with pytest.raises(CheckpointError, match='cannot be read'):
    lora.read(tmp_path)


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.mark.parity
def test_peft_loads_it_and_computes_the_same(torch, tmp_path):
  """A network with Wan's names and plain linear layers, loaded by PEFT from our folder."""
  peft = pytest.importorskip('peft')
  base = torch.nn.ModuleDict({'blocks': torch.nn.ModuleList()})
  for _ in range(DIT.layers):
    attention = lambda names: torch.nn.ModuleDict({name: torch.nn.Linear(16, 16) for name in names})
    block = torch.nn.ModuleDict({
      'self_attn': attention('qkvo'),
      'cross_attn': attention(['q', 'k', 'v', 'o', 'k_img', 'v_img']),
      'ffn': torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 16)),
    })  # fmt: skip
    base['blocks'].append(block)
  tree = adapters()
  folder = write(tmp_path / 'lora', 'native', tree, modality=XYZ)
  model = peft.PeftModel.from_pretrained(base, str(folder))
  loaded = {name for name, module in model.base_model.model.named_modules() if hasattr(module, 'lora_A')}
  assert loaded == set(MODULES)
  for path in PATHS:
    module = model.base_model.model.get_submodule(lora.modules('native')[f'blocks/{path}'].format(l=1))
    got = module.get_delta_weight('default').detach().numpy().T
    np.testing.assert_allclose(got, change(tree, CFG, path, 1, XYZ), rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_diffusers_loads_it_and_computes_the_same(torch, tmp_path):
  diffusers = pytest.importorskip('diffusers')
  pytest.importorskip('peft')
  net = diffusers.WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=36, out_channels=16, text_dim=8, freq_dim=8, ffn_dim=24,
    num_layers=2, image_dim=8, added_kv_proj_dim=16, rope_max_seq_len=32,
  )  # fmt: skip
  pipeline = diffusers.WanImageToVideoPipeline(
    tokenizer=None,
    text_encoder=None,
    vae=None,
    scheduler=None,
    image_encoder=None,
    image_processor=None,
    transformer=net,
  )
  tree = adapters()
  folder = write(tmp_path / 'lora', 'diffusers', tree)
  pipeline.load_lora_weights(str(folder), weight_name='adapter_model.safetensors')
  for path in PATHS:
    module = net.get_submodule(lora.modules('diffusers')[f'blocks/{path}'].format(l=1))
    got = module.get_delta_weight('default_0').detach().numpy().T
    np.testing.assert_allclose(got, change(tree, CFG, path, 1, RGB), rtol=1e-5, atol=1e-6)
