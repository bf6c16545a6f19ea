"""The reader's templates of the shapes, computed from outlines as exact areas and independent of the renderer.

The fraction of a pixel that a shape covers is the shape's area inside a small box, and with

    S(x, y) = area of the unit shape left of x and above y,                            (1)

it is a difference of four values of S, for any centre and radius:

    (S(x1, y1) - S(x0, y1) - S(x1, y0) + S(x0, y0)) * radius^2.                        (2)

S is tabulated once per shape by scanlines: the part of a scanline inside the outline is a few spans, whose length left
of every x is simple arithmetic, and scanlines add up in y. A blurred shape is the sharp one multiplied by a banded
Gaussian matrix on both sides.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from jdiff.data.shapes.world import SHAPES

BLUR_SIGMA = 1.1  # pixels, of a "blurry" picture

REACH = 1.3  # half the side of the tabulated square, in radii
STEPS = 80  # nodes of the table per radius
LINES = 8  # scanlines per step


def _points(*polar: tuple[float, float]) -> np.ndarray:
    """Corners from (radius, degrees clockwise from the top), as x and y downwards."""
    radius, degrees = np.array(polar).T
    return np.stack([radius * np.sin(np.deg2rad(degrees)), -radius * np.cos(np.deg2rad(degrees))], axis=-1)


def _round(radius: float) -> np.ndarray:
    """A circle as a polygon of 360 corners, enlarged to have the circle's area."""
    corners = 360
    outward = np.sqrt(2 * np.pi / corners / np.sin(2 * np.pi / corners))
    return _points(*[(radius * outward, 360 * i / corners) for i in range(corners)])


ARM, END = 0.36, 1.05
HALF_CROSS = np.array([(-ARM, -END), (ARM, -END), (ARM, -ARM), (END, -ARM), (END, ARM), (ARM, ARM)])
OUTLINES = {
    "circle": [_round(1.0)],
    "square": [np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])],
    "triangle": [_points((1.25, 0), (1.25, 120), (1.25, 240))],
    "star": [_points(*[((1.2, 0.6)[i % 2], 36 * i) for i in range(10)])],
    "cross": [np.concatenate([HALF_CROSS, -HALF_CROSS])],
    "ring": [_round(1.1), _round(0.55)],
}


def areas() -> np.ndarray:
    """(6,) areas of the shapes of radius 1, in the order of SHAPES."""
    return _tables()[:, -1, -1].copy()


def templates(shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, blurry: np.ndarray, side: int):
    """Coverage maps of many shapes at once.

    shape: (n,) positions in SHAPES.   x, y, radius: (n,) centres and radii in pixels.
    blurry: (n,) booleans.   side: pixels along each edge of the maps.
    Returns coverage: (n, side, side) in [0, 1].
    """
    edges = np.arange(side + 1)
    column, u = _nodes((edges - x[:, None]) / radius[:, None])
    row, v = _nodes((edges - y[:, None]) / radius[:, None])
    tables = _tables()
    width = tables.shape[-1]
    flat = tables.reshape(-1)
    corner = (shape[:, None] * width + row)[:, :, None] * width + column[:, None, :]
    u, v = u[:, None, :], v[:, :, None]
    upper = flat[corner] * (1 - u) + flat[corner + 1] * u
    lower = flat[corner + width] * (1 - u) + flat[corner + width + 1] * u
    area = upper * (1 - v) + lower * v
    coverage = np.diff(np.diff(area, axis=1), axis=2) * (radius**2)[:, None, None]
    blur = _blur_matrix(side)
    coverage[blurry] = blur @ coverage[blurry] @ blur.T
    return coverage


def _nodes(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table node before each offset (in radii), and how far beyond it the offset lies."""
    last = 2 * REACH * STEPS
    position = np.clip((offsets + REACH) * STEPS, 0, last - 1e-6)
    node = position.astype(np.intp)
    return node, position - node


@cache
def _tables() -> np.ndarray:
    """(6, nodes, nodes) of eq. 1, rows by y and columns by x."""
    return np.stack([_table(OUTLINES[shape]) for shape in SHAPES])


def _table(outlines: list[np.ndarray]) -> np.ndarray:
    count = round(2 * REACH * STEPS)
    nodes = np.linspace(-REACH, REACH, count + 1)
    lines = -REACH + (np.arange(count * LINES) + 0.5) / (STEPS * LINES)
    crossings = np.sort(np.concatenate([_crossings(outline, lines) for outline in outlines]), axis=0)
    left_of = np.zeros((len(lines), len(nodes)))
    for i, crossing in enumerate(crossings[crossings.min(axis=1) < REACH]):
        left_of += (-1) ** i * np.maximum(
            nodes - crossing[:, None], 0.0
        )  # even crossings enter the shape, odd ones leave it
    steps = left_of.reshape(count, LINES, -1).sum(1) / (STEPS * LINES)
    return np.concatenate([np.zeros((1, len(nodes))), np.cumsum(steps, axis=0)])


def _crossings(outline: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """(corners, lines): the x at which each edge crosses each line; REACH if it does not."""
    (x0, y0), (x1, y1) = outline.T[..., None], np.roll(outline, -1, axis=0).T[..., None]
    crosses = (y0 <= lines) != (y1 <= lines)
    slope = (x1 - x0) / np.where(crosses, y1 - y0, 1.0)
    return np.where(crosses, x0 + slope * (lines - y0), REACH)


@cache
def _blur_matrix(side: int) -> np.ndarray:
    """(side, side) Gaussian weights of every pixel on every other; rows sum to one away from the edge."""
    distance = np.arange(side)[:, None] - np.arange(side)
    reach = np.arange(-side, side + 1)
    return np.exp(-0.5 * (distance / BLUR_SIGMA) ** 2) / np.exp(-0.5 * (reach / BLUR_SIGMA) ** 2).sum()
