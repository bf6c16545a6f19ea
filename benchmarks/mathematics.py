"""The claims of sampling: exact formulas, one compiled program for all settings at no cost, accuracy by steps."""

from __future__ import annotations

from itertools import chain

from benchmarks import exactness, one_program, steps
from benchmarks.claims import Claim, report


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; some need a text-to-image run of shapes. Returns the exit status."""
    path = steps.find_shapes_run(runs)
    claims = [exactness.claims(quick)]
    if path is None:
        claims.append([Claim("a trained run to sample from", None, note="`make demo` trains one")])
    else:
        claims.append(one_program.claims(path, quick))
        claims += [] if quick else [steps.claims(path)]
    return report("mathematics", chain(*claims))
