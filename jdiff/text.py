"""Text that people wrote: how it is read from a file, split into lines, and cleaned, for captions as for prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from etils import epath

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class NotText(ValueError):
    """A file's bytes are not text in UTF-8 or UTF-16; the message is one sentence."""


def decode_text(data: bytes, name: str = "The text") -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with its mark.

    Other encodings are not guessed, since a wrong guess makes other letters of the same bytes.   name: for the error.
    Raises ``NotText``.
    """
    try:
        text = data.decode("utf-16" if data.startswith(UTF_16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(
            f"{name} is neither UTF-8 nor UTF-16: byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise NotText(f"{name} contains NUL bytes, as binary data or UTF-16 without a mark does; save it as UTF-8")
    return text


def read_text(path: epath.PathLike) -> str:
    """The text of a file, as ``decode_text``. Raises ``NotText``, which names the file."""
    return decode_text(epath.Path(path).read_bytes(), str(path))


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end at CR, LF or CRLF.

    ``str.splitlines`` also cuts at U+2028, U+0085 and other separators, which titles copied from web pages contain.
    """
    lines = re.split(r"\r\n|\r|\n", text)
    return lines[:-1] if lines[-1] == "" else lines


def read_lines(path: epath.PathLike) -> list[str]:
    """The cleaned lines of a file that are not empty. Raises ``NotText``, which names the file."""
    return [line for line in map(clean_text, split_lines(read_text(path))) if line]


def well_formed(text: str) -> str:
    """The text without lone surrogates, which are halves of characters."""
    return text.encode("utf-8", "ignore").decode()


def clean_text(text: str) -> str:
    """The text as captions and prompts are encoded: well-formed, words separated by single spaces.

    No-break spaces, tabs, line ends and other white space are spaces here.
    """
    return " ".join(well_formed(text).split())


def clean_captions(texts: Iterable[str]) -> tuple[str, ...]:
    """Cleaned captions in order, without empty ones and duplicates."""
    return tuple(dict.fromkeys(caption for text in texts if (caption := clean_text(text))))
