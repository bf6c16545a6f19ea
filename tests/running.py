"""Runs the command line as its user does, in a process of its own, with what the core must not need made absent."""

import os
import subprocess
import sys

BLOCKED = ("tensorflow", "torch")
PROGRAM = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from jdiff import cli
sys.argv[0] = "jdiff"
cli.main()
"""


def jdiff(*arguments, cwd, check=True):
    """Run a verb. Returns the finished process, with stdout and stderr as text."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
