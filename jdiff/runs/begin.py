"""How a run's directory begins: its tokenizer, its config, and the checks of a run that is resumed."""

from __future__ import annotations

import json
import re
from typing import Any

from etils import epath

from jdiff import storage
from jdiff.config.construct import ConfigError
from jdiff.data import records
from jdiff.data.tokenizer import Tokenizer
from jdiff.runs.directory import CONFIG, Model, saved_config, saved_task, write_config
from jdiff.tasks.task import ImageTextTask

DATA, HISTORY = "data.json", "history.jsonl"
# Keys that a resumed run may change: no step depends on the first, and changes of the second are kept in HISTORY.
FREE_KEYS = re.compile(r"mesh(\..*)?|train\.(log_every|save_every|sample_every|evaluate_every|evaluate_num|keep)")
RECORDED_KEYS = ("train.steps", "optimizer.learning_rate")
Changes = dict[str, tuple[Any, Any]]  # dotted key of the config -> old and new value


def changes_on_resume(task: ImageTextTask, path: epath.Path, builder: records.CaptionedImages) -> Changes:
    """The keys whose values differ from those that a run has so far, which may change, on the same data.

    Raises ``ConfigError`` at a key that may not.
    """
    changes: Changes = {}
    if (path / CONFIG).exists():
        changes = _differences(saved_config(path), task.config.raw)
        for key, (old_value, new_value) in sorted(changes.items()):
            if not (FREE_KEYS.fullmatch(key) or key in RECORDED_KEYS):
                raise ConfigError(
                    f"{path} was started with config.{key} = {old_value!r}, and now it is {new_value!r}; "
                    "name another --workdir, or change the config back"
                )
    if (path / DATA).exists():
        old_value, new_value = json.loads((path / DATA).read_text())["name"], builder.builder_config.name
        if old_value != new_value:
            raise ConfigError(
                f"{path} was started on the data set {old_value}, and config.data now makes {new_value}, as files "
                "have changed; name another --workdir"
            )
    return changes


def record_changes(task: ImageTextTask, path: epath.Path, step: int, changes: Changes) -> None:
    """Add a line to the history of a run that is resumed at a step, and write its changed config."""
    recorded_changes = {key: changes[key] for key in RECORDED_KEYS if key in changes}
    if recorded_changes:
        history = path / HISTORY
        if not history.exists():
            history.write_text("")
        storage.append(history, json.dumps({"step": step, "changes": recorded_changes}) + "\n")
        write_config(path, task.config.raw)


def tokenizer_of(task: ImageTextTask, path: epath.Path, models: dict[str, Model], examples) -> Tokenizer:
    """The run's tokenizer; of a new run that of its text tower's model, or one learnt from the captions."""
    if (path / CONFIG).exists():
        return saved_task(path).tokenizer
    if "text" in models:
        return models["text"].task.tokenizer
    return task.train_tokenizer(caption.decode() for i in range(len(examples)) for caption in examples[i]["captions"])


def initialize_run_dir(task: ImageTextTask, path: epath.Path, builder: records.CaptionedImages) -> None:
    """Make ``path`` a run of this task, if it is none yet; its config.json is written last."""
    if not (path / CONFIG).exists():
        path.mkdir(parents=True, exist_ok=True)
        task.tokenizer.save(path / "tokenizer.json")
        (path / DATA).write_text(json.dumps({"name": builder.builder_config.name}) + "\n")
        write_config(path, task.config.raw)


def _differences(old: dict, new: dict, prefix: str = "") -> Changes:
    """Dotted keys whose values differ."""
    differences = {}
    for key in {*old, *new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            differences |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            differences[prefix + key] = (a, b)
    return differences
