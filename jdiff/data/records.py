"""Captioned images on disk: the examples that every data source yields, and the records that training reads.

A source (the shapes world, the emoji font, a user's folder, a TFDS set) is any object with the members of ``Source``.
``record_writer`` writes its examples as records; ``Records`` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from jdiff import storage
from jdiff.data.files import RECORDS_FOLDER

VERSION = "1.1.0"  # of the records' format
SPLIT_RULE = 2  # version of the rule by which record_writer assigns splits
COMPLETE = "complete.json"  # what the writer writes last, beside the shards


@dataclass(frozen=True)
class Example:
    """One captioned image on its way to disk.

    image: (size, size, 3) uint8, sRGB, as a viewer would display it.
    captions: one or more true sentences about it; training draws one of them at random.
    metadata: JSON-able facts stored with the record (a scene, code points, a file name).
    digest: SHA-256 of the image's file, in hexadecimal, of a source without splits of its own.
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...]
    metadata: dict = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Rejected:
    """An item that could not become an example, with the reason in one sentence for the user."""

    key: str
    reason: str


def reject(key: str, error: Exception) -> Rejected:
    """A ``Rejected`` item whose reason is the error's message on one line."""
    return Rejected(printable(key), " ".join(printable(str(error)).split()) or f"{type(error).__name__}.")


def printable(text: str) -> str:
    """The text, with lone surrogates (halves of characters) escaped, because UTF-8 files cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


class Source(Protocol):
    """A source of captioned images. ``disable_shuffling`` is optional; true if the order of its examples matters.

    A source whose content is outside of the config, such as a folder, has two more members, so that training needs
    that content no more:

        settings()      what the records are made from, whatever it contains
        file_sizes()    the size of every file that is read, by name

    Where loading an item takes long, ``loaders(split)`` yields functions that load one each, in place of ``examples``;
    the writer calls them in parallel.
    """

    name: str  # a short word, part of the data set's name
    image_size: int

    def identity(self) -> dict[str, Any]:
        """Everything that determines the records, as JSON keeps it; equal identities share files."""
        ...

    def splits(self) -> tuple[str, ...]:
        """The names of the splits; none where the writer is to assign them by ``test_fraction``."""
        ...

    def examples(self, split: str | None) -> Iterator[Example | Rejected]:
        """The items of a split; with None all items, of a source that has no splits."""
        ...


def check_split(split: str | None, splits: tuple[str, ...]) -> None:
    """Check that a source has a split. Raises ValueError."""
    if split not in splits:
        raise ValueError(f"The split is {split!r}, expected one of {', '.join(splits)}.")


class DatasetNotPreparedError(FileNotFoundError):
    """The records that a config names are not on disk, or not all of them."""


class OtherFormatError(DatasetNotPreparedError):
    """The records are of a format that this release does not read."""


class BrokenRecordError(ValueError):
    """A record whose bytes were changed on disk. reason: the kind of error, the same for errors of one kind."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def dataset_name(source: Source) -> str:
    """The name of a source's records, with a digest of everything that determines them."""
    return _name(source, source.identity())


def prepared_name(source: Source, data_dir: epath.PathLike) -> str:
    """The name of the records that were last prepared of a source, whose content need not exist any more.

    Raises ``DatasetNotPreparedError``.
    """
    if not hasattr(source, "settings"):
        return dataset_name(source)
    file = prepared_file(source, data_dir)
    try:
        return json.loads(file.read_text())["name"]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetNotPreparedError(
            f"no prepared data of {source.settings().get('path', source.name)} in {data_dir}; run `jdiff prepare` with "
            "the same config first"
        ) from error


def prepared_file(source: Any, data_dir: epath.PathLike) -> epath.Path:
    """The file that names the records last prepared of a source, and lists the files that they were made from."""
    settings = source.settings()
    if "path" in settings:
        path = settings["path"]
        path = path if _is_relative(path) and _is_relative(data_dir) else str(storage.absolute(path))
        settings["path"] = os.path.normpath(path) if storage.on_disk(path) else path.rstrip("/")
    return epath.Path(data_dir) / RECORDS_FOLDER / f"{_name(source, settings)}_prepared.json"


def changed_files(source: Any, data_dir: epath.PathLike) -> str:
    """How the files of a source differ from those that its records were made from, in words; "" where they do not.

    Compares names and sizes. "" also where the source has no files, or they are gone.
    """
    if not hasattr(source, "file_sizes"):
        return ""
    with contextlib.suppress(OSError, ValueError, KeyError):
        old = json.loads(prepared_file(source, data_dir).read_text())["files"]
        new = source.file_sizes()
        changes = {
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "changed": sorted(key for key in new.keys() & old.keys() if new[key] != old[key]),
        }
        return ", ".join(
            f"{len(keys)} {kind} ({keys[0]}{', ...' * (len(keys) > 1)})" for kind, keys in changes.items() if keys
        )
    return ""


def _name(source: Source, identity: Mapping[str, Any]) -> str:
    text = json.dumps({"source": identity, "image_size": source.image_size}, sort_keys=True)
    return f"{source.name}_{source.image_size}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _is_relative(path: epath.PathLike) -> bool:
    return storage.on_disk(path) and not epath.Path(path).is_absolute()


def records_folder(data_dir: epath.PathLike, name: str) -> epath.Path:
    """Where records lie."""
    return epath.Path(data_dir) / RECORDS_FOLDER / name / VERSION


def what_is_missing(folder: epath.Path) -> str | None:
    """Why records in a folder cannot be used, or None."""
    if not folder.exists():
        return "it does not exist"
    if not (folder / COMPLETE).exists():
        return f"{COMPLETE} is missing"
    try:
        sizes = json.loads((folder / COMPLETE).read_text())["files"]
    except (ValueError, KeyError):
        return f"{COMPLETE} is corrupt"
    for name, size in sizes.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if (folder / name).stat().length != size:
            return f"{name} has {(folder / name).stat().length} of {size} bytes"
    return None


class Records:
    """The records of a data set, on disk.

    name: of the data set.   folder: where they lie.   num_examples: by split.
    """

    def __init__(self, data_dir: epath.PathLike, name: str):
        """Raises ``DatasetNotPreparedError``."""
        self.name, self.data_dir, self.folder = name, data_dir, records_folder(data_dir, name)
        problem = what_is_missing(self.folder)
        versions = sorted(path.name for path in self.folder.parent.glob("*.*.*")) if problem else []
        if versions and VERSION not in versions:
            raise OtherFormatError(
                f"the records at {self.folder.parent} have format version {', '.join(versions)}, but this jdiff reads "
                f"{VERSION}; run `jdiff prepare` again for a new run, or use the release that wrote them"
            )
        if versions:
            raise DatasetNotPreparedError(
                f"the records at {self.folder} are incomplete: {problem}; run `jdiff prepare` again"
            )
        if problem:
            raise DatasetNotPreparedError(
                f"no prepared data at {self.folder}; run `jdiff prepare` with the same config first"
            )
        self._builder = tfds.builder_from_directory(str(self.folder))
        self.num_examples = {name: split.num_examples for name, split in self._builder.info.splits.items()}

    def split(self, name: str) -> Sequence[dict[str, Any]]:
        """The records of a split: {"image" u8 (h,w,3), "captions" list[bytes], "key", "metadata" bytes}.

        Raises ``DatasetNotPreparedError``.
        """
        return self._rows(name)

    def _rows(self, split: str, decoders: Any = None) -> Sequence[dict[str, Any]]:
        if split not in self.num_examples:
            raise DatasetNotPreparedError(f"no split '{split}' at {self.folder}, only {sorted(self.num_examples)}")
        return _Split(self._builder.as_data_source(split=split, decoders=decoders), f"{self.folder}, split '{split}'")

    def captions(self, split: str) -> Iterator[str]:
        """The captions of all records of a split that can be read, without decoding images."""
        rows = self._rows(split, decoders={"image": tfds.decode.SkipDecoding()})
        for i in range(len(rows)):
            with contextlib.suppress(BrokenRecordError):
                yield from (caption.decode() for caption in rows[i]["captions"])


class _Split(Sequence):
    """Records of a split, whose errors name them."""

    def __init__(self, rows: Any, location: str):
        self._rows, self._location = rows, location

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"there is no record {i}, of {len(self)}")
        try:
            return self._rows[i]
        except Exception as error:  # each of its parsers raises its own
            raise BrokenRecordError(
                f"record {i} of {self._location} cannot be read ({type(error).__name__}); delete that folder and run "
                "`jdiff prepare` again",
                type(error).__name__,
            ) from error


def encode_png(image: np.ndarray) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
