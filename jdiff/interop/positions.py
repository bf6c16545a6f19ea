"""Position embeddings of a vision tower at another number of patches, as each family of weights does it."""

from __future__ import annotations

import math

import numpy as np


def resize(positions: np.ndarray, rows: int, *, first: int, antialias: bool) -> np.ndarray:
    """Positions of a square of patches, resampled to another square by cubic convolution [keys].

    positions: (first + side**2, width).   rows: how many there are to be.   first: rows before the patches, kept.
    antialias: open_clip's way, which widens the kernel where there are fewer patches than before, and drops what
        lies outside; without it Hugging Face's, with PyTorch's sharper kernel, and edges repeated.
    Returns (rows, width).
    """
    before, after = math.isqrt(len(positions) - first), math.isqrt(rows - first)
    if after**2 + first != rows:
        raise ValueError(f"{rows - first} patches are no square")
    weights = (_antialiased if antialias else _plain)(before, after)
    grid = positions[first:].reshape(before, before, -1)
    grid = np.einsum("ia,jb,abw->ijw", weights, weights, grid.astype(np.float64))
    return np.concatenate([positions[:first], grid.reshape(after * after, -1)]).astype(positions.dtype)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel [keys eq. 4]; a: its slope at 1."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _centres(before: int, after: int) -> np.ndarray:
    """Where the middle of each new cell lies among the old ones."""
    return (np.arange(after) + 0.5) * before / after - 0.5


def _antialiased(before: int, after: int) -> np.ndarray:
    """(after, before) weights, each row of sum 1."""
    stretch = max(before / after, 1.0)
    weights = _cubic((_centres(before, after)[:, None] - np.arange(before)) / stretch, -0.5)
    return weights / weights.sum(1, keepdims=True)


def _plain(before: int, after: int) -> np.ndarray:
    """(after, before) weights; what lies beyond an edge counts for the edge."""
    weights = np.zeros((after, before))
    for row, centre in enumerate(_centres(before, after)):
        for cell in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[row, np.clip(cell, 0, before - 1)] += _cubic(np.asarray(centre - cell), -0.75)
    return weights
