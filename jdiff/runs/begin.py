"""How a run's directory begins: its tokenizer, its config, and the checks of a run that is resumed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

from etils import epath

from jdiff import storage
from jdiff.config.construct import ConfigError
from jdiff.data.records import DatasetNotPreparedError, OtherFormatError, Records, changed_files, prepared_name
from jdiff.data.tokenizer import Tokenizer, read_model
from jdiff.runs.directory import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    TOKENIZER,
    Model,
    saved_config,
    saved_task,
    with_saved_records,
    write_config,
)
from jdiff.runs.origin import FREE_KEYS, RECORDED_KEYS, Changes, differences, newest_origin
from jdiff.runs.roll_back import add_to_history
from jdiff.tasks.task import ImageTextTask

MAX_COUNTED = 50_000  # captions whose length is compared with the context length


def restore_files(path: epath.Path) -> None:
    """Make the files of a run whole again, after a process was killed or a file was damaged, and print which.

    A tokenizer.json that is missing, as a damaged one then is, ``tokenizer_of`` learns from the captions again.
    """
    if path.exists():
        for folder in (path, path / "samples"):
            storage.remove_partial_files(folder)
        if (path / TOKENIZER).exists():
            try:
                read_model(path / TOKENIZER)
            except ValueError as error:
                print(f"{error}; it is learnt again")
                (path / TOKENIZER).unlink()
        for name in (CONFIG, DATA):
            _restore_json(path, name)


def _restore_json(path: epath.Path, name: str) -> None:
    """Write config.json or data.json again where it is missing or damaged, from what a checkpoint says.

    A file that is damaged before the first checkpoint is removed, since the run starts again.
    """
    try:
        storage.read_json(path / name, "")
        return
    except (FileNotFoundError, storage.DamagedFile):
        _, origin = newest_origin(path / CHECKPOINTS) or (0, {})
    content = origin.get({CONFIG: "config", DATA: "data"}[name])
    if not content:
        (path / name).unlink(missing_ok=True)
        return
    if name == CONFIG:
        write_config(path, content)
    else:
        storage.write_json(path / name, content)
    print(f"{path / name} was missing or damaged, and is written again as its newest checkpoint says")


def open_records(task: ImageTextTask, path: epath.Path) -> tuple[ImageTextTask, Records]:
    """The records of a run: those that it was started on, or of a new run those that its config names.

    Returns the task, bound to these records, and the records.   Raises ``DatasetNotPreparedError``, and ``ConfigError``
    where the records that a run was started on are gone and its data has changed.
    """
    if not (path / CONFIG).exists() or not (path / DATA).exists():
        return task, task.records()
    task = with_saved_records(task, path)
    name, _ = task.records_location
    try:
        return task, task.records()
    except OtherFormatError:
        raise
    except DatasetNotPreparedError as error:
        source, directory = task.config.data.make_source(), task.config.data.directory
        with contextlib.suppress(DatasetNotPreparedError):
            if (new_name := prepared_name(source, directory)) != name:
                raise ConfigError(
                    f"{path} was started on the data set {name}, which is gone from {directory}, and config.data now "
                    f"makes {new_name}, as files have changed; name another --workdir"
                ) from error
        raise


def notes_on_data(task: ImageTextTask, dataset: Records) -> Iterator[str]:
    """How the data that a config names differs now from the records that are used, a sentence for each.

    The data itself need not exist any more, and is not read in a bucket.
    """
    section = task.config.data
    with contextlib.suppress(ValueError, OSError):
        source = section.make_source()
        if (name := prepared_name(source, section.directory)) != dataset.name:
            yield f"{name} was prepared since this run began; it continues on {dataset.name}"
        if storage.on_disk(section.source_keys.get("path", "")) and (
            changes := changed_files(source, section.directory)
        ):
            yield f"files in config.data.path differ from the prepared ones: {changes}; `jdiff prepare` reads them"


def changes_on_resume(task: ImageTextTask, path: epath.Path) -> Changes:
    """The keys whose values differ from those that a run has so far, and may change.

    Raises ``ConfigError`` at a key that may not.
    """
    changes: Changes = {}
    if (path / CONFIG).exists():
        changes = differences(saved_config(path), task.config.raw)
        for key, (old_value, new_value) in sorted(changes.items()):
            if not (FREE_KEYS.fullmatch(key) or key in RECORDED_KEYS):
                raise ConfigError(
                    f"{path} was started with config.{key} = {old_value!r}, and now it is {new_value!r}; "
                    "name another --workdir, or change the config back"
                )
    return changes


def record_changes(task: ImageTextTask, path: epath.Path, step: int, changes: Changes) -> None:
    """Add a line to the history of a run that is resumed at a step, and write its changed config."""
    recorded_changes = {key: changes[key] for key in RECORDED_KEYS if key in changes}
    if recorded_changes:
        add_to_history(path, {"step": step, "changes": recorded_changes})
        write_config(path, task.config.raw)


def tokenizer_of(task: ImageTextTask, path: epath.Path, models: dict[str, Model], dataset: Records) -> Tokenizer:
    """The run's tokenizer; of a new run that of its text tower's model, or one learnt from the captions."""
    if (path / CONFIG).exists() and (path / TOKENIZER).exists():
        return saved_task(path).tokenizer
    if "text" in models:
        return models["text"].task.tokenizer
    return task.train_tokenizer(dataset.captions("train"))


def note_on_truncation(tokenizer: Tokenizer, captions: Iterable[str]) -> str:
    """How many captions are longer than the context length, as a sentence; "" where none is."""
    lengths = [len(tokenizer.ids(caption)) for caption in itertools.islice(captions, MAX_COUNTED)]
    num_truncated = sum(length > tokenizer.max_caption_tokens for length in lengths)
    if not num_truncated:
        return ""
    first = "the first " * (len(lengths) == MAX_COUNTED)
    special = tokenizer.context_length - tokenizer.max_caption_tokens
    return (
        f"{num_truncated} of {first}{len(lengths)} captions are truncated to config.tokenizer.context_length = "
        f"{tokenizer.context_length} tokens; the longest has {max(lengths) + special}"
    )


def initialize_run_dir(task: ImageTextTask, path: epath.Path, dataset: Records) -> None:
    """Make ``path`` a run of this task, if it is none yet; its config.json is written last."""
    if not (path / TOKENIZER).exists():
        path.mkdir(parents=True, exist_ok=True)
        task.tokenizer.save(path / TOKENIZER)
    if not (path / CONFIG).exists():
        data_dir = str(storage.absolute(dataset.data_dir))
        storage.write_json(path / DATA, {"name": dataset.name, "directory": data_dir})
        write_config(path, task.config.raw)
