"""Training metrics: means between log steps, written to metrics.jsonl and to TensorBoard event files."""

from __future__ import annotations

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from etils import epath
from jax import Array
from tensorboardX import SummaryWriter

from jdiff import storage

Metrics = dict[str, metrics.Average]
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
    """Writes metrics.jsonl, without timing and so equal for equal runs, and event files, with rates."""

    def __init__(self, workdir: epath.Path, *, start_step: int):
        """start_step: the step that the run resumes from; lines of later steps are removed, to be written again."""
        self._lines = workdir / "metrics.jsonl"
        previous_lines = self._lines.read_text().splitlines(keepends=True) if self._lines.exists() else []
        self._lines.write_text("".join(line for line in previous_lines if json.loads(line)["step"] <= start_step))
        self._events = SummaryWriter(str(workdir), purge_step=start_step + 1, write_to_disk=True)

    def write(self, step: int, means: dict[str, float], *, rates: dict[str, float] | None = None) -> None:
        """Write the metrics of a log step. rates: timing, for the event files only."""
        storage.append(self._lines, json.dumps({"step": step, **means}) + "\n")
        for name, value in {**means, **(rates or {})}.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image to the event files. image: (h, w, 3) uint8."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._events.close()
