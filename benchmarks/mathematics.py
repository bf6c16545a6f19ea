"""The claims of sampling: every formula exact, one program for everything at no cost, and how many steps it needs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

from benchmarks import exactness, mutants, one_program, steps
from benchmarks.claims import Claim, settle


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; some need a run that draws shapes. Returns the exit status."""
    path = next((Path(runs) / name for name in ("shapes_t2i", "shapes") if (Path(runs) / name).exists()), None)
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
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = Path(__file__).parent.parent / "tests/parity/test_same_schedules.py"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(tests)]
        subprocess.run(command, cwd=tests.parents[2], capture_output=True)
        cases = list(ElementTree.parse(report).iter("testcase"))
    passed = sum(len(case) == 0 for case in cases)  # a case has a child where it failed or was skipped
    yield Claim(text, passed, len(cases), note=f"of {len(cases)}")
