"""Emoji as a source of captioned images, with some professions in some skin tones never seen in training."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

from etils import epath

from jdiff.data.decoding import fit
from jdiff.data.emoji import glyphs, names
from jdiff.data.emoji.names import Symbol
from jdiff.data.records import Example


@dataclass(frozen=True)
class Emoji:
    """The glyphs of Noto Color Emoji, captioned with their Unicode names.

    Of each profession one of the five skin tones is "test", for all genders, and the other four are
    "train", along with everything else: a model that draws "woman pilot, dark skin tone" without having
    seen any pilot of that tone has put together what it knows of pilots and of tones.

    Glyphs with the same pixels (the flags of Norway and Bouvet Island) name each other in
    ``metadata["same_as"]``, so that an evaluation can count either as right. A sequence that the font
    does not draw as one glyph, or draws like its first character alone or like a flag of nowhere, is left
    out: its caption would not be true.

    image_size: edge of the images in pixels; the glyphs themselves are 136 x 128.
    font: path of the font's file; None asks fontconfig.
    sequences: with flags, families, professions and skin tones; without, single characters only, and no "test".
    """

    image_size: int = 64
    font: epath.PathLike | None = None
    sequences: bool = True
    name: ClassVar[str] = "emoji"

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"config.data.image_size is {self.image_size}, expected at least 1.")
        _ = self._font

    def identity(self) -> dict:
        return {
            "source": self.name,
            "image_size": self.image_size,
            "sequences": self.sequences,
            "held_out": "one tone of each profession",
            "font_sha256": hashlib.sha256(self._font_bytes).hexdigest(),
            "names": f"emoji {version('emoji')}",
        }

    def splits(self) -> tuple[str, ...]:
        return ("train", "test") if self.sequences else ("train",)

    def examples(self, split: str) -> Iterator[Example]:
        if split not in self.splits():
            raise ValueError(f"The split is {split!r}, expected one of {', '.join(self.splits())}.")
        for symbol, twins in self._drawable:
            if split_of(symbol) == split:
                picture = glyphs.draw(self._font, _shaped(symbol))
                yield Example(
                    key=symbol.key,
                    image=fit(picture, self.image_size, crop="pad"),
                    captions=symbol.captions,
                    metadata=_metadata(symbol, twins),
                )

    def counts(self) -> dict[str, int]:
        """How many emoji there are of each group, and in each split, and how many the font does not draw."""
        drawn = [symbol for symbol, _ in self._drawable]
        splits = Counter(split_of(symbol) for symbol in drawn)
        asked = [symbol for symbol in names.symbols() if self.sequences or not symbol.is_sequence]
        return {
            **Counter(symbol.group for symbol in drawn),
            **{split: splits[split] for split in self.splits()},
            "not drawn": len(asked) - len(drawn),
        }

    @functools.cached_property
    def _font_bytes(self) -> bytes:
        return glyphs.find_font(self.font).read_bytes()

    @functools.cached_property
    def _font(self):
        return glyphs.load_font(self._font_bytes, sequences=self.sequences)

    @functools.cached_property
    def _drawable(self) -> tuple[tuple[Symbol, tuple[str, ...]], ...]:
        """Each symbol that the font draws, with the keys of those that look the same."""
        look = functools.cache(self._look)
        looks = {
            symbol: look(_shaped(symbol)) for symbol in names.symbols() if self.sequences or not symbol.is_sequence
        }
        nowhere = look(glyphs.UNKNOWN_FLAG)
        drawn = {
            symbol: pixels
            for symbol, pixels in looks.items()
            if pixels is not None and not (symbol.is_sequence and pixels in (look(symbol.characters[0]), nowhere))
        }
        alike = defaultdict(list)
        for symbol, pixels in drawn.items():
            alike[pixels].append(symbol.key)
        return tuple(
            (symbol, tuple(key for key in alike[pixels] if key != symbol.key)) for symbol, pixels in drawn.items()
        )

    def _look(self, characters: str) -> str | None:
        picture = glyphs.draw(self._font, characters)
        return None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest()


def split_of(symbol: Symbol) -> str:
    """ "test" for the one tone in five that is held out of each profession, else "train"."""
    if symbol.profession is None or symbol.tone is None:
        return "train"
    digest = hashlib.sha256(symbol.profession.encode()).digest()
    return "test" if symbol.tone == names.TONES[digest[0] % len(names.TONES)] else "train"


def _shaped(symbol: Symbol) -> str:
    """What the font is given: a lone character goes without its "as a picture", which only shaping understands."""
    return symbol.characters if symbol.is_sequence else symbol.characters[0]


def _metadata(symbol: Symbol, twins: tuple[str, ...]) -> dict:
    facts = {
        "characters": symbol.characters,
        "name": symbol.name,
        "group": symbol.group,
        "profession": symbol.profession,
        "gender": symbol.gender,
        "tone": symbol.tone,
        "same_as": list(twins),
    }
    return {fact: value for fact, value in facts.items() if value}
