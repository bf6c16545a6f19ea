"""The training loop of every model, read top to bottom."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jdiff.training import metrics
from jdiff.training.checkpoint import Checkpoints, Snapshots
from jdiff.training.state import TrainState
from jdiff.training.steps import Step


class Interrupted(Exception):
    """The run was asked to stop, and has saved. signal: the number of the signal."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"stopped at step {step}, saved; the same command goes on from there")
        self.signal = signal_number


class Diverged(ArithmeticError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Every:
    """After how many steps the loop reports, saves, draws samples and keeps averages for good, 0 for never."""

    log: int = 50
    save: int = 500
    sample: int = 500
    snapshot: int = 0


def train(
    state: TrainState,
    step: Step,
    batches: Iterator[dict],
    *,
    steps: int,
    every: Every,
    checkpoints: Checkpoints,
    writer: metrics.Writer | None,
    show_samples: Callable[[TrainState], None],
    stop: Callable[[], int | None],
    snapshots: Snapshots | None = None,
    steps_per_dispatch: int = 1,
    merged: metrics.Metrics | None = None,
) -> TrainState:
    """Train until ``steps``, saving as it goes.

    step: compiled, (state, batch) -> (state, metrics); the state passed in is given up.
    batches: placed batches, from the state's step on.
    writer: None on a process that leaves it, and showing progress, to another.
    show_samples: writes what the model can do so far.
    stop: asked before every step; the number of the signal to stop by, or None.
    at_a_time: how many steps ``step`` takes.
    merged: what was measured between the last report and the state's step.
    Raises ``Interrupted`` after a stop that was saved, ``Diverged`` before a save that would be worthless.
    """
    done = first = int(state.step)
    last_report, last_time, loss = done, time.monotonic(), None
    signal = None
    if snapshots is not None and first and first % every.snapshot == 0:
        snapshots.save(state)  # whose run may have been ended after the checkpoint was written
    with _Progress(first, steps, shown=writer is not None) as progress:
        while done < steps and (signal := stop()) is None:
            state, step_metrics = step(state, next(batches))
            merged = step_metrics if merged is None else metrics.merge(merged, step_metrics)
            done += steps_per_dispatch
            if done % every.log == 0 or done == steps:
                values = metrics.values(merged)
                loss = _finite(values["loss"], done)
                rate = (done - last_report) / (time.monotonic() - last_time)
                if writer is not None:
                    writer.write(done, values, rates={"steps_per_second": rate})
                merged, last_report, last_time = None, done, time.monotonic()
            progress.show(done, loss)
            if done % every.save == 0 or done == steps:
                _finite(float(step_metrics["loss"].total), done)
                checkpoints.save(state, merged)
            if snapshots is not None and done % every.snapshot == 0:
                snapshots.save(state)
            if done % every.sample == 0 or done == steps:
                show_samples(state)
        if done > first:
            _finite(float(step_metrics["loss"].total), done)
            checkpoints.save(state, merged)
        for kept in (checkpoints, snapshots):
            if kept is not None:
                kept.wait()
    if done < steps:
        raise Interrupted(signal, done)
    return state


def _finite(loss: float, step: int) -> float:
    """The loss, if it is a number; it is asked before every report and every save."""
    if not math.isfinite(loss):
        raise Diverged(
            f"the loss of step {step} is not a number; start again in another --workdir, "
            "with a lower config.optimizer.learning_rate"
        )
    return loss


class _Progress:
    """A bar on a terminal; elsewhere a line now and then; where it is not shown, nothing."""

    LINE_SECONDS = 15.0

    def __init__(self, start: int, total: int, *, shown: bool):
        self._start, self._total, self._began = start, total, time.monotonic()
        self._last_line = self._began
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr))
        self._task = self._bar.add_task("", total=total, completed=start, note="")
        self._shown, self._live = shown, shown and self._bar.console.is_terminal

    def __enter__(self) -> _Progress:
        if self._live:
            self._bar.start()
        return self

    def show(self, done: int, loss: float | None) -> None:
        now = time.monotonic()
        rate = (done - self._start) / max(now - self._began, 1e-9)
        note = f"{rate:.2f} steps/s" + ("" if loss is None else f"  loss {loss:.4f}")
        if self._live:
            self._bar.update(self._task, completed=done, note=note)
        elif self._shown and (now - self._last_line > self.LINE_SECONDS or done == self._total):
            self._last_line = now
            left = (self._total - done) / max(rate, 1e-9)
            print(f"step {done}/{self._total}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()
