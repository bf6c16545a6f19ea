"""Operations that differ between paths on disk and in buckets (gs://)."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile

from etils import epath


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


def append(path: epath.Path, text: str) -> None:
    """Append text to an existing file. An object in a bucket is rewritten, since objects cannot be appended to."""
    if on_disk(path):
        with path.open("a") as file:
            file.write(text)
    else:
        path.write_text(path.read_text() + text)
