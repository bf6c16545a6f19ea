"""Manifests: the size and the SHA-256 of every file of a checkpoint, written as its last file, and verified by readers.

Orbax and TensorStore check the hashes of their own metadata alone: a flipped bit in an array is restored as another
number. A folder without a manifest was not written to its end. The hashes find accidents, not an attacker, who could
write a new manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from jdiff import storage

MANIFEST = "manifest.json"
NOT_LISTED = (MANIFEST, ".DS_Store")  # which macOS adds to folders
KEYS = ("name", "files", "origin", "sha256")
NUM_THREADS = 4  # hashing releases the lock of the interpreter


class DamagedCheckpoint(ValueError):
    """A checkpoint's files are not those that were written; the message names one."""


def write_manifest(folder: epath.Path, origin: dict[str, Any]) -> None:
    """Write the manifest of a folder's files. origin: what else to keep, such as the config; JSON."""
    names = _file_names(folder)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        files = dict(zip(names, pool.map(lambda name: _size_and_digest(folder / name), names)))
    content = {"name": folder.name, "files": files, "origin": origin}
    storage.write_json(folder / MANIFEST, {**content, "sha256": _digest(content)})


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """The ``files`` and the ``origin`` of a folder's manifest. Raises ``FileNotFoundError``, ``DamagedCheckpoint``."""
    try:
        content = storage.read_json(folder / MANIFEST, "it is the record of a checkpoint", *KEYS)
    except storage.DamagedFile as error:
        raise DamagedCheckpoint(str(error)) from error
    if content.pop("sha256") != _digest(content):
        raise DamagedCheckpoint(f"{folder / MANIFEST} is damaged (its content does not match its SHA-256)")
    if content["name"] != folder.name:
        raise DamagedCheckpoint(f"{folder} was renamed; it was written as {content['name']}")
    return content


def verify(folder: epath.Path, items: Iterable[str] | None = None, *, part: int = 0, num_parts: int = 1) -> None:
    """Compare a folder's files with its manifest.

    items: names of subfolders, which alone are read, besides files outside of subfolders; None reads all.
    part, num_parts: divides the files among processes; a part reads every ``num_parts``-th of them.
    Raises ``FileNotFoundError`` where the folder has no manifest, ``DamagedCheckpoint`` at the first difference.
    """
    files = read_manifest(folder)["files"]
    for name in sorted(set(_file_names(folder)) - files.keys()):
        if items is None or name.split("/")[0] in items:
            raise DamagedCheckpoint(f"{folder / name} was added after the checkpoint was written")
    names = [name for name in sorted(files) if items is None or "/" not in name or name.split("/")[0] in items]
    names = names[part::num_parts]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for name, actual in zip(names, pool.map(lambda name: _size_and_digest(folder / name), names)):
            if actual is None:
                raise DamagedCheckpoint(f"{folder / name} is missing")
            if actual != files[name]:
                sizes = (
                    f"{actual[0]} bytes instead of {files[name][0]}" if actual[0] != files[name][0] else "other bytes"
                )
                raise DamagedCheckpoint(f"{folder / name} is damaged (it has {sizes})")


def _file_names(folder: epath.Path, prefix: str = "") -> list[str]:
    names = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            names += _file_names(path, f"{prefix}{path.name}/")
        elif path.name not in NOT_LISTED:
            names.append(prefix + path.name)
    return names


def _size_and_digest(path: epath.Path) -> list[Any] | None:
    """[bytes, SHA-256] of a file, None where there is none."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        return None
    return [size, digest.hexdigest()]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
