"""Bytes of unknown encoding to text, and text to captions."""

from __future__ import annotations

from collections.abc import Iterable


def decode_text(data: bytes) -> str:
    """Decode bytes as UTF-16 if they begin with its byte order mark, else as UTF-8, else as Windows-1252.

    Raises ValueError for binary data.
    """
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise ValueError("The file holds binary data where text was expected, in UTF-8, UTF-16 or Windows-1252.")
    return text


def clean_captions(lines: Iterable[str]) -> tuple[str, ...]:
    """Captions in order, without duplicates, empty ones, repeated spaces and lone surrogates (halves of characters)."""
    valid_lines = (line.encode("utf-8", "ignore").decode() for line in lines)
    return tuple(dict.fromkeys(caption for line in valid_lines if (caption := " ".join(line.split()))))
