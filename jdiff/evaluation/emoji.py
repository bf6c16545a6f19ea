"""Evaluation on the emoji: analogies from man to woman, and the nearest glyph to a sampled image."""

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


def glyph_verdicts(images: np.ndarray, records: Sequence[dict], glyphs: Sequence[dict]) -> list[dict]:
    """Whether the glyph nearest to each image, in squared difference, is the one that was prompted.

    images: (n, h, w, 3) uint8.   records: of the n prompts.   glyphs: all records, those of the prompts included.
    Returns {"nearest_glyph": bool} and, where the name states them, whether the nearest glyph has the prompted
    "nearest_profession", "nearest_gender" and "nearest_tone". Glyphs with the is_match pixels count as one.
    """
    pixels = np.stack([glyph["image"] for glyph in glyphs]).reshape(len(glyphs), -1).astype(np.float32)
    verdict_list = []
    for image, record in zip(images, records, strict=True):
        distance = ((pixels - image.reshape(1, -1).astype(np.float32)) ** 2).sum(1)
        nearest = glyphs[int(distance.argmin())]
        prompted_parts, nearest_parts = json.loads(record["metadata"]), json.loads(nearest["metadata"])
        is_match = nearest["key"].decode() in {record["key"].decode(), *prompted_parts.get("same_as", ())}
        parts = {
            f"nearest_{part}": is_match or nearest_parts.get(part) == prompted_parts[part]
            for part in PARTS
            if part in prompted_parts
        }
        verdict_list.append({"nearest_glyph": is_match} | parts)
    return verdict_list
