"""Reading a run to see whether every file is what was written: checkpoints, snapshots, frozen parameters, images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epath

from jdiff import storage
from jdiff.data.tokenizer import read_model
from jdiff.images import read_metadata
from jdiff.runs import directory
from jdiff.runs.directory import CHECKPOINTS, CONFIG, DATA, TOKENIZER
from jdiff.runs.origin import newest_origin
from jdiff.training import manifest
from jdiff.training.manifest import DamagedCheckpoint

FOLDERS = {CHECKPOINTS: "checkpoint", "ema_snapshots": "snapshot", "base": "frozen parameters"}


class DamageFound(Exception):
    """A run has damaged files, which were printed."""

    exit_status = 1


def verify_run(workdir: str) -> None:
    """Print what is damaged in a run, and what is intact. Raises ``DamageFound``, ``NoCheckpoint``."""
    path = epath.Path(workdir)
    directory.saved_config(path)  # says what is missing
    num_damaged = 0
    for name, problem in [*_folders(path), *_files(path)]:
        print(f"  {name}: {problem or 'intact'}", flush=True)
        num_damaged += bool(problem)
    if num_damaged:
        raise DamageFound(
            f"damaged parts of {workdir}: {num_damaged}; `jdiff train` uses the newest checkpoint that is intact, "
            "and writes damaged files of the run again where it can"
        )
    print(f"{workdir} is intact")


def _folders(path: epath.Path) -> Iterator[tuple[str, str]]:
    """Each folder of arrays, and what is wrong with it, "" for nothing."""
    for name, noun in FOLDERS.items():
        folders = (path / name).iterdir() if (path / name).exists() else ()
        for folder in sorted((p for p in folders if p.name.isdecimal()), key=lambda p: int(p.name)):
            try:
                manifest.verify(folder)
                problem = ""
            except FileNotFoundError:
                problem = "it was not written to its end (it has no manifest)"
            except (DamagedCheckpoint, OSError) as error:
                problem = str(error)
            yield f"{noun} {folder.name}", problem


def _files(path: epath.Path) -> Iterator[tuple[str, str]]:
    """Each other file that a run's commands read, and what is wrong with it."""
    newest = newest_origin(path / CHECKPOINTS)
    for name in (CONFIG, DATA):
        yield name, _problem(lambda name=name: storage.read_json(path / name, "it can be written again"))
    yield TOKENIZER, _problem(lambda: read_model(path / TOKENIZER))
    if newest:
        yield f"{CONFIG} and {TOKENIZER} as trained", _problem(lambda: directory.check_run_files(path, *newest))
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        num_lines = len(metrics.read_bytes().splitlines())
        num_damaged = num_lines - len(storage.read_json_lines(metrics))
        yield metrics.name, f"{num_damaged} of {num_lines} lines are damaged" if num_damaged else ""
    images = sorted(path.glob("samples/*.png"))
    damaged_images = [image.name for image in images if read_metadata(image) is None]
    if images:
        problem = f"{', '.join(damaged_images)} do not match their JSON" if damaged_images else ""
        yield f"{len(images)} previews", problem


def _problem(read: Any) -> str:
    try:
        read()
    except (OSError, ValueError) as error:
        return str(error)
    return ""
