"""The training loop of every task, read top to bottom."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jdiff.runtime.distributed import StopSignals
from jdiff.runtime.signals import Interruption
from jdiff.runtime.watchdog import Watchdog
from jdiff.training import metrics
from jdiff.training.callbacks import Callback
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.spikes import Guard
from jdiff.training.state import TrainState
from jdiff.training.step_folders import SaveFailure

FLUSH_SECONDS = 5.0  # how long a save waits for earlier metrics to be on disk
GRACE_SECONDS = 3.0  # how long after a signal a phase may last, of those that are short or need not end
SAVE_SECONDS = 20.0  # and a save
FINAL_SAVE_SECONDS = 60.0  # how long the last save of a run is tried again
RESUME = "run the same command to resume"
CompiledStep = Callable[[TrainState, dict], tuple[TrainState, metrics.Metrics]]


class SkippedInARow(Exception):
    """Too many updates in a row were skipped, the last at ``step``, the first at ``first_step``.

    records: the keys of the records of each of these steps, where the caller of ``run_loop`` adds them.
    """

    def __init__(self, first_step: int, step: int):
        super().__init__(f"the updates of steps {first_step} to {step} were skipped")
        self.first_step, self.step = first_step, step
        self.records: Sequence[Sequence[str]] = ()


class Divergence(ArithmeticError):
    """The loss is NaN or infinite."""

    exit_status = 2


def run_loop(
    state: TrainState,
    step: CompiledStep,
    batches: Iterator[dict],
    *,
    steps: int,
    log_every: int,
    save_every: int,
    checkpoints: Checkpoints,
    writer: metrics.Writer | None,
    callbacks: Sequence[Callback],
    stop: StopSignals,
    watchdog: Watchdog,
    steps_per_dispatch: int = 1,
    pending: metrics.Metrics | None = None,
    guard: Guard | None = None,
) -> TrainState:
    """Train until ``steps``, saving checkpoints as it goes.

    step: compiled, (state, batch) -> (state, metrics); the input state is donated.
    batches: placed batches, from the state's step on.
    writer: None on a process that leaves writing and showing progress to another.
    stop: polled before every step, for a signal to stop by.   watchdog: is told what the loop is doing.
    steps_per_dispatch: how many steps ``step`` takes.
    pending: metrics since the last log line, of a run that resumes.
    guard: looks at the state's health at every log step.
    Raises ``Interruption`` after a signal, with a checkpoint saved; ``SkippedInARow`` where ``guard`` says so;
    ``Divergence`` before it saves useless parameters.
    """
    current = first = int(state.step)
    log_step, log_time, loss = current, time.monotonic(), None
    signal_number = None

    def begin(phase: str, seconds: float = GRACE_SECONDS) -> None:
        """Say what comes next, to the watchdog, and how long a signal lets it take."""
        can_save = phase in ("data", "evaluate")  # in a step, the state is donated to the program
        stop.begin_stretch(seconds, lambda: _abandon(phase, current, checkpoints, (state, pending) if can_save else ()))
        watchdog.enter(phase, current)

    def run(callback: Callback) -> None:
        begin("evaluate")
        _run(callback, state, current, writer)

    for callback in callbacks:
        if first and callback.is_missing(first, steps):
            run(callback)  # the previous process ended after its checkpoint, before this
    with _Progress(first, steps, visible=writer is not None) as progress:
        while current < steps and (signal_number := stop.poll()) is None:
            begin("data")
            batch = next(batches)
            if current == first:
                begin("compile")
            else:
                begin("step", max(GRACE_SECONDS, 3 * progress.step_seconds))
            state, step_metrics = step(state, batch)
            pending = step_metrics if pending is None else metrics.merge(pending, step_metrics)
            current += steps_per_dispatch
            if current % log_every == 0 or current == steps:
                means = metrics.values(pending)
                if "loss" in means:
                    loss = _finite(means["loss"], current)
                num_skipped, is_stuck = (0, False) if guard is None else guard.check(state.health, current)
                if is_stuck or (num_skipped and "loss" not in means and current == steps):
                    raise SkippedInARow(current - num_skipped + 1, current)
                rate = (current - log_step) / (time.monotonic() - log_time)
                if writer is not None:
                    writer.write(current, means, rates={"steps_per_second": rate})
                pending, log_step, log_time = None, current, time.monotonic()
            progress.show(current, loss)
            if current % save_every == 0 or current == steps or checkpoints.poll():
                _finite(float(step_metrics["loss"].total), current)
                begin("save", SAVE_SECONDS)
                if writer is not None:
                    writer.flush(FLUSH_SECONDS)
                checkpoints.save(state, pending)
            for callback in callbacks:
                # After a signal the run that resumes catches up; several processes call them together and poll later.
                if callback.is_due(current, steps) and not (stop.signal_numbers and jax.process_count() == 1):
                    run(callback)
        begin("save", SAVE_SECONDS)
        if current > first:
            _finite(float(step_metrics["loss"].total), current)
            try:
                checkpoints.finish(
                    state, pending, seconds=FINAL_SAVE_SECONDS if signal_number is None else SAVE_SECONDS
                )
            except SaveFailure as failure:
                if signal_number is not None:
                    raise Interruption(signal_number, str(failure)) from failure
                raise
    if signal_number is not None:
        raise Interruption(signal_number, f"stopped at step {current} and saved a checkpoint; {RESUME}")
    return state


def _abandon(phase: str, step: int, checkpoints: Checkpoints, state: tuple) -> str:
    """Save a checkpoint where a signal cuts a phase short. Returns what was saved, as a sentence.

    state: and the pending metrics; empty where it cannot be saved. One of several processes cannot save alone.
    """
    if state and step and jax.process_count() == 1:
        with contextlib.suppress(Exception):
            checkpoints.finish(*state, seconds=1)
            return f"stopped in '{phase}' after step {step} and saved a checkpoint; {RESUME}"
    newest = (
        "there is no checkpoint yet" if checkpoints.latest is None else f"the newest checkpoint is {checkpoints.latest}"
    )
    return f"stopped in '{phase}' after step {step}; {newest}; {RESUME}"


def _run(callback: Callback, state: TrainState, step: int, writer: metrics.Writer | None) -> None:
    """Run a callback and write its report."""
    report = callback.run(state)
    if writer is not None:
        if report.metrics:
            writer.write(step, report.metrics)
        for name, picture in report.pictures.items():
            writer.image(step, name, picture)


def _finite(loss: float, step: int) -> float:
    """The loss, checked before every log line and every checkpoint. Raises ``Divergence``."""
    if not math.isfinite(loss):
        raise Divergence(
            f"the loss is {loss} at step {step}; start again in another --workdir, with a lower "
            "config.optimizer.learning_rate"
        )
    return loss


class _Progress:
    """A bar on a terminal; elsewhere a line now and then; nothing where it is not visible.

    The rate does not count the first step, which is compiled. Lines come less and less often, so that a log of a long
    run stays short.
    """

    FIRST_LINE, GROWTH = 15.0, 1.2  # seconds until the first line, and how much later each next one is

    def __init__(self, start: int, total: int, *, visible: bool):
        self._start, self._total = start, total
        self._start_time = self._rate_time = time.monotonic()
        self._rate_step, self._next_line = start, self.FIRST_LINE
        self._last_time, self.step_seconds = self._start_time, 0.0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr))
        self._task = self._bar.add_task("", total=total, completed=start, note="compiling")
        self._visible, self._live = visible, visible and self._bar.console.is_terminal

    def __enter__(self) -> _Progress:
        if self._live:
            self._bar.start()
        return self

    def show(self, step: int, loss: float | None) -> None:
        current_time = time.monotonic()
        self.step_seconds, self._last_time = current_time - self._last_time, current_time
        if self._rate_step == self._start:  # the first step ends here, compiled
            self._rate_step, self._rate_time = step, current_time
        rate = (step - self._rate_step) / max(current_time - self._rate_time, 1e-9)
        note = ("compiled" if step == self._rate_step else f"{rate:.2f} steps/s") + (
            "" if loss is None else f"  loss {loss:.4f}"
        )
        elapsed_seconds = current_time - self._start_time
        if self._live:
            self._bar.update(self._task, completed=step, note=note)
        elif self._visible and (elapsed_seconds > self._next_line or step == self._total):
            self._next_line = elapsed_seconds + self.FIRST_LINE * max(
                1.0, elapsed_seconds / self.FIRST_LINE * (self.GROWTH - 1)
            )
            remaining = f"  {(self._total - step) / rate:.0f} s left" if rate else ""
            print(f"step {step}/{self._total}  {note}{remaining}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()
