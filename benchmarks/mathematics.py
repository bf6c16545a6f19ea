"""The claims of sampling: every formula exact, one program for everything at no cost, and how many steps it needs."""

from __future__ import annotations

from itertools import chain

from benchmarks import exactness, one_program, steps
from benchmarks.claims import Claim, report


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; some need a run that draws shapes. Returns the exit status."""
    path = steps.run_of_shapes(runs)
    claims = [exactness.claims(quick)]
    if path is None:
        claims.append([Claim("a trained run to sample from", None, note="`make demo` trains one")])
    else:
        claims.append(one_program.claims(path, quick))
        claims += [] if quick else [steps.claims(path)]
    return report("mathematics", chain(*claims))
