"""Runs the command line as its user does, in a process of its own, and sees that what the core must not need stays out."""

import os
import subprocess
import sys

BLOCKED = ("tensorflow", "torch")
PROGRAM = f"""
import atexit, sys
atexit.register(lambda: [sys.stderr.write(f"{{name}} was imported") for name in {BLOCKED!r} if name in sys.modules])
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
    assert "was imported" not in done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
