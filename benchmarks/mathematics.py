"""The claims of sampling: every formula exact, one program for everything at no cost, and how many steps it needs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain

from benchmarks import exactness, mutants, one_program, steps
from benchmarks.claims import Claim, settle


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; some need a run that draws shapes. Returns the exit status."""
    path = steps.run_of_shapes(runs)
    claims = [exactness.claims(quick)]
    if path is None:
        claims.append([Claim("a trained run to sample from", None, note="`make demo` trains one")])
    else:
        claims.append(one_program.claims(path, quick))
    if not quick:
        claims += [_parity(), mutants.claims(), steps.claims(path) if path else []]
    return settle("mathematics", chain(*claims))


def _parity() -> Iterator[Claim]:
    """The tests beside diffusers' schedulers."""
    text = "tests beside diffusers' schedulers that pass"
    if not (find_spec("torch") and find_spec("diffusers")):
        yield Claim(text, None, note="`make parity` installs them")
        return
    cases = mutants.tested(["tests/parity/test_same_schedules.py"], mutants.ROOT)
    passed = sum(len(case) == 0 for case in cases)  # a case has a child where it failed or was skipped
    yield Claim(text, passed, len(cases), note=f"of {len(cases)}")
