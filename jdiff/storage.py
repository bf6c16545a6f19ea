"""Paths on disk and in buckets, where the two differ."""

from __future__ import annotations

from etils import epath


def on_disk(path: epath.PathLike) -> bool:
    """Whether a path is one of files, which can be locked and appended to, and not of objects in a bucket."""
    return "://" not in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path from the root. epath's own would put a bucket beneath the working directory."""
    path = epath.Path(path)
    return path.absolute() if on_disk(path) else path


def append(path: epath.Path, text: str) -> None:
    """Add to a text that is there. Of an object in a bucket that is another one, written whole."""
    if on_disk(path):
        with path.open("a") as file:
            file.write(text)
    else:
        path.write_text(path.read_text() + text)
