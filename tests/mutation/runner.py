"""Runs the tests of tests/diffusion against a mutant, until one fails."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.mutation.plugin import VARIABLE

ROOT = Path(__file__).parent.parent.parent
FOLDER = "tests/diffusion"


@dataclass(frozen=True)
class Outcome:
    """The first test that failed, empty if none did, and its message.

    is_killed: whether an assertion about finite values failed; an exception does not count, nor does a NaN.
    """

    test: str = ""
    message: str = ""
    is_killed: bool = False


def run(mutant):
    """Run the mutant's file of tests, then the others, in a process of its own."""
    files = sorted(f"{FOLDER}/{path.name}" for path in (ROOT / FOLDER).glob("test_*.py"))
    files.sort(key=lambda file: file != f"{FOLDER}/test_{mutant.tests}.py")
    variables = {VARIABLE: mutant.name, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        plugins = ("-p", "tests.mutation.plugin", "-p", "no:cacheprovider", "-p", "no:xdist")
        command = [sys.executable, "-m", "pytest", "-x", "-q", *plugins, f"--junitxml={report}", *files]
        process = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(f"mutant {mutant.name!r}: pytest did not run\n{process.stdout}{process.stderr}")
        return parse_report(report)


def parse_report(report):
    """The outcome of a JUnit report of pytest."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            if (problem := case.find(kind)) is not None:
                message = problem.get("message", "")
                values = re.sub(r"Max relative difference.*", "", message)  # infinite where 0 was expected
                is_finite = not re.search(r"\b(nan|inf)\b", values, re.IGNORECASE)
                is_assertion = kind == "failure" and message.startswith(("AssertionError", "assert"))
                return Outcome(case.get("name"), message, is_assertion and is_finite)
    return Outcome()
