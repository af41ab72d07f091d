"""Writes rendered clips as SpatialVID's groups unpack."""

import io
import json
import pathlib
import zipfile

import numpy as np
import OpenEXR
from scipy.spatial.transform import Rotation

from one4d_jax.data.clip import Clip
from tests.data.sources.formats import films, handheld

FPS, STEP = 25, 5


def write(
  root: pathlib.Path, *, recordings: int = 1, frames: int = 17, size: tuple[int, int] = (41, 73), seed: int = 0
) -> dict[str, Clip]:
  """The truth by name of recording, two to a group, each in a world of its own."""
  truth = {}
  for i in range(recordings):
    group, name = f'group_{i // 2:04d}', f'{0xB0 + i:08x}-0000-4000-8000-000000000000'
    clip = handheld.clip(seed + i, frames=frames, size=size)
    folders = [root / kind / group for kind in ('videos', 'depths', 'annotations')]
    for folder in folders:
      folder.mkdir(parents=True, exist_ok=True)
    films.write(folders[0] / f'{name}.mp4', films.between(clip.rgb, STEP), fps=FPS)
    write_depths(folders[1] / f'{name}.zip', [exr(inverse(clip, k)) for k in range(frames)])
    write_annotation(folders[2] / name, clip, handheld.world(seed + i))
    truth[f'{group}/{name}'] = clip
  return truth


def inverse(clip: Clip, i: int) -> np.ndarray:
  """Half-float [H W]; 0 at infinity."""
  return np.divide(1, clip.depth[i], out=np.zeros(clip.size, np.float32), where=clip.valid[i]).astype(np.float16)


def exr(values: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  OpenEXR.File({'type': OpenEXR.scanlineimage, 'compression': OpenEXR.ZIP_COMPRESSION}, {'Z': values}).write(buffer)
  return buffer.getvalue()


def write_depths(path: pathlib.Path, members: list[bytes]) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for k in reversed(range(len(members))):  # their names tell the order, not their place
      archive.writestr(f'{k:05d}.exr', members[k])


def write_annotation(folder: pathlib.Path, clip: Clip, world: np.ndarray) -> None:
  folder.mkdir()
  height, width = clip.size
  cam_from_world = np.linalg.inv(world @ clip.world_from_cam.astype(np.float64))
  quaternion = Rotation.from_matrix(cam_from_world[:, :3, :3]).as_quat()
  np.save(folder / 'poses.npy', np.concatenate([cam_from_world[:, :3, 3], quaternion], axis=1))
  K = clip.K.astype(np.float64)
  intrinsics = [K[:, 0, 0] / width, K[:, 1, 1] / height, K[:, 0, 2] / width, K[:, 1, 2] / height]
  np.save(folder / 'intrinsics.npy', np.stack(intrinsics, axis=1))
  (folder / 'indexes.txt').write_text(''.join(f'{k} {k * STEP}\n' for k in range(clip.frames)))
  told = {'SceneSummary': clip.caption, 'CamMotion': 'The camera wanders.', 'SceneTags': {'weather': 'clear'}}
  (folder / 'caption.json').write_text(json.dumps(told))
  masks = {'shape': np.array(clip.size)}
  for k, mask in enumerate(clip.dynamic):
    rows, columns = np.nonzero(mask)
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))])
    masks |= {f'f_{k}_data': np.ones(len(rows), bool), f'f_{k}_indices': columns, f'f_{k}_indptr': starts}
  np.savez_compressed(folder / 'dyn_masks.npz', **masks)
