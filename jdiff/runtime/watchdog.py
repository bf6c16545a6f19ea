"""A watchdog: a process that hangs in one phase of training prints where, and exits, so that it is started again.

Dead processes end the others by themselves, since JAX notices; one that is alive but stuck does not, and all would wait
for it for ever.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping

from jdiff.exit_status import START_AGAIN

PHASES = ("start", "compile", "data", "step", "evaluate", "save")
NOTICE_SECONDS = 60.0  # after which a phase that should be short is printed
LONG_PHASES = ("start", "compile", "evaluate")  # of which it is not
TICK_SECONDS = 0.5


class Watchdog:
    """Knows the phase of this process. A context; its thread also runs while the main thread is stuck.

    limits: seconds by phase, 0 for none.   process: the index of this one in the run.
    publish, read_all: let all processes know a value, and read those of all; for the report.
    """

    def __init__(self, limits: Mapping[str, float], *, process: int = 0, publish=None, read_all=None):
        self._limits, self._process = dict(limits), process
        self._publish, self._read_all = publish, read_all
        self._phase, self._start_time, self._step = "start", time.monotonic(), 0
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._end_event = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_event.set()

    def enter(self, phase: str, step: int) -> None:
        """A phase begins, or goes on after a step."""
        current_time = time.monotonic()
        self._seconds[self._phase] += current_time - self._start_time
        self._phase, self._start_time, self._step = phase, current_time, step

    def times(self) -> tuple[int, dict[str, float]]:
        """The last step, and the seconds spent in each phase so far."""
        phase, start_time = self._phase, self._start_time
        seconds = dict(self._seconds)
        seconds[phase] += time.monotonic() - start_time
        return self._step, seconds

    def _watch(self) -> None:
        shared_state, noticed_time = None, None
        while not self._end_event.wait(TICK_SECONDS):
            phase, start_time, step = self._phase, self._start_time, self._step
            seconds, limit = time.monotonic() - start_time, self._limits.get(phase, 0)
            if self._publish is not None and (phase, step) != shared_state:
                self._publish("watchdog", f"{socket.gethostname()}: {phase}, step {step}")
                shared_state = (phase, step)
            if limit and seconds > limit:
                self._end(phase, step, limit)
            if seconds > NOTICE_SECONDS and phase not in LONG_PHASES and noticed_time != start_time:
                noticed_time = start_time
                bound = f"; at {limit:.0f} s this process exits" if limit else ""
                self._print(f"'{phase}' after step {step} has taken {seconds:.0f} s{bound}")

    def _end(self, phase: str, step: int, limit: float) -> None:
        self._print(
            f"'{phase}' after step {step} took longer than config.watchdog.{phase} = {limit:g} s; exiting with status "
            f"{START_AGAIN}, so that the run is started again from its newest checkpoint"
        )
        if self._read_all is not None:
            for process, state in sorted(self._read_all("watchdog").items()):
                self._print(f"process {process} was last seen at {state}")
        faulthandler.dump_traceback(all_threads=True)
        os._exit(START_AGAIN)

    def _print(self, text: str) -> None:
        print(f"jdiff: {socket.gethostname()}, process {self._process}: {text}", file=sys.stderr, flush=True)
