"""Words of unknown origin: bytes to text, and text to captions."""

from __future__ import annotations

from collections.abc import Iterable


def decode_text(data: bytes) -> str:
    """Text of unknown origin: UTF-8, UTF-16 if it says so, else Windows' western letters.   Raises ValueError."""
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise ValueError("The file holds binary data where text was expected, in UTF-8, UTF-16 or Windows-1252.")
    return text


def sentences(lines: Iterable[str]) -> tuple[str, ...]:
    """Captions in their order, each once, with single spaces, no halves of characters, and none of them empty."""
    whole = (line.encode("utf-8", "ignore").decode() for line in lines)
    return tuple(dict.fromkeys(sentence for line in whole if (sentence := " ".join(line.split()))))
