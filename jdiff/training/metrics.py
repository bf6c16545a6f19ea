"""Training metrics: means between log steps, written to metrics.jsonl and to TensorBoard event files."""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from etils import epath
from jax import Array
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from jdiff import storage

Metrics = dict[str, metrics.Average]
events: Any = event_pb2  # whose classes type checkers do not see
_average: Callable[..., metrics.Average] = metrics.Average  # whose fields clu does not declare to type checkers


def from_values(step_values: dict[str, Array | tuple[Array, Array]]) -> Metrics:
    """The metrics of one step, to be merged with those of others. A value is a scalar, or a pair (mean, count)."""
    pairs = {name: value if isinstance(value, tuple) else (value, 1) for name, value in step_values.items()}
    return {
        name: _average(total=jnp.asarray(mean * count, jnp.float32), count=jnp.asarray(count, jnp.float32))
        for name, (mean, count) in pairs.items()
    }


@jax.jit
def merge(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of both; each mean is weighted by its count."""
    return {name: a[name].merge(b[name]) for name in b}


def from_checkpoint(item: dict[str, dict[str, Array]] | None) -> Metrics | None:
    """Metrics from the item that a checkpoint restores, None where it has none."""
    if item is None:
        return None
    return {name: _average(total=a["total"], count=a["count"]) for name, a in item.items()}


def values(means: Metrics) -> dict[str, float]:
    """Metrics as plain numbers, without those whose count is 0."""
    return {name: float(average.compute()) for name, average in means.items() if float(average.count) > 0}


class Writer:
    """Writes metrics.jsonl, without timing and so equal for equal runs, and event files, with rates.

    A thread writes, so that a full disk or a file system that hangs neither delays nor ends training: a failure is
    printed, and what waits is written when that is possible again.
    """

    MAX_WAITING = 10_000  # points that wait to be written; later ones are dropped and counted
    RETRY_SECONDS = 2.0
    FLUSH_SECONDS = 30.0  # of the event files, in which every flush of an object in a bucket writes it again
    CLOSE_SECONDS = 10.0  # how long the end of training waits for points

    def __init__(self, workdir: epath.Path, *, start_step: int):
        """start_step: the step that the run resumes from; lines of later steps are removed, to be written again."""
        self._workdir, self._lines = workdir, workdir / "metrics.jsonl"
        lines = [line for line in storage.read_json_lines(self._lines) if line.get("step", math.inf) <= start_step]
        content = "".join(json.dumps(line) + "\n" for line in lines)
        if not self._lines.exists() or self._lines.read_bytes() != content.encode():
            storage.write_text(self._lines, content)
        self._purge_step, self._events = start_step + 1, None
        self._queue: queue.Queue[tuple[str, int, Any]] = queue.Queue(self.MAX_WAITING)
        self._num_dropped, self._closing = 0, False
        self._thread = threading.Thread(target=self._run, daemon=True, name="metrics")
        self._thread.start()

    def write(self, step: int, means: dict[str, float], *, rates: dict[str, float] | None = None) -> None:
        """Write the metrics of a log step. rates: timing, for the event files only."""
        self._enqueue("line", step, json.dumps({"step": step, **means}) + "\n")
        self._enqueue("scalars", step, {**means, **(rates or {})})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image to the event files. image: (h, w, 3) uint8."""
        self._enqueue("image", step, (name, image))

    def flush(self, seconds: float) -> bool:
        """Wait until all points are written, but no longer than this. Returns whether they are."""
        deadline = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.002)
        return not self._queue.unfinished_tasks

    def close(self) -> None:
        """Write what waits, for a limited time, and print how many points could not be written."""
        self.flush(self.CLOSE_SECONDS)
        self._closing = True
        self._thread.join(self.RETRY_SECONDS + 1)
        if num_lost := self._num_dropped + self._queue.unfinished_tasks:
            self._print(f"{num_lost} points of metrics could not be written and are lost")

    def _enqueue(self, kind: str, step: int, value: Any) -> None:
        try:
            self._queue.put_nowait((kind, step, value))
        except queue.Full:
            self._num_dropped += 1

    def _run(self) -> None:
        """Write points as they come; one that fails is tried again, so that lines stay in order."""
        flush_time, is_failing = time.monotonic() + self.FLUSH_SECONDS, False
        while True:
            try:
                point = self._queue.get(timeout=0.05)
            except queue.Empty:
                if self._closing:
                    self._suppress(self._close_events)
                    return
                if time.monotonic() > flush_time and self._events is not None:
                    self._suppress(self._events.flush)
                    flush_time = time.monotonic() + self.FLUSH_SECONDS
                continue
            while True:
                try:
                    self._write_point(*point)
                    break
                except Exception as error:  # of the file system, or of the client of a bucket
                    if not is_failing:
                        self._print(f"metrics cannot be written now, and training goes on: {error}")
                    is_failing = True
                    if self._closing:
                        return
                    time.sleep(self.RETRY_SECONDS)
            if is_failing:
                self._print("metrics are written again")
            is_failing = False
            self._queue.task_done()

    def _write_point(self, kind: str, step: int, value: Any) -> None:
        if kind == "line":
            storage.append(self._lines, value)
            return
        if self._events is None:
            self._events = EventsWriter(str(self._workdir / "events"))
            self._events.write_event(
                events.Event(step=self._purge_step, session_log=events.SessionLog(status=events.SessionLog.START))
            )
        if kind == "image":
            summaries = [summary.image(value[0], value[1], dataformats="HWC")]
        else:
            summaries = [summary.scalar(name, number) for name, number in value.items()]
        for content in summaries:
            self._events.write_event(events.Event(wall_time=time.time(), step=step, summary=content))

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()

    def _suppress(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # as above
            self._print(f"event files cannot be written now: {error}")

    def _print(self, text: str) -> None:
        print(f"jdiff: {self._workdir}: {text}", file=sys.stderr, flush=True)
