"""Where the time of a run goes, over all its starts (goodput): activity.json, and what `jdiff status` shows of it.

Every second between the first start and the last belongs to a phase of training, to steps that were lost because their
process ended before a checkpoint, or to the time between two processes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from jdiff import storage
from jdiff.runs import directory
from jdiff.runtime import lock
from jdiff.runtime.watchdog import PHASES, Watchdog

FILE = "activity.json"
WRITE_SECONDS = 10.0
LOST_STEPS, DOWN = "lost steps", "between processes"
LABELS = {
    "start": "starting",
    "compile": "compiling",
    "data": "waiting for data",
    "step": "training",
    "evaluate": "previews and evaluation",
    "save": "saving",
}


class Activity:
    """Writes what this process does with its time to activity.json, from a thread. A context."""

    def __init__(self, path: epath.Path, watchdog: Watchdog, start_step: int, start_time: float):
        """start_step: that this process resumes at.   start_time: of this process, in seconds since 1970."""
        self._file, self._watchdog = path / FILE, watchdog
        self._starts = read_activity(path)
        self._start = {"start_time": start_time, "start_step": start_step}
        self._end_event = threading.Event()

    def __enter__(self) -> Activity:
        self._thread = threading.Thread(target=self._run, daemon=True, name="activity")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_event.set()
        self._thread.join(2)

    def _run(self) -> None:
        while True:
            is_last = self._end_event.wait(WRITE_SECONDS)
            step, seconds = self._watchdog.times()
            start = {**self._start, "end_time": time.time(), "step": step, "seconds": seconds}
            with contextlib.suppress(OSError):  # a full disk
                storage.write_json(self._file, {"starts": [*self._starts, start]})
            if is_last:
                return


def read_activity(path: epath.Path) -> list[dict[str, Any]]:
    """The starts of a run, in order; [] where nothing is known of them."""
    try:
        return list(storage.read_json(path / FILE, "", "starts")["starts"])
    except (FileNotFoundError, storage.DamagedFile):
        return []


def attribute(starts: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by what they were spent on, over all starts of a run. Their sum is the time from first to last."""
    seconds: Counter[str] = Counter()
    for start, following in zip(starts, [*starts[1:], None]):
        phases = Counter(start["seconds"])
        phases["start"] += start["end_time"] - start["start_time"] - sum(phases.values())
        num_steps = start["step"] - start["start_step"]
        if following is not None:
            num_lost = max(0, start["step"] - following["start_step"])
            share = min(1.0, num_lost / num_steps) if num_steps else 0.0
            for phase in ("data", "step"):
                seconds[LOST_STEPS] += share * phases[phase]
                phases[phase] *= 1 - share
            seconds[DOWN] += max(0.0, following["start_time"] - start["end_time"])
        seconds.update(phases)
    return dict(seconds)


def print_status(workdir: str) -> None:
    """Print what a run is doing, and a table of its time. Raises ``NoCheckpoint`` where there is no run."""
    path = epath.Path(workdir)
    steps = directory.saved_config(path)["train"]["steps"]
    starts, newest = read_activity(path), directory.latest_step(path)
    owner = lock.owner(path)
    lines = storage.read_json_lines(path / "metrics.jsonl")
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    step = max(starts[-1]["step"] if starts else 0, losses[-1][0] if losses else 0, newest or 0)
    state = f"running, by {owner}" if owner else "finished" if (newest or 0) >= steps else "not running"
    print(f"{workdir}: {state}")
    print(f"step {step} of {steps}" + (f", loss {losses[-1][1]:.4g} at step {losses[-1][0]}" if losses else ""))
    print("no checkpoint yet" if newest is None else f"newest checkpoint: step {newest}")
    if not starts:
        return
    last = starts[-1]
    busy_seconds = sum(last["seconds"].get(phase, 0) for phase in ("data", "step"))
    num_steps = last["step"] - last["start_step"]
    if busy_seconds and num_steps:
        rate = num_steps / busy_seconds
        remaining = f", {_duration((steps - step) / rate)} left" if owner and step < steps else ""
        print(f"{rate:.3g} steps/s{remaining}")
    seconds = attribute(starts)
    total = sum(seconds.values())
    table = Table("time", "share", "spent on", title=f"{_duration(total)} in all; starts: {len(starts)}")
    for name in (*PHASES, LOST_STEPS, DOWN):
        if seconds.get(name, 0) > 0:
            table.add_row(_duration(seconds[name]), f"{seconds[name] / total:.1%}", LABELS.get(name, name))
    Console(width=100).print(table)


def _duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
