"""Runs the command line as its user does, and sees that what the core must not need stays out."""

import os
import subprocess
import sys

PROGRAM = """
import atexit, sys
sys.modules["torch"] = None
atexit.register(lambda: sys.modules.get("tensorflow") and sys.stderr.write("tensorflow was imported"))
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
