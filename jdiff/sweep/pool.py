"""A pool of processes on this machine, each with GPUs or CPU cores of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jdiff.runtime.signals import Interruption, StopSignals


class RunFailure(RuntimeError):
    """Some runs of a sweep failed; the results of the others are written."""

    exit_status = 1


@dataclass(frozen=True)
class Devices:
    """Devices of a process. gpus: CUDA_VISIBLE_DEVICES, None for all.   cores: CPU affinity, None for all."""

    gpus: str | None = None
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Job:
    """A running process. log_start: where in the log file its output starts.   start_time: of ``time.monotonic``."""

    process: subprocess.Popen
    devices: Devices
    log_start: int
    start_time: float


def divide_devices(jobs: int, gpus: Sequence[str] = ()) -> list[Devices]:
    """The devices of each process that runs at a time: one GPU each, or else an even share of the CPU cores."""
    if gpus:
        return [Devices(gpus=gpu) for gpu in gpus]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cores) < jobs:
        return [Devices()] * jobs
    return [Devices(cores=tuple(cores[i::jobs])) for i in range(jobs)]


def run_commands(
    commands: Mapping[str, Sequence[str]],
    devices: Iterable[Devices],
    logs: Path,
    on_end: Callable[[str, int, float, str], None],
) -> None:
    """Run commands until all have ended, as many at a time as there are ``devices``.

    commands: by name.   logs: a folder; the output of a command is appended to its NAME.log.
    on_end: called when a command ends, with its name, exit status, seconds and output.
    Raises ``Interruption`` after a SIGINT or SIGTERM, which reaches the processes as a SIGTERM.
    """
    waiting, free_devices = dict(commands), list(devices)
    running: dict[str, Job] = {}
    num_forwarded = 0  # signals that the processes have received
    logs.mkdir(parents=True, exist_ok=True)
    with StopSignals() as stop:
        try:
            while running or (waiting and not stop.signal_numbers):
                while waiting and free_devices and not stop.signal_numbers:
                    name = next(iter(waiting))
                    running[name] = _start(waiting.pop(name), free_devices.pop(0), logs / f"{name}.log")
                time.sleep(0.05)
                num_signals = len(stop.signal_numbers)
                for name, job in list(running.items()):
                    if num_forwarded < num_signals and job.process.poll() is None:
                        job.process.terminate()
                    if job.process.poll() is not None:
                        del running[name]
                        free_devices.append(job.devices)
                        if not stop.signal_numbers:
                            output = (logs / f"{name}.log").read_bytes()[job.log_start :].decode(errors="replace")
                            on_end(name, job.process.returncode, time.monotonic() - job.start_time, output)
                num_forwarded = num_signals
        finally:
            for job in running.values():
                job.process.kill()
    if stop.signal_numbers:
        raise Interruption(stop.signal_numbers[0], f"stopped by signal {stop.signal_numbers[0]}")


def _start(command: Sequence[str], devices: Devices, log: Path) -> Job:
    with log.open("ab") as file:
        log_start, start_time = file.tell(), time.monotonic()
        return Job(_open_process(command, devices, file), devices, log_start, start_time)


def _open_process(command: Sequence[str], devices: Devices, log: BinaryIO) -> subprocess.Popen:
    environment = {} if devices.gpus is None else {"CUDA_VISIBLE_DEVICES": devices.gpus}
    with _cpu_affinity(devices.cores):
        return subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the pool, which forwards it
        )


@contextmanager
def _cpu_affinity(cores: tuple[int, ...] | None):
    """Processes started inside inherit these cores. A preexec_fn would fork, which can deadlock with JAX's threads."""
    if cores is None:
        yield
        return
    previous_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, previous_cores)
