"""The emoji world: a few thousand small pictures whose names are known, drawn from an open font.

names.py   what each emoji is called, and the captions that follow from it
glyphs.py  the Noto Color Emoji font: found, checked, drawn
source.py  ``Emoji``, the source, with (profession, skin tone) pairs held out
"""

from jdiff.data.emoji.names import Symbol, man_woman_pairs, symbols
from jdiff.data.emoji.source import Emoji

__all__ = ["Emoji", "Symbol", "man_woman_pairs", "symbols"]
