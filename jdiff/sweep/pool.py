"""Programs run side by side on this machine, each on devices of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class RunsFailed(RuntimeError):
    """Some runs of a sweep have failed; what the others say is written."""


class Stopped(Exception):
    """The pool was asked to stop by a signal, and its programs have ended."""

    def __init__(self, number: int):
        super().__init__(f"stopped by signal {number}")
        self.signal = number


@dataclass(frozen=True)
class Place:
    """Where a program runs. gpus: which it is shown, None for all.   cores: which it may use, None for all."""

    gpus: str | None = None
    cores: tuple[int, ...] | None = None


def places(jobs: int, gpus: Sequence[str] = ()) -> list[Place]:
    """A place for each of several programs at a time: a GPU each, or else an even share of the cores."""
    if gpus:
        return [Place(gpus=gpu) for gpu in gpus]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if jobs == 1 or len(cores) < jobs:
        return [Place()] * jobs
    return [Place(cores=tuple(cores[i::jobs])) for i in range(jobs)]


def run(
    commands: Mapping[str, Sequence[str]],
    at: Iterable[Place],
    logs: Path,
    done: Callable[[str, int, float, str], None],
) -> None:
    """Run programs, as many at a time as there are places, until all have ended.

    commands: by name.   logs: a folder, to whose NAME.log is added what each prints.   done: told of each that ends
    its name, its status, its seconds, and what it has printed.
    Raises ``Stopped`` after a SIGINT or SIGTERM, which is passed on to the programs as a SIGTERM.
    """
    waiting, free = dict(commands), list(at)
    running: dict[str, tuple[subprocess.Popen, Place, float, int]] = {}
    heard: list[int] = []
    told = 0  # of the signals heard, how many were passed on
    before = {n: signal.signal(n, lambda number, _: heard.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while running or (waiting and not heard):
            while waiting and free and not heard:
                name, place = next(iter(waiting)), free.pop(0)
                with (logs / f"{name}.log").open("ab") as log:
                    start = log.tell()
                    running[name] = _started(waiting.pop(name), place, log), place, time.monotonic(), start
            time.sleep(0.05)
            asked = len(heard)
            for name, (process, place, began, start) in list(running.items()):
                if told < asked and process.poll() is None:
                    process.terminate()
                if process.poll() is not None:
                    del running[name]
                    free.append(place)
                    if not heard:
                        said = (logs / f"{name}.log").read_bytes()[start:].decode(errors="replace")
                        done(name, process.returncode, time.monotonic() - began, said)
            told = asked
    finally:
        for process, *_ in running.values():
            process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise Stopped(heard[0])


def _started(command: Sequence[str], place: Place, log: BinaryIO) -> subprocess.Popen:
    own = {} if place.gpus is None else {"CUDA_VISIBLE_DEVICES": place.gpus}
    with _on(place.cores):
        return subprocess.Popen(
            command,
            env=os.environ | own,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the pool, which passes it on
        )


@contextmanager
def _on(cores: tuple[int, ...] | None):
    """What is started in here inherits these cores; a hook in the child would fork, which JAX's threads may hang."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
