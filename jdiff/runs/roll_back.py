"""What a run does when training diverges: back to a checkpoint from before, past the data in between; once.

A line in history.jsonl says which steps were undone. Batches are taken in the same order as before, after those that
were consumed, so a run that is killed and resumed sees the same.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from jdiff import storage
from jdiff.runs import directory
from jdiff.runtime import distributed
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.loop import Divergence, SkippedInARow

HISTORY = "history.jsonl"
REPORT = "divergence.json"


def add_to_history(path: epath.Path, line: dict[str, Any]) -> None:
    """Add a line to the history of a run."""
    storage.append(path / HISTORY, json.dumps(line) + "\n")


def data_offset(path: epath.Path, step: int) -> int:
    """How many batches a run has passed over before a step, so that step s takes batch s plus this."""
    lines = [line for line in storage.read_json_lines(path / HISTORY) if "rolled_back_from" in line]
    return sum(line["rolled_back_from"] - line["step"] for line in lines if line["step"] <= step)


def roll_back(path: epath.Path, error: SkippedInARow, keep: int) -> str:
    """Go back to the newest checkpoint from before the skipped steps. All processes call it together.

    Returns what was done, as a sentence.
    Raises ``Divergence`` where there is no such checkpoint, or the run has gone back to it already with this config.
    """
    lines = storage.read_json_lines(path / HISTORY)
    since_change = lines[max((i + 1 for i, line in enumerate(lines) if "changes" in line), default=0) :]
    with Checkpoints(path / directory.CHECKPOINTS, keep=keep) as store:
        target = max((step for step in store.steps if step < error.first_step), default=None)
        store.delete_after(target or 0)  # whose updates would be skipped again
    if target is None or any(line["step"] == target for line in since_change if "rolled_back_from" in line):
        if distributed.is_primary_process():
            content = {"first_step": error.first_step, "step": error.step, "records": list(error.records)}
            storage.write_json(path / REPORT, content)
        circumstance = f"again, after going back to step {target}"
        if target is None:
            circumstance = "and there is no checkpoint from before"
        raise Divergence(
            f"{error}, {circumstance}; {path / REPORT} has their records; run the same command with a lower "
            f"config.optimizer.learning_rate, which goes on from step {target or 0}"
        )
    if distributed.is_primary_process():
        add_to_history(path, {"step": target, "rolled_back_from": error.step})
    return f"{error}; going back to step {target}, and past the data of the steps since"
