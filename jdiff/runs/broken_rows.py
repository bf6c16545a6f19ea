"""Rows of batches whose records could not be read any more and were replaced: printed, counted, and limited."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from jdiff.runtime import distributed
from jdiff.tasks.task import ImageTextTask

KEY = "replaced_rows"  # of the manifest of a checkpoint
MIN_ROWS = 20  # replaced, below which the share is not judged


class TooManyBrokenRecords(ValueError):
    """More records than ``config.data.max_broken`` cannot be read."""


class BrokenRows:
    """Counts this process' replaced rows by reason. The sum over all processes goes into every checkpoint."""

    def __init__(self, task: ImageTextTask):
        self._counts: Counter[str] = Counter()
        self._max_share, self._batch_size = task.config.data.max_broken, task.config.train.batch_size

    def resume(self, origin: dict[str, Any]) -> None:
        """Go on with the counts of a checkpoint; the primary process keeps them for all."""
        if distributed.is_primary_process():
            self._counts.update(origin.get(KEY, {}))

    def add(self, reason: str, problem: str) -> None:
        """Count a row, and print the first of each reason."""
        self._counts[reason] += 1
        if self._counts[reason] == 1:
            print(f"jdiff: {problem}; another record takes its place", file=sys.stderr, flush=True)

    def counters(self) -> dict[str, Any]:
        """The rows of all processes by reason, for a manifest. All processes call it together."""
        counts = distributed.sum_counts(self._counts)
        return {KEY: dict(sorted(counts.items()))} if counts else {}

    def limit(self, batches: Iterable[dict], start_step: int) -> Iterator[dict]:
        """The batches, until the share of replaced rows is too large. Raises ``TooManyBrokenRecords``."""
        for step, batch in enumerate(batches, start_step + 1):
            total = sum(self._counts.values())
            if total >= MIN_ROWS and total > self._max_share * step * self._batch_size:
                raise TooManyBrokenRecords(
                    f"{self.note()}, more than config.data.max_broken = {self._max_share} of all"
                )
            yield batch

    def note(self) -> str:
        """What was replaced so far, as a sentence; "" for nothing."""
        if not self._counts:
            return ""
        reasons = ", ".join(f"{count} by {reason}" for reason, count in sorted(self._counts.items()))
        return (
            f"{sum(self._counts.values())} rows of batches were replaced, as their records cannot be read ({reasons})"
        )
