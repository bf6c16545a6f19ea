"""A user's folder of captioned images, as a source of examples."""

from __future__ import annotations

import csv
import functools
import hashlib
import itertools
import json
import posixpath
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from etils import epath

from jdiff.data.decoding import MAX_PIXELS, check_fit, decode, fit
from jdiff.data.records import Example, Rejected, check_split, printable, reject
from jdiff.text import clean_captions, decode_text, split_lines

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".ppm", ".pgm")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
MAX_BYTES = 2**28  # of one image file; more is not read into memory


class _File(NamedTuple):
    path: epath.Path
    size: int
    seconds: int  # modification time


class _Row(NamedTuple):
    """A metadata file's entry for an image: its captions, or the reason why it has none."""

    location: str  # FILE:LINE
    captions: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder of images and their captions, in the convention of Hugging Face's ImageFolder.

    Captions are the ``text`` (a sentence, or in JSON a list of them) that a ``metadata.jsonl`` or ``metadata.csv``
    gives a ``file_name`` relative to itself, or else each line of a ``.txt`` file of the image's stem beside it.
    Folders train, test and validation at the top are the splits; without them a hash of each file's
    name assigns ``test_fraction`` of the images to "test", independently of the folder's other files. Names that begin
    with a dot are ignored, and links to other folders are not followed.

    image_size: edge of the examples' images in pixels.   crop: how ``decoding.fit`` makes them square.
    max_pixels: a larger image is rejected before it is decoded.
    """

    path: epath.PathLike
    image_size: int = 64
    crop: str = "center"
    test_fraction: float = 0.05
    max_pixels: int = MAX_PIXELS
    name: ClassVar[str] = "folder"

    def __post_init__(self):
        check_fit(self.image_size, self.crop)
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"config.data.test_fraction is {self.test_fraction}, expected 0 or more, and less than 1.")
        if not epath.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}, which config.data.path names.")
        if not self._images:
            raise ValueError(
                f"There are no images in {self.path}: of its {len(self._files)} files "
                f"none ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        if not any(row.captions for row in self._rows.values()) and not any(map(self._sidecar, self._images)):
            first = next((f" First of {len(self._problems)} problems: {p.key}: {p.reason}" for p in self._problems), "")
            raise ValueError(
                f"There are no captions in {self.path}: expected metadata.jsonl or metadata.csv with file_name and "
                f"text, or a .txt file beside each image.{first}"
            )

    def identity(self) -> dict:
        listing = "\n".join(f"{key}\t{file.size}\t{file.seconds}" for key, file in sorted(self._files.items()))
        contents = b"".join(self._files[key].path.read_bytes() for key in self._metadata_keys)
        return {
            "source": self.name,
            "listing_sha256": hashlib.sha256(printable(listing).encode() + contents).hexdigest(),
            "image_size": self.image_size,
            "crop": self.crop,
            "test_fraction": self.test_fraction,
            "max_pixels": self.max_pixels,
        }

    def splits(self) -> tuple[str, ...]:
        """The splits that have images; a small folder may have no "test"."""
        nonempty = {self._assigned_split(key) for key in self._images}
        return tuple(split for split in ("train", "test", "validation") if split in nonempty)

    def examples(self, split: str) -> Iterator[Example | Rejected]:
        splits = self.splits()
        check_split(split, splits)
        if split == splits[0]:
            yield from self._problems
        for key in sorted({*self._images, *self._rows}):
            assigned_split = self._assigned_split(key)
            if split == (assigned_split if assigned_split in splits else splits[0]):
                yield self._example(key)

    def _example(self, key: str) -> Example | Rejected:
        row, file = self._rows.get(key), self._files.get(key)
        try:
            if file is None:
                raise ValueError(f"There is no such file, but {row.location} lists it.")
            if key != printable(key):
                raise ValueError("The file's name is not Unicode (UTF-8); rename it.")
            if self._split_folders and key.split("/")[0] not in self._split_folders:
                raise ValueError(f"The image is outside the split folders: {', '.join(self._split_folders)}.")
            if row and row.reason:
                raise ValueError(row.reason)
            if file.size > MAX_BYTES:
                raise ValueError(f"The file has {file.size} bytes, more than the {MAX_BYTES} that are read.")
            captions = row.captions if row else self._sidecar_captions(key)
            if not captions:
                raise ValueError("The caption is empty.")
            image = decode(file.path.read_bytes(), max_pixels=self.max_pixels)
            return Example(key, fit(image, self.image_size, crop=self.crop), captions, {"file_name": key})
        except (OSError, ValueError) as error:
            return reject(key, error)

    def _sidecar_captions(self, key: str) -> tuple[str, ...]:
        sidecar = self._sidecar(key)
        if sidecar is None:
            raise ValueError("The image has no caption: no metadata file lists it, and no .txt file is beside it.")
        return clean_captions(split_lines(decode_text(sidecar.path.read_bytes(), sidecar.path.name)))

    def _sidecar(self, key: str) -> _File | None:
        stem = posixpath.splitext(key)[0]
        return self._files.get(stem + ".txt") or self._files.get(stem + ".TXT")

    def _assigned_split(self, key: str) -> str:
        if self._split_folders:
            return self._split_folders.get(key.split("/")[0], "train")
        share = int.from_bytes(hashlib.sha256(printable(key).encode()).digest()[:8], "big") / 2**64
        return "test" if share < self.test_fraction else "train"

    @functools.cached_property
    def _files(self) -> dict[str, _File]:
        """Every file by its name relative to the folder, in NFC (some file systems decompose names)."""
        root, files = epath.Path(self.path), {}
        for path in files_below(root):
            stat = path.stat()
            key = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
            files[key] = _File(path, stat.length, stat.mtime)
        return files

    @functools.cached_property
    def _images(self) -> tuple[str, ...]:
        return tuple(key for key in self._files if key.lower().endswith(IMAGE_SUFFIXES) or key in self._rows)

    @functools.cached_property
    def _split_folders(self) -> dict[str, str]:
        tops = {key.split("/")[0] for key in self._images if "/" in key}
        return {folder: split for folder, split in SPLIT_FOLDERS.items() if folder in tops}

    @functools.cached_property
    def _metadata_keys(self) -> tuple[str, ...]:
        return tuple(sorted(key for key in self._files if posixpath.basename(key) in METADATA_NAMES))

    @functools.cached_property
    def _rows(self) -> dict[str, _Row]:
        return self._metadata[0]

    @functools.cached_property
    def _problems(self) -> list[Rejected]:
        return self._metadata[1]

    @functools.cached_property
    def _metadata(self) -> tuple[dict[str, _Row], list[Rejected]]:
        """The entries of all metadata files by image, and the lines that cannot be used."""
        rows, problems = {}, []
        for metadata in self._metadata_keys:
            folder = posixpath.dirname(metadata)
            try:
                text = decode_text(self._files[metadata].path.read_bytes(), metadata)
            except (OSError, ValueError) as error:
                problems.append(reject(metadata, error))
                continue
            for line, row in _csv_rows(text) if metadata.endswith(".csv") else _json_rows(text):
                location = f"{metadata}:{line}"
                try:
                    key = _image_key(row, folder)
                    if key in rows:
                        raise ValueError(f"{key} is a duplicate: {rows[key].location} already lists it.")
                except ValueError as error:
                    problems.append(reject(location, error))
                    continue
                try:
                    rows[key] = _Row(location, _row_captions(row))
                except ValueError as error:
                    rows[key] = _Row(location, (), f"{location}: {error}")
        return rows, problems


def files_below(root: epath.Path) -> Iterator[epath.Path]:
    """Every file in a folder and its subfolders, except for names that begin with a dot."""
    for folder, folders, names in root.walk():
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield from (
                path for path in (folder / name for name in names if not name.startswith(".")) if path.is_file()
            )


def _image_key(row: dict | str, folder: str) -> str:
    """The path of a metadata row's image, relative to the source's folder.   Raises ValueError."""
    if isinstance(row, str):
        raise ValueError(row)
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The line names no image: expected file_name, found {', '.join(map(str, row)) or 'nothing'}.")
    name = posixpath.normpath(unicodedata.normalize("NFC", name.strip()))
    if name.startswith(("/", "../")) or name in (".", ".."):
        raise ValueError(f"The file_name {name!r} leads out of the folder of its metadata file.")
    return posixpath.join(folder, name)


def _row_captions(row: dict) -> tuple[str, ...]:
    text = row.get("text")
    texts = [text] if isinstance(text, str) else text
    if texts is None:
        raise ValueError(f"There is no caption: expected text, found {', '.join(map(str, row))}.")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"The text is {text!r:.60}, expected a sentence or a list of sentences.")
    return clean_captions(texts)


def _json_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    """Line numbers and rows; a row that is a string is the error message for an invalid line."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                row = f"The line is not JSON: {error}."
            yield line, row if isinstance(row, dict | str) else f"The line is {content!r:.40}, expected a JSON object."


def _csv_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    """As ``_json_rows``. A row that is not valid CSV, such as one with a quote that is never closed, is one row."""
    lines = [line + "\n" for line in split_lines(text)]
    header, start = None, 0
    while start < len(lines):
        cells, num_lines = _csv_row(lines, start)
        if cells and header is None and not isinstance(cells, str):
            header = [cell.strip() for cell in cells]
        elif isinstance(cells, str):
            yield start + num_lines, cells
        elif cells and len(cells) > len(header):
            yield start + num_lines, "The line has more cells than the header."
        elif cells:
            yield start + num_lines, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))]))
        start += num_lines


def _csv_row(lines: list[str], start: int) -> tuple[list[str] | str, int]:
    """The cells of the row that begins at a line, or the reason why it is none, and how many lines it has."""
    reader = csv.reader(itertools.islice(lines, start, None), strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        reason = "a quote that opens here is not closed" if reader.line_num > 1 else error
        return f"The row is not valid CSV: {reason}.", 1
