"""What a run says of itself: averages between reports, in metrics.jsonl and in TensorBoard events."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from etils import epath
from jax import Array
from tensorboardX import SummaryWriter

from jdiff import storage

Metrics = dict[str, metrics.Average]


def from_report(report: dict[str, Array | tuple[Array, Array]]) -> Metrics:
    """A step's report as averages that can be merged. A value is a scalar, or a pair (mean, count)."""
    pairs = {name: value if isinstance(value, tuple) else (value, 1) for name, value in report.items()}
    return {
        name: metrics.Average(total=jnp.asarray(mean * count, jnp.float32), count=jnp.asarray(count, jnp.float32))
        for name, (mean, count) in pairs.items()
    }


@jax.jit
def merge(a: Metrics, b: Metrics) -> Metrics:
    """The averages of both."""
    return {name: a[name].merge(b[name]) for name in b}


def from_checkpoint(saved: dict[str, dict[str, Array]] | None) -> Metrics | None:
    """Metrics as a checkpoint gives them back."""
    return saved and {name: metrics.Average(total=a["total"], count=a["count"]) for name, a in saved.items()}


def values(merged: Metrics) -> dict[str, float]:
    """Metrics as plain numbers; one that saw no example is left out."""
    return {name: float(average.compute()) for name, average in merged.items() if float(average.count) > 0}


class Writer:
    """Writes metrics.jsonl, which holds no clock and so is equal for equal runs, and events, which hold the rates."""

    def __init__(self, workdir: epath.Path, *, start_step: int):
        """start_step: the step a run goes on from; lines of later steps, which it will write again, are cut."""
        self._lines = workdir / "metrics.jsonl"
        kept = self._lines.read_text().splitlines(keepends=True) if self._lines.exists() else []
        self._lines.write_text("".join(line for line in kept if json.loads(line)["step"] <= start_step))
        self._events = SummaryWriter(str(workdir), purge_step=start_step + 1, write_to_disk=True)

    def write(self, step: int, report: dict[str, float], *, rates: dict[str, float] | None = None) -> None:
        """Add one report. rates: figures of the clock, for the events only."""
        storage.append(self._lines, json.dumps({"step": step, **report}) + "\n")
        for name, value in {**report, **(rates or {})}.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Add a picture to the events. image: (h, w, 3) uint8."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()
