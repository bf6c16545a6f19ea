"""How unlike each other the pictures of one sentence are."""

from __future__ import annotations

import numpy as np


def spread(first: np.ndarray, second: np.ndarray) -> float:
    """The root mean square difference of two pictures of each sentence, on the mean over sentences.

    first, second: (n, h, w, 3) uint8, of the same sentences from other noise.   Returns 0, all alike, to 1.
    """
    apart = (first.astype(np.float64) - second) / 255
    return float(np.sqrt(np.mean(apart**2, axis=(1, 2, 3))).mean())
