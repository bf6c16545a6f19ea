"""SIGINT and SIGTERM: every command ends within seconds, with one line and its exit status, whatever it is doing.

A signal raises ``SignalInterrupt`` in the main thread, so that files are closed and removed on the way out. The main
thread does not hear it while it runs compiled code or waits for a file system, so a thread ends the process
``GRACE_SECONDS`` later. A training loop stops by itself instead: it polls ``StopSignals`` between steps and saves a
checkpoint. What it does between two polls may take its time, but not for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jdiff.exit_status import CTRL_C, START_AGAIN

STATUS = {signal.SIGINT: CTRL_C, signal.SIGTERM: START_AGAIN}
GRACE_SECONDS = 3.0  # for the main thread to end by itself


class Interruption(Exception):
    """Work that polls for signals was asked to stop by one. The message says what became of it."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal, self.exit_status = signal_number, STATUS[signal.Signals(signal_number)]


class SignalInterrupt(KeyboardInterrupt):
    """A signal ends the command where it is; no ``except Exception`` on the way holds it up."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


@dataclass(frozen=True)
class _Stretch:
    """What a loop does until it polls again. abandon: called where it takes longer; returns the line to print."""

    start: float
    seconds: float
    abandon: Callable[[], str]


class _Handler:
    """Handles both signals while it is entered, in the main thread and in a thread of its own."""

    def __init__(self):
        self.signal_numbers: list[int] = []
        self.num_deferring = 0  # contexts that poll for signals
        self.stretch: _Stretch | None = None
        self.native: Callable[[int], None] | None = None  # JAX's own handler of SIGTERM

    def __enter__(self) -> _Handler:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in STATUS}
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._end_event = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="signals").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_event.set()
        signal.set_wakeup_fd(self._previous_writer)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread

    def take_sigterm(self) -> None:
        """Handle SIGTERM again after JAX has, and pass it on to JAX's handler, which lets all processes know."""
        libc = ctypes.CDLL(None)
        libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        if address := libc.signal(signal.SIGTERM, None):
            self.native = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, _: object) -> None:
        self.signal_numbers.append(number)
        if not self.num_deferring:
            raise SignalInterrupt(number)

    def _watch(self) -> None:
        """Hear signals also while the main thread does not."""
        with open(self._reader, "rb", buffering=0) as reader:
            while data := reader.read(1):
                if (number := data[0]) not in STATUS:
                    continue
                if self.num_deferring and self.native is not None:
                    self.native(signal.SIGTERM)
                if self.num_deferring:
                    self._supervise(number)
                elif not self._end_event.wait(GRACE_SECONDS):
                    end(number, f"stopped by {signal.Signals(number).name}")

    def _supervise(self, number: int) -> None:
        """After a signal, see that the loop which polls for it ends, and end the process where it is stuck."""
        if self.stretch is not None:
            print(f"jdiff: {signal.Signals(number).name}, stopping", file=sys.stderr, flush=True)
        signal_time = time.monotonic()
        while self.num_deferring and not self._end_event.is_set():
            stretch = self.stretch
            is_late = stretch and time.monotonic() > max(stretch.start, signal_time) + stretch.seconds
            if stretch and is_late and self.stretch is stretch:
                end(number, stretch.abandon())
            time.sleep(0.02)


_current: _Handler | None = None  # of this process


@contextlib.contextmanager
def handle_signals() -> Iterator[_Handler]:
    """Handle both signals inside. Only the main thread can; elsewhere, and inside of another, nothing changes."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or _Handler()
        return
    with _Handler() as _current:
        try:
            yield _current
        finally:
            _current = None


def take_sigterm() -> None:
    """See ``_Handler.take_sigterm``; nothing where no signals are handled."""
    if _current is not None:
        _current.take_sigterm()


def end(number: int, message: str) -> None:
    """End the process at once, with the exit status of a signal."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        print(f"jdiff: {message}", file=sys.stderr, flush=True)
    os._exit(STATUS[signal.Signals(number)])


class StopSignals:
    """A context in which signals do not raise, but wait in a list to be polled."""

    def __enter__(self) -> StopSignals:
        self._stack = contextlib.ExitStack()
        self._handler = self._stack.enter_context(handle_signals())
        self._handler.num_deferring += 1
        self._start = len(self._handler.signal_numbers)
        self._end: int | None = None
        return self

    def __exit__(self, *exception: object) -> None:
        self._end = len(self._handler.signal_numbers)
        self._handler.num_deferring -= 1
        self._handler.stretch = None
        self._stack.close()

    @property
    def signal_numbers(self) -> list[int]:
        """The numbers of the signals inside the context, in order."""
        return self._handler.signal_numbers[self._start : self._end]

    def begin_stretch(self, seconds: float, abandon: Callable[[], str]) -> None:
        """What follows until the next call may take this long after a signal; then the process ends.

        abandon: called first, from another thread; returns the line to print.
        """
        self._handler.stretch = _Stretch(time.monotonic(), seconds, abandon)
