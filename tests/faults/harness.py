"""Runs commands in forked processes, waits for events in them, and injects faults. Nothing sleeps for a guessed time.

A server process imports jdiff once, without starting a backend of JAX, and forks a process for each command.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import socket
import sys
import threading
import time
from dataclasses import dataclass

from jdiff.runs import directory

DEADLINE = 120.0  # seconds that any wait may take
PRELOAD = ["jdiff.cli", "jdiff.runs.train", "jdiff.commands.sample", "jdiff.commands.evaluate", "jdiff.runs.prepare"]

INJECTIONS = "tests.faults.injections"
TRAIN = ("train", "--config=demo_clip:tiny", "--config.train.steps=12", "--config.train.log_every=3")
TRAIN += ("--config.train.save_every=4", "--config.train.sample_every=8")
LONG_RUN = ("train", "--config=demo_clip:tiny", "--config.train.steps=100000", "--config.train.log_every=5")
LONG_RUN += ("--config.train.save_every=20", "--config.train.sample_every=100000")


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


CONTEXT = _context()


@dataclass
class Command:
    """A command that is running or has ended. reader: of its stdout and stderr."""

    process: multiprocessing.Process
    reader: threading.Thread
    chunks: list[bytes]

    @property
    def text(self) -> str:
        return b"".join(self.chunks).decode(errors="replace")

    def wait_for(self, event, deadline=DEADLINE):
        """Wait until ``event()`` is true while the command runs."""
        end = time.monotonic() + deadline
        while not event():
            assert self.process.is_alive(), f"ended before the event:\n{self.text}"
            assert time.monotonic() < end, f"no event in {deadline} s:\n{self.text}"
            time.sleep(0.002)
        return self

    def wait_for_output(self, text, deadline=DEADLINE):
        return self.wait_for(lambda: text in self.text, deadline)

    def send(self, number):
        os.kill(self.process.pid, number)
        return self

    def limit_file_size(self, size):
        """Let no file of the process grow beyond ``size`` bytes, None for no limit, as on a full disk."""
        limit = resource.RLIM_INFINITY if size is None else size
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return self

    def status(self, deadline=DEADLINE):
        """Wait for the end. Returns the exit status, negative after a signal."""
        self.process.join(deadline)
        if self.process.is_alive():
            os.kill(self.process.pid, 9)
            self.process.join()
            raise AssertionError(f"still running after {deadline} s:\n{self.text}")
        self.reader.join(5)
        return self.process.exitcode


def start(*arguments, cwd, inject=None, environment=()):
    """Start a command. inject: "MODULE:FUNCTION" and its arguments, called in the process before the command."""
    receiver, sender = CONTEXT.Pipe(duplex=False)  # not a file, which the limits of file sizes would cover
    arguments = (arguments, str(cwd), sender, inject, dict(environment))
    process = CONTEXT.Process(target=_run, args=arguments, daemon=True)  # killed at the end of the tests
    process.start()
    sender.close()
    chunks = []

    def read():
        with receiver:
            while chunk := os.read(receiver.fileno(), 65536):
                chunks.append(chunk)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return Command(process, reader, chunks)


def run(*arguments, cwd, status=0, **options):
    """Run a command to its end. Returns it."""
    command = start(*arguments, cwd=cwd, **options)
    exit_status = command.status()
    assert exit_status == status, f"{exit_status} instead of {status}:\n{command.text}"
    return command


def parameters(run):
    return directory.load(run).params


def start_two(*arguments, cwd, injects=(None, None)):
    """Start a command as two processes of one run, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = (*arguments, f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--wait=60")
    return [start(*common, f"--process_id={i}", cwd=cwd, inject=injects[i]) for i in range(2)]


def _run(arguments, cwd, sender, inject, environment):
    os.chdir(cwd)
    for stream in (1, 2):
        os.dup2(sender.fileno(), stream)
    sender.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_force_host_platform_device_count=8", "")
    os.environ |= {"XLA_FLAGS": flags, "COLUMNS": "200", **environment}
    if inject is not None:
        (module, function), values = inject[0].split(":"), inject[1:]
        getattr(importlib.import_module(module), function)(*values)
    from jdiff import cli

    sys.argv = ["jdiff", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
