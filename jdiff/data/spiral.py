"""A spiral in the plane: a two-dimensional data set, on which every sampling step can be plotted."""

from __future__ import annotations

import numpy as np


def spiral_points(count: int = 2000, *, turns: float = 2.0, inner: float = 0.15) -> np.ndarray:
    """Points evenly spaced along a spiral, minus their mean. Returns (count, 2) float32.

    turns: revolutions about the centre.   inner: the smallest radius; the largest is 1.
    """
    dense = np.linspace(0, 1, 20 * count)
    curve = _curve(dense, turns, inner)
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1)))
    positions = np.interp((np.arange(count) + 0.5) / count * length[-1], length, dense)
    points = _curve(positions, turns, inner)
    return (points - points.mean(0)).astype(np.float32)


def _curve(share: np.ndarray, turns: float, inner: float) -> np.ndarray:
    radius, angle = inner + (1 - inner) * share, 2 * np.pi * turns * share
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance from each of ``points`` (n, 2) to the nearest of ``others`` (m, 2). Returns (n,)."""
    return np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1)
