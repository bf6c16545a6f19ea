"""What happens every n steps of training: previews, evaluation, EMA snapshots. The loop knows none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jdiff.training.state import TrainState


@dataclass(frozen=True)
class Report:
    """What a callback gives the loop to write. metrics: scalars for metrics.jsonl and TensorBoard, by name.

    pictures: (h, w, 3) uint8 for TensorBoard, by name.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Callback:
    """Runs after every ``every`` steps, 0 for never; with ``at_end`` also after the last.

    run: of the state; all processes call it together.
    recorded: whether the result of a step is on disk. A run that resumes at a step whose callbacks were cut short runs
        those first that are not recorded.
    """

    every: int
    run: Callable[[TrainState], Report]
    is_recorded: Callable[[int], bool]
    at_end: bool = True

    def is_missing(self, step: int, last_step: int) -> bool:
        """Whether it is due at a step, but its result is not on disk. All processes call it together."""
        return self.is_due(step, last_step) and not self.is_recorded(step)

    def is_due(self, step: int, last_step: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or (self.at_end and step == last_step))
