"""Runs the command line as its user does, and sees that what the core must not need stays out."""

import os
import socket
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


def start(*arguments, cwd):
    """Start a verb, on as many devices as its user has. Returns the running process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def jdiff(*arguments, cwd, check=True):
    """Run a verb. Returns the finished process, with stdout and stderr as text."""
    process = start(*arguments, cwd=cwd)
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    done = subprocess.CompletedProcess(arguments, process.returncode, output, errors)
    assert "was imported" not in done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def hosts(*arguments, cwd, each=((), ())):
    """Start a run on several hosts, the last first. each: what is said to each alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = (*arguments, f"--coordinator=127.0.0.1:{port}", f"--num_processes={len(each)}", "--wait=60")
    return [start(*about, f"--process_id={i}", *own, cwd=cwd) for i, own in reversed([*enumerate(each)])][::-1]


def ended(processes):
    """Exit statuses and errors."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors
