"""Commands of the project one after the other in one process, which loads JAX once: ``[[module, argument …] …]``."""

import importlib
import json
import sys

from one4d_jax import cli

if __name__ == '__main__':
  for name, *arguments in json.loads(sys.argv[1]):
    module = importlib.import_module(name)
    if status := cli.run(module.main, module.parser(), arguments):
      sys.exit(status)
