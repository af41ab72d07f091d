"""Scenes whose pointmap, cameras and depth are known exactly, and the errors a model makes."""

import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from one4d_jax.geometry import se3
from one4d_jax.model import pointmap
from one4d_jax.postopt.fit import Cameras


def path(motion, frames):
  """world_from_cam [F 4 4] that starts at the identity."""
  t = np.linspace(0, 1, frames)[:, None]
  tangent = {
    'orbit': np.hstack([1.5 * t, 0.2 * np.sin(6 * t), 0.6 * t, 0.1 * t, -0.5 * t, 0.05 * np.sin(9 * t)]),
    'static': 0 * t + np.zeros(6),
    'rotation': t * [0, 0, 0, 0.1, 0.6, 0.1],
    'translation': t * [1, 0.2, 0.5, 0, 0, 0],
  }[motion]
  return np.asarray(se3.exp(jnp.asarray(tangent, jnp.float32)), np.float64)


def room(motion='orbit', frames=20, height=64, width=96, focal=0.8, ball_radius=1.0):
  """A camera in a box with a ball that crosses the view: (pointmap, truth as Cameras, share of moving pixels)."""
  pose = path(motion, frames)
  K = np.tile(np.array([[focal * width, 0, width / 2], [0, focal * width, height / 2], [0, 0, 1]]), (frames, 1, 1))
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K[0]).T
  rays = np.einsum('fij,hwj->fhwi', pose[:, :3, :3], rays)
  origin = pose[:, None, None, :3, 3]
  walls = np.array([[-3, -2, -2], [4.5, 1.5, 7]])
  depth = np.max((walls[:, None, None, None] - origin) / rays, axis=0).min(axis=-1)  # leaving the box
  ball = np.stack([np.linspace(-1, 2, frames), np.full(frames, 0.2), np.full(frames, 3.5)], axis=-1)[:, None, None]
  a, b = (rays**2).sum(-1), (rays * (origin - ball)).sum(-1)
  inside = b**2 - a * (((origin - ball) ** 2).sum(-1) - ball_radius**2)
  hit = inside > 0
  depth = np.where(hit, (-b - np.sqrt(np.maximum(inside, 0))) / a, depth).astype(np.float32)
  K, pose = K.astype(np.float32), pose.astype(np.float32)
  truth = Cameras(K, pose, depth, np.zeros(frames, np.float32), 0.0)
  return pointmap.from_depth(depth, K, pose), truth, hit.mean()


def plane(normal, motion='orbit', frames=8, height=48, width=72, focal=0.8):
  """A camera before one plane four units away: (pointmap, truth as Cameras)."""
  pose = path(motion, frames)
  K = np.tile(np.diag([focal * width, focal * width, 1.0]), (frames, 1, 1))
  K[:, :2, 2] = width / 2, height / 2
  u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
  rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K[0]).T
  rays = np.einsum('fij,hwj->fhwi', pose[:, :3, :3], rays)
  depth = (np.array([0, 0, 4]) - pose[:, None, None, :3, 3]) @ normal / (rays @ np.asarray(normal, float))
  K, pose, depth = (x.astype(np.float32) for x in (K, pose, depth))
  return pointmap.from_depth(depth, K, pose), Cameras(K, pose, depth, np.zeros(frames, np.float32), 0.0)


def noisy(points, truth, level, seed=0):
  sigma = level * np.median(truth.depth)
  return (points + sigma * np.random.default_rng(seed).normal(size=points.shape)).astype(np.float32)


def smooth_noise(points, truth, level, seed=0, *, cell=8):
  """Errors that are alike over ``cell`` pixels, as a VAE makes them."""
  frames, height, width, _ = points.shape
  coarse = np.random.default_rng(seed).normal(size=(frames, height // cell + 1, width // cell + 1, 3))
  fine = scipy.ndimage.zoom(coarse, (1, height / coarse.shape[1], width / coarse.shape[2], 1), order=1)
  return (points + level * np.median(truth.depth) * fine / fine.std()).astype(np.float32)
