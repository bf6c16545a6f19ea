"""Diversity: how different the images of one prompt are."""

from __future__ import annotations

import numpy as np


def pairwise_diversity(first: np.ndarray, second: np.ndarray) -> float:
    """The root mean square difference of two images of each prompt, averaged over prompts.

    first, second: (n, h, w, 3) uint8, of the same prompts from different noise.   Returns 0 (identical) to 1.
    """
    difference = (first.astype(np.float64) - second) / 255
    return float(np.sqrt(np.mean(difference**2, axis=(1, 2, 3))).mean())
