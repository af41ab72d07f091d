"""Frozen dataclasses from nested dicts, with every mistake named."""

import dataclasses
import types
import typing
from typing import Any

from one4d_jax.errors import ConfigError


def from_dict(values: dict, cls: type, where: str = '') -> Any:
  """An instance of the dataclass ``cls``, sections included; ``dataclasses.asdict`` is the way back.

  Raises:
    ConfigError: naming an unknown key or a value of the wrong type.
  """
  hints, fields = typing.get_type_hints(cls), {}
  for key, value in values.items():
    if key not in hints:
      raise ConfigError(f'unknown config key {where + key!r}; choose from {", ".join(hints)}')
    kind = hints[key]
    if dataclasses.is_dataclass(kind):
      fields[key] = from_dict(value, kind, f'{where}{key}.')
    else:
      fields[key] = _typed(value, kind, where + key)
  return cls(**fields)


def _typed(value, kind, name: str):
  if isinstance(kind, types.GenericAlias) and isinstance(value, (list, tuple)):
    kinds = typing.get_args(kind)
    if kinds[-1] is Ellipsis:
      kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
      raise ConfigError(f'config {name}={list(value)} must have {len(kinds)} values')
    return tuple(_typed(v, item, name) for v, item in zip(value, kinds, strict=True))
  origin = typing.get_origin(kind) or kind
  if origin is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if (origin is int and isinstance(value, bool)) or not isinstance(value, origin):
    raise ConfigError(f'config {name}={value!r} must be of type {getattr(kind, "__name__", kind)}')
  return value
