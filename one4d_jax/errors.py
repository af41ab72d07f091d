"""The errors a user can cause. A CLI prints one of these as a single line and exits with status 2."""


class UserError(ValueError):
  """Something the user gave is wrong: the message names the value and the way out."""

  status = 2  # with which a command ends


class ConfigError(UserError):
  """An unknown preset or key, or values that do not fit together."""


class DataError(UserError):
  """A file, video, image or data set that cannot be used."""


class CheckpointError(UserError):
  """Weights or checkpoints that are missing or do not belong together."""


class ShapeError(UserError, TypeError):
  """An array whose shape or dtype does not fit."""
