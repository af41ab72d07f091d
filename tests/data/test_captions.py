import pytest

from one4d_jax.data import scenes
from one4d_jax.data.captions import caption


@pytest.mark.parametrize(('level', 'split'), [('easy', 'train'), ('medium', 'val'), ('hard', 'test')])
def test_caption_names_everything(level, split):
  for seed in range(50):
    scene = scenes.sample(seed, level=level, split=split)
    text = caption(scene)
    assert text.isascii() and text.endswith(f'The camera {scene.camera.motion}.')
    assert text.startswith('A room' if scene.walls else 'A field')
    assert f'{scene.floor.kind} {scene.floor.colour} floor' in text
    for body in scene.bodies:
      moves = '' if body.motion == 'static' else f' that {body.motion}'
      assert f'a {body.texture.kind} {body.texture.colour} {body.shape}{moves}' in text


def test_captions_are_short():
  lengths = {1: 120, 2: 160, 3: 200, 4: 240}
  for seed in range(200):
    scene = scenes.sample(seed, level='medium')
    assert len(caption(scene)) <= lengths[len(scene.bodies)]


def test_exact_wording():
  still = caption(scenes.sample(2, level='easy'))
  assert still == 'A room with a plain purple floor and a plain white sphere. The camera dollies out.'
