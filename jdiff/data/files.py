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
    """A file below a folder, or a folder that is not read. reason: why it may not be read, or ""."""

    path: epath.PathLike
    size: int
    reason: str = ""
    is_folder: bool = False

    def read(self) -> bytes:
        """The file's bytes. Raises ``OSError``, and ``ValueError`` where it may not be read or is too large."""
        if self.reason:
            raise ValueError(self.reason)
        if self.size > MAX_BYTES:
            raise ValueError(f"The file has {self.size} bytes, more than the {MAX_BYTES} that are read.")
        with open(self.path, "rb") if isinstance(self.path, str) else epath.Path(self.path).open("rb") as file:
            return file.read(self.size)


def files_below(root: epath.PathLike) -> dict[str, File]:
    """Every file in a folder and its subfolders, by its path relative to the folder, with ``/`` and in NFC.

    Names that begin with a dot, runs of jdiff and its records are ignored. Of two names that differ in Unicode
    composition alone, the second is in NFD and has a reason. Links to folders are not followed and have a reason, as
    have links to files elsewhere and files that are not regular, such as named pipes.
    """
    files: dict[str, File] = {}
    for name, file in sorted(_local_files(root) if storage.on_disk(root) else _files_in_bucket(root)):
        key = unicodedata.normalize("NFC", name)
        if key in files:
            key = unicodedata.normalize("NFD", name)
            reason = "The folder has another file of this name, in another Unicode composition; rename one."
            file = file._replace(reason=reason)
        files[key] = file
    return files


def _visible_folders(folders: Iterable[str]) -> list[str]:
    return [name for name in folders if not name.startswith(".") and name != RECORDS_FOLDER]


def _local_files(root: epath.PathLike) -> Iterator[tuple[str, File]]:
    """The files in a folder on disk, by their path relative to it."""
    root, real_root = os.fspath(root), os.path.join(os.path.realpath(root), "")
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append):  # which does not follow links to folders
        if set(names) >= RUN_FILES:
            folders[:] = []
            continue
        folders[:] = _visible_folders(folders)
        relative_folder = os.path.relpath(folder, root)
        for name in (*names, *folders):
            path = os.path.join(folder, name)
            if not name.startswith(".") and (file := _local_file(path, real_root)) is not None:
                yield (name if relative_folder == "." else f"{relative_folder}/{name}"), file
    for error in errors:
        reason = f"The folder cannot be read: {error.strerror}."
        yield os.path.relpath(error.filename, root), File(error.filename, 0, reason, is_folder=True)


def _local_file(path: str, real_root: str) -> File | None:
    """A file on disk, or a link; None where it is a folder, or is gone."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(path)
        except OSError:
            return File(path, 0, "It is a link to nowhere.")
        if stat.S_ISDIR(status.st_mode):
            reason = "It is a link to a folder; links are not followed. Copy the folder here."
            return File(path, 0, reason, is_folder=True)
        if not os.path.realpath(path).startswith(real_root):
            return File(path, 0, "It is a link to a file outside of the folder; copy the file here.")
    if stat.S_ISDIR(status.st_mode):
        return None
    return File(path, status.st_size, "" if stat.S_ISREG(status.st_mode) else "It is no regular file.")


def _files_in_bucket(root: epath.PathLike) -> Iterator[tuple[str, File]]:
    """The files in a folder in a bucket, by their path relative to it."""
    for folder, folders, names in epath.Path(root).walk():
        if set(names) >= RUN_FILES:
            folders[:] = []
            continue
        folders[:] = _visible_folders(folders)
        for path in (folder / name for name in names if not name.startswith(".")):
            yield path.relative_to(epath.Path(root)).as_posix(), File(path, path.stat().length)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of a function for items, in their order, by a thread on each core, a few items ahead."""
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
