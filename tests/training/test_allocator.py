"""Memory that a step has freed."""

import subprocess
import sys

import pytest

BLOCK, TIMES = 64 << 20, 20
SCRIPT = f"""
import resource, sys
from one4d_jax.training import allocator
if sys.argv[1] == 'keep':
  allocator.keep_freed_memory()
held = b'x' * {BLOCK}
del held
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
  held = b'x' * {BLOCK}
  del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')
def test_blocks_that_were_freed_are_not_mapped_again():
  faults = lambda what: int(subprocess.check_output([sys.executable, '-c', SCRIPT, what]))
  assert faults('give back') > TIMES * BLOCK / 2**21 > 10 * faults('keep')
