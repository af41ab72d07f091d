"""Every comparison by name. Each takes the ``Models`` of one working folder and yields ``Result``s.

The tests hold them to their tolerance, ``python benchmarks/parity.py`` prints them.
"""

from collections.abc import Callable, Iterator

from tests.parity import networks, sampling
from tests.parity.models import Models
from tests.parity.results import Result

CASES: dict[str, Callable[[Models], Iterator[Result]]] = {
  'dit': networks.dit_cases,
  'vae': networks.vae_cases,
  'umt5': networks.umt5_cases,
  'clip': networks.clip_cases,
  'solvers': sampling.solver_cases,
  'loop': sampling.loop_cases,
}
