"""Position embeddings of a vision tower, resampled to another number of patches as each weight family does it."""

from __future__ import annotations

import math

import numpy as np


def resize(positions: np.ndarray, rows: int, *, num_prefix_tokens: int, antialias: bool) -> np.ndarray:
    """Resample position embeddings of a square of patches to another square by cubic convolution [keys].

    positions: (num_prefix_tokens + side**2, width).   rows: number of positions of the result.
    num_prefix_tokens: positions before those of the patches, such as the class token's; they are kept.
    antialias: True for open_clip's method, which widens the kernel when downsampling and ignores positions beyond the
        edge; False for Hugging Face's, which uses PyTorch's sharper kernel and repeats the edge.
    Returns (rows, width).
    """
    old_side, new_side = math.isqrt(len(positions) - num_prefix_tokens), math.isqrt(rows - num_prefix_tokens)
    if new_side**2 + num_prefix_tokens != rows:
        raise ValueError(f"{rows - num_prefix_tokens} patches do not form a square")
    weights = (_antialias_weights if antialias else _cubic_weights)(old_side, new_side)
    grid = positions[num_prefix_tokens:].reshape(old_side, old_side, -1)
    grid = np.einsum("ia,jb,abw->ijw", weights, weights, grid.astype(np.float64))
    resampled_rows = grid.reshape(new_side * new_side, -1)
    return np.concatenate([positions[:num_prefix_tokens], resampled_rows]).astype(positions.dtype)


def _cubic_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel [keys eq. 4]. a: its slope at 1."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def _centres(old_side: int, new_side: int) -> np.ndarray:
    """The centre of each new cell, in coordinates of the old cells."""
    return (np.arange(new_side) + 0.5) * old_side / new_side - 0.5


def _antialias_weights(old_side: int, new_side: int) -> np.ndarray:
    """(new_side, old_side) weights; each row sums to 1."""
    stretch = max(old_side / new_side, 1.0)
    weights = _cubic_kernel((_centres(old_side, new_side)[:, None] - np.arange(old_side)) / stretch, -0.5)
    return weights / weights.sum(1, keepdims=True)


def _cubic_weights(old_side: int, new_side: int) -> np.ndarray:
    """(new_side, old_side) weights; a position beyond the edge counts as the edge."""
    weights = np.zeros((new_side, old_side))
    for row, centre in enumerate(_centres(old_side, new_side)):
        for cell in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[row, np.clip(cell, 0, old_side - 1)] += _cubic_kernel(np.asarray(centre - cell), -0.75)
    return weights
