"""Emoji as a source of captioned images, with some (profession, skin tone) pairs held out of training."""

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

    Of each profession one of the five skin tones is in the split "test", for all genders; the other four, and all
    other emoji, are in "train". So a model that draws "woman pilot, dark skin tone" correctly has combined pilots and
    skin tones, because training showed it no pilot of that tone.

    Glyphs with the same pixels (the flags of Norway and Bouvet Island) list each other's keys in
    ``metadata["same_as"]``, so that an evaluation can accept either. A sequence is excluded if the font does not draw
    it as one glyph, or draws it like its first character or like an unknown flag, because its caption would be false.

    image_size: edge of the images in pixels; the glyphs themselves are 136 x 128.
    font: path of the font's file; None asks fontconfig.
    sequences: include flags, families, professions and skin tones; if false, single characters only and no "test".
    """

    image_size: int = 64
    font: epath.PathLike | None = None
    sequences: bool = True
    name: ClassVar[str] = "emoji"
    evaluator: ClassVar[str] = "emoji"  # of evaluation.evaluators

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
                picture = glyphs.draw_glyph(self._font, _text_to_draw(symbol))
                yield Example(
                    key=symbol.key,
                    image=fit(picture, self.image_size, crop="pad"),
                    captions=symbol.captions,
                    metadata=_metadata(symbol, twins),
                )

    def counts(self) -> dict[str, int]:
        """The number of emoji in each group and in each split, and of those that the font does not draw."""
        drawable = [symbol for symbol, _ in self._drawable]
        splits = Counter(split_of(symbol) for symbol in drawable)
        return {
            **Counter(symbol.group for symbol in drawable),
            **{split: splits[split] for split in self.splits()},
            "not drawn": len(self._symbols()) - len(drawable),
        }

    def _symbols(self) -> list[Symbol]:
        return [symbol for symbol in names.symbols() if self.sequences or not symbol.is_sequence]

    @functools.cached_property
    def _font_bytes(self) -> bytes:
        return glyphs.find_font(self.font).read_bytes()

    @functools.cached_property
    def _font(self):
        return glyphs.load_font(self._font_bytes, sequences=self.sequences)

    @functools.cached_property
    def _drawable(self) -> tuple[tuple[Symbol, tuple[str, ...]], ...]:
        """Each symbol that the font draws, with the keys of the others that look the same."""
        pixel_hash = functools.cache(self._pixel_hash)
        hashes = {symbol: pixel_hash(_text_to_draw(symbol)) for symbol in self._symbols()}
        unknown_flag = pixel_hash(glyphs.UNKNOWN_FLAG)
        hashes = {
            symbol: digest
            for symbol, digest in hashes.items()
            if digest is not None
            and not (symbol.is_sequence and digest in (pixel_hash(symbol.characters[0]), unknown_flag))
        }
        keys_by_hash = defaultdict(list)
        for symbol, digest in hashes.items():
            keys_by_hash[digest].append(symbol.key)
        return tuple(
            (symbol, tuple(key for key in keys_by_hash[digest] if key != symbol.key))
            for symbol, digest in hashes.items()
        )

    def _pixel_hash(self, characters: str) -> str | None:
        """A digest of the glyph's pixels; None if the font does not draw it."""
        picture = glyphs.draw_glyph(self._font, characters)
        return None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest()


def split_of(symbol: Symbol) -> str:
    """ "test" for the skin tone that is held out of a profession, one of five, else "train"."""
    if symbol.profession is None or symbol.tone is None:
        return "train"
    digest = hashlib.sha256(symbol.profession.encode()).digest()
    return "test" if symbol.tone == names.TONES[digest[0] % len(names.TONES)] else "train"


def _text_to_draw(symbol: Symbol) -> str:
    """The characters to draw. A single one drops its variation selector, which only raqm's shaping understands."""
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
