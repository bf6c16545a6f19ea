"""Captions beside images: the rows of metadata files, and text files next to the images."""

from __future__ import annotations

import csv
import json
import posixpath
import unicodedata
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

from jdiff.text import clean_captions, split_lines

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SIDECAR_SUFFIXES = (".txt", ".caption")


class Row(NamedTuple):
    """A metadata file's entry for an image: its captions, or the reason why it has none."""

    location: str  # FILE:LINE
    captions: tuple[str, ...]
    reason: str = ""


def metadata_rows(text: str, metadata: str, root: str) -> Iterator[tuple[str, Row] | tuple[None, Row]]:
    """The rows of a metadata file with their image's path relative to ``root``, None where a line names no image.

    metadata: the file's path, relative to the folder ``root``; file names in it are relative to its own folder.
    """
    for line, row in _csv_rows(text) if metadata.endswith(".csv") else _json_rows(text):
        location = f"{metadata}:{line}"
        try:
            key = _image_key(row, posixpath.dirname(metadata), root)
        except ValueError as error:
            yield None, Row(location, (), str(error))
            continue
        try:
            yield key, Row(location, _row_captions(row))
        except ValueError as error:
            yield key, Row(location, (), f"{location}: {error}")


def _image_key(row: dict | str, folder: str, root: str) -> str:
    """The path of a metadata row's image, relative to ``root``.   Raises ValueError."""
    if isinstance(row, str):
        raise ValueError(row)
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The line names no image: expected file_name, found {', '.join(map(str, row)) or 'nothing'}.")
    name = posixpath.normpath(unicodedata.normalize("NFC", name.strip()))
    if name.startswith(f"{root.rstrip('/')}/"):
        return posixpath.relpath(name, root)
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
    for line, content in enumerate(split_lines(text), start=1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                yield line, f"The line is not JSON: {error}."
                continue
            yield line, row if isinstance(row, dict) else f"The line is {content!r:.40}, expected a JSON object."


def _csv_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    """As ``_json_rows``. A row that is not valid CSV, such as one with a quote that is never closed, is one line."""
    lines = [line + "\n" for line in split_lines(text)]
    header: list[str] = []
    start = 0
    while start < len(lines):
        reader = csv.reader((lines[i] for i in range(start, len(lines))), strict=True)
        num_lines = 0  # of valid rows
        try:
            for cells in reader:
                num_lines = reader.line_num
                if not header:
                    header = [cell.strip() for cell in cells]
                elif len(cells) > len(header):
                    yield start + num_lines, "The line has more cells than the header."
                elif cells:
                    yield start + num_lines, dict(zip_longest(header, cells))
            return
        except csv.Error as error:
            reason = "a quote that opens here is not closed" if reader.line_num > num_lines + 1 else error
            start += num_lines + 1  # the rows after it are read as if it were not there
            yield start, f"The row is not valid CSV: {reason}."
