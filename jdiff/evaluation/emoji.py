"""What can be measured on the emoji: men turned into women, and drawings known by their nearest glyph."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from jdiff.contrastive.analogies import Analogy
from jdiff.data.emoji import man_woman_pairs

PARTS = ("profession", "gender", "tone")


def analogies(names: Sequence[str]) -> list[Analogy]:
    """ "man cook" - "man" + "woman" = "woman cook", for every such pair among the names."""
    return [Analogy(man, "man", "woman", woman) for man, woman in man_woman_pairs(names)]


def verdicts(drawn: np.ndarray, asked: Sequence[dict], glyphs: Sequence[dict]) -> list[dict]:
    """Whether the glyph nearest to each drawing, in squared difference, is the one asked for.

    drawn: (n, h, w, 3) uint8.   asked: the n records asked for.   glyphs: all records, those asked for included.
    Returns {"nearest_glyph": bool} and, where the name states them, whether the nearest glyph has the right
    "nearest_profession", "nearest_gender" and "nearest_tone". Glyphs with the same pixels count as one.
    """
    pixels = np.stack([glyph["image"] for glyph in glyphs]).reshape(len(glyphs), -1).astype(np.float32)
    judged = []
    for picture, record in zip(drawn, asked, strict=True):
        distance = ((pixels - picture.reshape(1, -1).astype(np.float32)) ** 2).sum(1)
        nearest = glyphs[int(distance.argmin())]
        wanted, found = json.loads(record["metadata"]), json.loads(nearest["metadata"])
        right = nearest["key"].decode() in {record["key"].decode(), *wanted.get("same_as", ())}
        parts = {f"nearest_{part}": right or found.get(part) == wanted[part] for part in PARTS if part in wanted}
        judged.append({"nearest_glyph": right} | parts)
    return judged
