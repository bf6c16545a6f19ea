"""Read the scene off a picture, or abstain: exact analysis by synthesis, with no learning in it.

1. The paper is the border's median; ink is how much darker a pixel is than the paper.
2. Connected ink is one thing. Its palette colour is the nearest in direction, and its
   coverage map the ink along that direction.
3. For each shape, sharp and blurred, the radius follows from the total coverage in closed form and the
   centre from the centroid; a few Gauss-Newton steps over (x, y, radius, strength) refine both.
4. The best template must fit well and, beyond what the noise on empty paper explains, better than
   any other; strength and colour must be near the palette's; no ink may remain unexplained.
5. Size, place and relation have dead zones between their values.

Whatever fails any of these is no scene of this world, and the answer is None. Lengths are in
units of a 32-pixel picture; larger pictures are averaged down to that first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from jdiff.data.shapes.templates import areas, templates
from jdiff.data.shapes.world import COLOURS, COUNTS, PLACES, SHAPES, Scene, Thing

SIDE = 32
PAPER_FLOOR = 0.92  # darkest channel of an acceptable background
INK_THRESHOLD = 0.3  # of full ink, for what counts as connected
SPECK = 2.0  # pixels of ink below which a connected patch is dirt
DIRT = 4.0  # pixels of ink, all dirt together
UNEXPLAINED = 0.25  # darkness that a 3 x 3 neighbourhood may have beyond or short of the templates
FRINGE = 0.06  # darkness of another colour that a 3 x 3 neighbourhood may have
RADII = {"small": (2.85, 4.1), "large": (4.8, 6.4)}
STRENGTH_ERROR = 0.12  # of the palette's
COLOUR_ERROR = 0.16  # per channel
MISFIT = 0.06  # squared residual over squared template
RIVAL = 0.4  # of the error that noise does not explain: how much more any other template must have
UNSURE = 0.1  # of the whole error: the least that it must have more
NOISE_GAIN = 2.0  # noise on things over noise on white paper, where it is clipped
UNLAWFUL = 0.8  # how much better a template of a forbidden size or strength may fit
BANDS = ((0.0, 11.0), (12.0, 20.0), (21.0, 32.0))
DOMINANCE = 1.5  # of one offset over the other
SURROUNDINGS = 3.0  # pixels around connected ink that still belong to it
WINDOWS = (16, 24)  # sides of the squares that templates are compared in
REFINEMENTS = 2
NUDGE = 0.15  # pixels, for slopes by differences

_NAMES = tuple(COLOURS)
_DARKNESS = 1.0 - np.array(list(COLOURS.values())) / 255.0
_DIRECTIONS = _DARKNESS / np.linalg.norm(_DARKNESS, axis=1, keepdims=True)
_FULL_INK = float(_DARKNESS.max(1).mean())
_SHAPE = np.repeat(np.arange(len(SHAPES)), 2)  # of every hypothesis: each shape sharp, then blurred
_BLURRY = np.tile([False, True], len(SHAPES))


@dataclass(frozen=True)
class Found:
    """One thing read off the picture: what it is, where, and the darkness it accounts for."""

    thing: Thing
    x: float
    y: float
    blurry: bool
    darkness: np.ndarray


def read(image: np.ndarray) -> Scene | None:
    """The scene that a picture shows, or None where it shows none clearly.

    image: (size, size, 3) uint8, size a multiple of 32.
    """
    picture = _at_reading_size(image)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    paper = np.median(border, axis=0)
    if paper.min() < PAPER_FLOOR:
        return None
    darkness = paper - picture
    patches = _patches(darkness.max(-1) / _FULL_INK)
    empty = darkness[~np.any(patches, axis=0)] if patches else ()
    if len(empty) == 0:
        return None
    found = [_identify(darkness, near, empty) for near in patches]
    if None in found:
        return None
    unexplained = ndimage.uniform_filter(darkness - sum(one.darkness for one in found), (3, 3, 0))
    if np.abs(unexplained).max() > UNEXPLAINED:
        return None
    return _scene(found)


def _at_reading_size(image: np.ndarray) -> np.ndarray:
    """(32, 32, 3) floats in [0, 1]: each pixel the mean of the block it stands for."""
    factor = image.shape[0] // SIDE
    if image.dtype != np.uint8 or image.shape != (SIDE * factor, SIDE * factor, 3) or factor < 1:
        raise ValueError(
            f"the picture has shape {image.shape} and type {image.dtype}, but the reader takes "
            f"(size, size, 3) uint8 with a size that is a multiple of {SIDE}."
        )
    return image.reshape(SIDE, factor, SIDE, factor, 3).mean((1, 3)) / 255.0


def _patches(ink: np.ndarray) -> list[np.ndarray]:
    """(32, 32) masks, one per connected thing: it and its surroundings, halfway to the next at most; none if dirty."""
    labels, count = ndimage.label(ink > INK_THRESHOLD, structure=np.ones((3, 3)))
    amounts = np.bincount(labels.ravel(), weights=ink.ravel(), minlength=count + 1)
    things = [label for label in range(1, count + 1) if amounts[label] >= SPECK]
    if amounts[1:].sum() - amounts[things].sum() > DIRT or len(things) > max(COUNTS):
        return []
    outside = np.stack([ndimage.distance_transform_edt(labels != label) for label in things]) if things else ()
    nearest = np.argmin(outside, axis=0) if things else None
    return [(nearest == i) & (away <= SURROUNDINGS) for i, away in enumerate(outside)]


def _identify(darkness: np.ndarray, near: np.ndarray, empty: np.ndarray) -> Found | None:
    """Name the thing inside a mask, or None where no template fits or several do.

    darkness: (32, 32, 3).   near: (32, 32) booleans.   empty: (n, 3) darkness far from all things, which is noise.
    """
    window = _window(near)
    if window is None:
        return None
    seen, near = darkness[window], near[window]
    total = seen[near].sum(0)
    colour = int(np.argmax(_DIRECTIONS @ total))
    projection = _DARKNESS[colour] / (_DARKNESS[colour] @ _DARKNESS[colour])
    coverage = near * (seen @ projection)
    maps, parameters = _fit(coverage, near)
    x, y, radius, strength = parameters.T
    power = (maps**2).sum((1, 2))
    error = ((coverage - near * strength[:, None, None] * maps) ** 2).sum((1, 2))

    sizes = [_size(value) for value in radius]
    lawful = np.array([size is not None for size in sizes]) & (np.abs(strength - 1.0) <= STRENGTH_ERROR)
    unlawful = error.min(where=~lawful, initial=np.inf)
    error = np.where(lawful, error, np.inf)
    best = int(np.argmin(error))
    rival = np.delete(error, best).min()
    noise = NOISE_GAIN * near.sum() * np.mean((empty @ projection) ** 2)
    measured = np.tensordot(maps[best] * near, seen) / power[best]
    if (
        error[best] > MISFIT * power[best]
        or rival - error[best] < max(RIVAL * (error[best] - noise), UNSURE * error[best])
        or unlawful < UNLAWFUL * error[best]
        or np.abs(measured - _DARKNESS[colour]).max() > COLOUR_ERROR
        or _fringe(seen * near[..., None], measured) > FRINGE
    ):
        return None
    explained = np.zeros_like(darkness)
    explained[window] = maps[best][..., None] * measured
    thing = Thing(SHAPES[_SHAPE[best]], _NAMES[colour], sizes[best])
    return Found(thing, x[best] + window[1].start, y[best] + window[0].start, bool(_BLURRY[best]), explained)


def _window(near: np.ndarray) -> tuple[slice, slice] | None:
    """The square of one of WINDOWS that holds a mask and stays inside the picture."""
    spans = [np.flatnonzero(near.any(axis)) for axis in (1, 0)]
    fitting = [side for side in WINDOWS if all(span[-1] - span[0] < side for span in spans)]
    if not fitting:
        return None
    side = fitting[0]
    starts = [np.clip((span[0] + span[-1] + 1 - side) // 2, 0, SIDE - side) for span in spans]
    return tuple(slice(int(start), int(start) + side) for start in starts)


def _fit(coverage: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of every hypothesis against a coverage map.

    coverage: (s, s) zero outside ``near``.   near: (s, s) booleans.
    Returns maps (12, s, s) and parameters (12, 4): x, y, radius, strength.
    """
    side = len(coverage)
    middles = np.arange(side) + 0.5
    amount = max(coverage.sum(), 1.0)
    x, y = (np.clip(coverage.sum(axis) @ middles / amount, 1.0, side - 1.0) for axis in (0, 1))
    radius = np.sqrt(amount / areas())[_SHAPE]
    parameters = np.stack([np.full_like(radius, x), np.full_like(radius, y), radius, np.ones_like(radius)], axis=-1)
    for _ in range(REFINEMENTS):
        moved = parameters[:, None, :3] + np.concatenate([np.zeros((1, 3)), np.eye(3) * NUDGE])
        maps = _maps(moved.reshape(-1, 3), side).reshape(len(_SHAPE), 4, side, side) * near
        strength = parameters[:, 3, None, None]
        slopes = (maps[:, 1:] - maps[:, :1]) * (strength[:, None] / NUDGE)
        design = np.concatenate([slopes, maps[:, :1]], axis=1).reshape(len(_SHAPE), 4, -1)
        error = (coverage - strength * maps[:, 0]).reshape(len(_SHAPE), -1, 1)
        normal = design @ design.transpose(0, 2, 1) + np.eye(4) * 1e-3
        step = np.linalg.solve(normal, design @ error)[..., 0]
        parameters = parameters + np.clip(step, -1.0, 1.0)
        parameters[:, 2] = np.clip(parameters[:, 2], 1.5, 8.0)
    return _maps(parameters[:, :3], side), parameters


def _maps(parameters: np.ndarray, side: int) -> np.ndarray:
    """Templates of all hypotheses, for one or several (x, y, radius) of each."""
    copies = len(parameters) // len(_SHAPE)
    x, y, radius = parameters.T
    return templates(np.repeat(_SHAPE, copies), x, y, radius, np.repeat(_BLURRY, copies), side)


def _fringe(darkness: np.ndarray, colour: np.ndarray) -> float:
    """The most darkness of any other colour in a 3 x 3 neighbourhood: wrong edges leave none, a second thing does."""
    own = (darkness @ colour)[..., None] * colour / (colour @ colour)
    return float(np.abs(ndimage.uniform_filter(darkness - own, (3, 3, 0))).max())


def _scene(found: list[Found]) -> Scene | None:
    """Put the things together into a scene, or None where they make none."""
    blurry = found[0].blurry
    if any(one.blurry != blurry for one in found):
        return None
    things = tuple(one.thing for one in found)
    if len(found) == 1:
        row, column = _band(found[0].y), _band(found[0].x)
        return None if row is None or column is None else Scene(things, PLACES[3 * row + column], None, blurry)
    if len(set(things)) == 1:
        return Scene(things, None, None, blurry)
    return _relation(*found) if len(found) == 2 else None


def _size(radius: float) -> str | None:
    return next((size for size, (low, high) in RADII.items() if low <= radius <= high), None)


def _band(position: float) -> int | None:
    """0, 1 or 2 for low, middle or high; None in between."""
    return next((i for i, (low, high) in enumerate(BANDS) if low <= position <= high), None)


def _relation(first: Found, second: Found) -> Scene | None:
    across, down = second.x - first.x, second.y - first.y
    if max(abs(across), abs(down)) < DOMINANCE * min(abs(across), abs(down)):
        return None
    relation, offset = ("left of", across) if abs(across) > abs(down) else ("above", down)
    things = (first.thing, second.thing) if offset > 0 else (second.thing, first.thing)
    return Scene(things, None, relation, first.blurry)
