"""The files of a folder that may be read: regular ones inside it, without what jdiff itself wrote there."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from etils import epath

from jdiff import storage

RECORDS_FOLDER = "captioned_images"  # of `jdiff prepare`, in config.data.directory
RUN_FILES = {"config.json", "tokenizer.json"}  # of every run
MAX_BYTES = 2**28  # of one file; more is not read into memory
Item, Result = TypeVar("Item"), TypeVar("Result")


class File(NamedTuple):
    """A file or linked folder below a folder. reason: why it may not be read, or ""."""

    path: epath.Path
    size: int
    reason: str = ""

    def read(self) -> bytes:
        """The file's bytes. Raises ``OSError``, and ``ValueError`` where it may not be read or is too large."""
        if self.reason:
            raise ValueError(self.reason)
        if self.size > MAX_BYTES:
            raise ValueError(f"The file has {self.size} bytes, more than the {MAX_BYTES} that are read.")
        with self.path.open("rb") as file:
            return file.read(self.size)


def files_below(root: epath.PathLike) -> dict[str, File]:
    """Every file in a folder and its subfolders, by its path relative to the folder, with ``/`` and in NFC.

    Names that begin with a dot, runs of jdiff and its records are ignored. Of two names that differ in Unicode
    composition alone, the second is in NFD and has a reason. Links to folders are not followed and have a reason, as
    have links to files elsewhere and files that are not regular, such as named pipes.
    """
    root = epath.Path(root)
    on_disk = storage.on_disk(root)
    real_root = os.path.realpath(root) if on_disk else ""
    files: dict[str, File] = {}
    for folder, folders, names in root.walk():
        if set(names) >= RUN_FILES:
            folders[:] = []
            continue
        names = [*names, *(name for name in folders if on_disk and os.path.islink(folder / name))]
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or name == RECORDS_FOLDER or (on_disk and os.path.islink(folder / name)))
        )
        for name in sorted(names):
            if not name.startswith("."):
                path = folder / name
                key = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
                file = _local_file(path, real_root) if on_disk else File(path, path.stat().length)
                if file is not None and key in files:
                    reason = "The folder has another file of this name, in another Unicode composition; rename one."
                    key, file = unicodedata.normalize("NFD", key), file._replace(reason=reason)
                if file is not None:
                    files[key] = file
    return files


def _local_file(path: epath.Path, real_root: str) -> File | None:
    """A file on disk; None where it is a link to nowhere."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if os.path.islink(path):
        if stat.S_ISDIR(status.st_mode):
            return File(path, 0, "It is a link to a folder; links are not followed. Copy the folder here.")
        if not os.path.realpath(path).startswith(os.path.join(real_root, "")):
            return File(path, 0, "It is a link to a file outside of the folder; copy the file here.")
    if not stat.S_ISREG(status.st_mode):
        return File(path, 0, "It is no regular file.")
    return File(path, status.st_size)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of a function for items, in their order, by a thread on each core, a few items ahead."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
