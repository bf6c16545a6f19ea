"""How well captions find their images, and images their captions [clip sec. 3]."""

from __future__ import annotations

import numpy as np


def recall(
    text: np.ndarray, image: np.ndarray, *, of: np.ndarray | None = None, at: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Share of captions whose image is among the k of greatest cosine, and of images one of whose captions is.

    text: (n, d), image: (m, d) unit vectors.   of: (n,) the image each caption belongs to, every image named; row i
    of one belongs to row i of the other if not said.
    Ties count against: a partner is found only if fewer than k others score as high.
    Returns {"text_to_image@1": ..., "image_to_text@1": ..., ...}.
    """
    of = np.arange(len(text)) if of is None else of
    similarity = text @ image.T
    own = of[:, None] == np.arange(len(image))
    partner = similarity[np.arange(len(text)), of]
    best = np.max(similarity, axis=0, where=own, initial=-np.inf)
    better_images = np.sum((similarity >= partner[:, None]) & ~own, axis=1)
    better_texts = np.sum((similarity >= best) & ~own, axis=0)
    return {
        f"{way}@{k}": float(np.mean(better < k))
        for k in at
        for way, better in (("text_to_image", better_images), ("image_to_text", better_texts))
    }


def preferred(image: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Whether each image lies nearer to the right caption than to the wrong one; a tie is no.

    All (n, d) unit vectors.   Returns (n,) bool.
    """
    return np.sum(image * (right - wrong), axis=1) > 0
