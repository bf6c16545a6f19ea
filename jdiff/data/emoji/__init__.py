"""The emoji world: a few thousand small pictures whose names are known, drawn from an open font.

names.py   what each emoji is called, and the captions that follow from it
glyphs.py  the Noto Color Emoji font: finding it, checking it, drawing its glyphs
source.py  ``Emoji``, the data source, which holds out (profession, skin tone) pairs for testing
"""

from jdiff.data.emoji.names import Symbol, man_woman_pairs, symbols
from jdiff.data.emoji.source import Emoji

__all__ = ["Emoji", "Symbol", "man_woman_pairs", "symbols"]
