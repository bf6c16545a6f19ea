"""Runs commands, as processes, which fail if they import TensorFlow or torch, or faster in this process."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import warnings
from unittest.mock import patch

from absl import flags

from jdiff import cli

PROGRAM = """
import atexit, sys


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch was imported")


sys.meta_path.insert(0, NoTorch())
atexit.register(lambda: sys.modules.get("tensorflow") and sys.stderr.write("tensorflow was imported"))
from jdiff import cli
sys.argv[0] = "jdiff"
cli.main()
"""


def user_environment():
    """The environment of a user's process: one device instead of the tests' eight, and a wide terminal."""
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_force_host_platform_device_count=8", "")
    return os.environ | {"XLA_FLAGS": flags, "COLUMNS": "200"}


def start(*arguments, cwd):
    """Start a command without the tests' eight fake devices. Returns the running process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=cwd,
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def jdiff(*arguments, cwd, check=True):
    """Run a command. Returns the finished process, with stdout and stderr as text."""
    process = start(*arguments, cwd=cwd)
    try:
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    result = subprocess.CompletedProcess(arguments, process.returncode, output, errors)
    assert "was imported" not in result.stderr
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def run_in_process(*arguments, cwd, check=True):
    """Run a command in this process, which has imported JAX and compiled programs already. Returns as ``jdiff`` does.

    absl's flags are global, so those that the command defines are removed again.
    """
    is_parsed, flag_names = flags.FLAGS.is_parsed(), set(flags.FLAGS)
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.object(sys, "argv", ["jdiff", *arguments]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of ml_collections; the tests turn warnings into errors
        try:
            cli.main()
        except SystemExit as error:
            status = error.code
        finally:
            for name in set(flags.FLAGS) - flag_names:
                module = flags.FLAGS.find_module_defining_flag(name, "")
                if module.startswith("jdiff.") or name.partition(".")[0] == "config":  # not those of imported libraries
                    delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            if is_parsed:
                flags.FLAGS.mark_as_parsed()
    result = subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
    assert not check or status == 0, result.stdout + result.stderr
    return result


def start_distributed(*arguments, cwd, process_arguments=((), ())):
    """Start one process per entry, the last first. process_arguments: further arguments of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={len(process_arguments)}", "--wait=60")
    processes = [
        start(*arguments, *flags, f"--process_id={i}", *extra, cwd=cwd)
        for i, extra in reversed([*enumerate(process_arguments)])
    ]
    return processes[::-1]


def wait(processes):
    """Wait until all end. Returns their exit statuses and their stderr."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors
