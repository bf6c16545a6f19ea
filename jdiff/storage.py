"""Operations that differ between paths on disk and in buckets (gs://)."""

from __future__ import annotations

import tempfile

from etils import epath


def on_disk(path: epath.PathLike) -> bool:
    """Whether a path is on disk, where files can be locked and appended to, rather than in a bucket."""
    return "://" not in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path. Bucket paths stay unchanged: epath's ``absolute`` would prepend the working directory."""
    path = epath.Path(path)
    return path.absolute() if on_disk(path) else path


def make_output_folder(path: epath.PathLike, flag: str) -> epath.Path:
    """Make a folder that output is about to be written into. Raises ``ValueError``, which names the flag."""
    path = epath.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if on_disk(path):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        raise ValueError(f"{flag} is {path}, which cannot be written to: {error.strerror or error}") from error
    return path


def append(path: epath.Path, text: str) -> None:
    """Append text to an existing file. An object in a bucket is rewritten, since objects cannot be appended to."""
    if on_disk(path):
        with path.open("a") as file:
            file.write(text)
    else:
        path.write_text(path.read_text() + text)
