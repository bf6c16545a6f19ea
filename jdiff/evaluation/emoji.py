"""What can be measured on the emoji: men turned into women, and drawings known by their nearest glyph."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from jdiff.contrastive.analogies import Analogy
from jdiff.data.emoji import man_woman_pairs


def analogies(names: Sequence[str]) -> list[Analogy]:
    """ "man cook" - "man" + "woman" = "woman cook", for every such pair among the names."""
    return [Analogy(man, "man", "woman", woman) for man, woman in man_woman_pairs(names)]


def nearest_is_right(drawn: np.ndarray, asked: Sequence[dict], glyphs: Sequence[dict]) -> list[bool]:
    """Whether each drawing is nearer to the glyph it was asked for, in squared difference, than to any other.

    drawn: (n, h, w, 3) uint8.   asked: the n records asked for.   glyphs: all records, those asked for included.
    Glyphs with the same pixels count as one.
    """
    pixels = np.stack([glyph["image"] for glyph in glyphs]).reshape(len(glyphs), -1).astype(np.float32)
    right = []
    for picture, record in zip(drawn, asked, strict=True):
        distance = ((pixels - picture.reshape(1, -1).astype(np.float32)) ** 2).sum(1)
        found = glyphs[int(distance.argmin())]["key"].decode()
        right.append(found in {record["key"].decode(), *json.loads(record["metadata"])["same_as"]})
    return right
