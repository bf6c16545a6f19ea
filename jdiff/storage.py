"""Files, on disk and in buckets (gs://): each is written whole or not at all, and damaged ones are named."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import threading
from typing import Any

from etils import epath

PARTIAL = ".partial"  # ends the names of files that are being written


def on_disk(path: epath.PathLike) -> bool:
    """Whether a path is on disk, where files can be locked and appended to, rather than in a bucket."""
    return "://" not in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path. Bucket paths stay unchanged: epath's ``absolute`` would prepend the working directory."""
    path = epath.Path(path)
    return path.absolute() if on_disk(path) else path


def without_glob_characters(path: epath.PathLike) -> epath.Path:
    """An absolute path to the same place without "[", "]", "*", "?" and "\\", for libraries that glob below it.

    It leads through a symbolic link, which lasts as long as this process.
    """
    path = absolute(path)
    special = [i for i, part in enumerate(path.parts) if set(part) & set("[]*?\\")]
    if not special or not on_disk(path):
        return path
    folder = epath.Path(*path.parts[: special[-1] + 1])
    if not folder.exists():
        return path
    link = os.path.join(_folder_of_links().name, hashlib.sha256(str(folder).encode()).hexdigest()[:16])
    if not os.path.islink(link):
        os.symlink(folder, link)
    return epath.Path(link) / path.relative_to(folder)


@functools.cache
def _folder_of_links() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="jdiff-")


def make_output_folder(path: epath.PathLike, flag: str) -> None:
    """Make a folder that output is about to be written into. Raises ``ValueError``, which names the flag."""
    path = epath.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if on_disk(path):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise ValueError(f"{flag} is {path}, which cannot be written to: {error.strerror or error}") from error


class DamagedFile(ValueError):
    """A file of jdiff's own is cut short or changed; the message names it and what to do."""


def write_bytes(path: epath.PathLike, data: bytes) -> None:
    """Write a file whole or not at all: under a temporary name, synced to the disk, then renamed.

    A process that is killed leaves the previous content, and perhaps the temporary file; objects in buckets appear
    whole.
    """
    path = epath.Path(path)
    if not on_disk(path):
        path.write_bytes(data)
        return
    partial = path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: epath.PathLike, text: str) -> None:
    """Write a text file, as ``write_bytes``."""
    write_bytes(path, text.encode())


def write_json(path: epath.PathLike, content: Any) -> None:
    """Write content as JSON, as ``write_bytes``."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def remove_partial_files(folder: epath.PathLike) -> None:
    """Remove what killed processes left of files they were writing in a folder."""
    if on_disk(folder):
        for path in epath.Path(folder).glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def append(path: epath.Path, text: str) -> None:
    """Append text to a file, which need not exist yet, all of it or nothing.

    An object in a bucket is rewritten, since objects cannot be appended to.
    """
    if not on_disk(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with open(path, "ab", buffering=0) as file:
        size, data = file.tell(), text.encode()
        try:
            if file.write(data) != len(data):
                raise OSError(f"{path} cannot be written to its end; is the disk full?")
        except OSError:
            file.truncate(size)
            raise


def read_json(path: epath.PathLike, remedy: str, *keys: str) -> dict[str, Any]:
    """The object in a JSON file.

    remedy: what to do about the file where it is damaged.   keys: that the object must have.
    Raises ``FileNotFoundError``, and ``DamagedFile`` at anything but an object with these keys.
    """
    data = epath.Path(path).read_bytes()
    try:
        content = json.loads(data)
        missing = [key for key in keys if key not in content] if isinstance(content, dict) else list(keys)
        problem = f"it has no {' and '.join(missing)}" if missing else ""
        if not isinstance(content, dict):
            problem = f"it holds a {type(content).__name__}, not an object"
    except (ValueError, RecursionError) as error:
        problem = f"{error}" if data.strip() else "it is empty"
    if problem:
        raise DamagedFile(f"{path} is damaged ({problem}); {remedy}")
    return content


def read_json_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, without lines that are cut short or damaged; [] where there is no file."""
    path = epath.Path(path)
    objects = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            objects.append(content)
    return objects
