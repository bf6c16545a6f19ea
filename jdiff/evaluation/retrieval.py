"""How well captions find their images, and images their captions [clip sec. 3]."""

from __future__ import annotations

import numpy as np


def recall(text: np.ndarray, image: np.ndarray, *, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Share of rows whose partner is among the k of greatest cosine, both ways.

    text, image: (n, d) unit vectors, row i of one belongs to row i of the other.
    Ties count against: a partner is found only if fewer than k others score as high.
    Returns {"text_to_image@1": ..., "image_to_text@1": ..., ...}.
    """
    similarity = text @ image.T
    partner = np.diag(similarity)
    better_images = (similarity >= partner[:, None]).sum(1) - 1
    better_texts = (similarity >= partner[None]).sum(0) - 1
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
