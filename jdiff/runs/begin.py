"""How a run's directory begins: its tokenizer, its config, and the checks of a run that is resumed."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from jdiff.config.construct import ConfigError
from jdiff.data import records
from jdiff.data.tokenizer import Tokenizer
from jdiff.runs.directory import CONFIG, Model, saved_config, saved_task, write_config
from jdiff.tasks.task import ImageTextTask

DATA = "data.json"


def check_unchanged(task: ImageTextTask, path: epath.Path, builder: records.CaptionedImages) -> None:
    """Check that a run that exists has this config, on any mesh, and this data. Raises ``ConfigError``."""
    if (path / CONFIG).exists():
        free = {"mesh": {}}  # may change on resume
        changes = _differences(saved_config(path) | free, task.config.raw | free)
        for key, (old_value, new_value) in sorted(changes.items()):
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


def _differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ."""
    differences = {}
    for key in {*old, *new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            differences |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            differences[prefix + key] = (a, b)
    return differences
