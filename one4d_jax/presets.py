"""Configuration files: ``get_config('tiny')`` of a Python file, and ``section.key=value`` from the command line."""

import dataclasses
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import yaml

from one4d_jax.errors import ConfigError
from one4d_jax.structs import from_dict


def read(spec: str, overrides: Sequence[str], cls: type) -> Any:
  """An instance of the dataclass ``cls`` from the file and preset of ``spec`` (empty: its defaults), with overrides.

  Raises:
    ConfigError: no such file or preset, unknown key, a value of the wrong type.
  """
  values = _preset(spec) if spec else ml_collections.ConfigDict(dataclasses.asdict(cls())).lock()
  for override in overrides:
    _override(values, override)
  return from_dict(values.to_dict(), cls)


def _preset(spec: str) -> ml_collections.ConfigDict:
  path, _, preset = spec.partition(':')
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(
      f'no config file {path!r}; the project has vae.py, base.py, one4d.py, baselines.py, postopt.py and eval.py in '
      'configs/'
    )
  module_spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(module_spec)
  sys.path.insert(0, str(file.resolve().parent.parent))  # config files import what they share from their folder
  try:
    module_spec.loader.exec_module(module)
  finally:
    sys.path.pop(0)
  presets = getattr(module, 'PRESETS', ())
  if not presets or (preset and preset not in presets):
    raise ConfigError(f'{path} has no preset {preset!r}; choose from {", ".join(presets) or "none"}')
  return module.get_config(preset or presets[0])


def _override(values: ml_collections.ConfigDict, text: str) -> None:
  key, equals, value = text.partition('=')
  *sections, leaf = key.split('.')
  node = values
  for section in sections:
    node = node[section] if isinstance(node, ml_collections.ConfigDict) and section in node else None
  if isinstance(node, ml_collections.ConfigDict) and isinstance(node.get(leaf), ml_collections.ConfigDict):
    raise ConfigError(f'config {key} is a section; change one of {", ".join(f"{key}.{k}" for k in sorted(node[leaf]))}')
  if not equals or not isinstance(node, ml_collections.ConfigDict) or leaf not in node:
    known = sorted(node.keys()) if isinstance(node, ml_collections.ConfigDict) else sorted(values.keys())
    raise ConfigError(f'unknown config key {key!r}; expected --config.KEY=VALUE with KEY among {", ".join(known)}')
  with node.unlocked():
    try:
      parsed = yaml.safe_load(value)
      if isinstance(node[leaf], float) and isinstance(parsed, str):
        parsed = float(parsed)  # YAML takes 1e-4 for text
      node[leaf] = parsed
    except (TypeError, ValueError, yaml.YAMLError) as error:
      kind = type(node[leaf]).__name__
      raise ConfigError(f'config {key}={value!r} must be of type {kind}') from error
