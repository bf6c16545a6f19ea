"""Image-text retrieval: recall in both directions [clip sec. 3]."""

from __future__ import annotations

import numpy as np


def recall(
    text: np.ndarray, image: np.ndarray, *, image_index: np.ndarray | None = None, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k: the share of captions whose image is among the k most similar, and of images for one of their captions.

    text: (n, d), image: (m, d) unit vectors.   image_index: (n,) the image of each caption; every image
        occurs. Default: caption i belongs to image i.
    Ties count against: a partner is found only if fewer than k others score as high.
    Returns {"text_to_image@1": ..., "image_to_text@1": ..., ...}.
    """
    image_index = np.arange(len(text)) if image_index is None else image_index
    similarity = text @ image.T
    is_pair = image_index[:, None] == np.arange(len(image))
    partner = similarity[np.arange(len(text)), image_index]
    best = np.max(similarity, axis=0, where=is_pair, initial=-np.inf)
    better_images = np.sum((similarity >= partner[:, None]) & ~is_pair, axis=1)
    better_texts = np.sum((similarity >= best) & ~is_pair, axis=0)
    return {
        f"{way}@{k}": float(np.mean(better < k))
        for k in ks
        for way, better in (("text_to_image", better_images), ("image_to_text", better_texts))
    }


def prefers_correct_caption(image: np.ndarray, correct: np.ndarray, incorrect: np.ndarray) -> np.ndarray:
    """Whether each image is more similar to its correct caption than to the incorrect one; a tie counts as no.

    All (n, d) unit vectors.   Returns (n,) bool.
    """
    return np.sum(image * (correct - incorrect), axis=1) > 0
