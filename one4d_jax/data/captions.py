"""The caption of a procedural scene: everything that is named there is visible, and every object is named."""

from one4d_jax.data.scenes import STATIC, Body, Scene
from one4d_jax.data.textures import Texture


def caption(scene: Scene) -> str:
  """ASCII, such as 'A room with a checkered red floor and a striped blue sphere that spins. The camera rises.'"""
  place = 'A room' if scene.walls else 'A field'
  things = [_look(scene.floor) + ' floor', *map(_body, scene.bodies)]
  listed = ', '.join(things[:-1]) + ' and ' * (len(things) > 1) + things[-1]
  return f'{place} with {listed}. The camera {scene.camera.motion}.'


def _look(texture: Texture) -> str:
  return f'a {texture.kind} {texture.colour}'  # no kind starts with a vowel


def _body(body: Body) -> str:
  return f'{_look(body.texture)} {body.shape}' + ('' if body.motion == STATIC else f' that {body.motion}')
