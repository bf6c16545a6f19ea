"""Read the scene from a picture, or abstain: exact analysis by synthesis, without learning.

1. The paper is the border's median; ink is how much darker a pixel is than the paper.
2. Connected ink is one thing. Its palette colour is the nearest in direction, and its
   coverage map the ink along that direction.
3. For each shape, sharp and blurred, the radius follows from the total coverage in closed form and the
   centre from the centroid; a few Gauss-Newton steps over (x, y, radius, strength) refine both.
4. The best template must fit well and, beyond what the noise on empty paper explains, better than
   any other; strength and colour must be near the palette's; no ink may be left over.
5. Size, place and relation have dead zones between their values.

A picture that fails any of these shows no scene of this world, and the result is None. Lengths are in
units of a 32-pixel picture; larger pictures are first averaged down to that size.
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
MAX_RESIDUAL = 0.25  # darkness by which a 3 x 3 neighbourhood may differ from the templates
FRINGE = 0.06  # darkness of another colour that a 3 x 3 neighbourhood may have
RADII = {"small": (2.85, 4.1), "large": (4.8, 6.4)}
STRENGTH_ERROR = 0.12  # of the palette's
COLOUR_ERROR = 0.16  # per channel
MISFIT = 0.06  # squared residual over squared template
RIVAL = 0.4  # of the error that noise does not explain: how much more any other template must have
UNSURE = 0.1  # of the whole error: the minimum by which any other template's must exceed it
NOISE_GAIN = 2.0  # noise on things over noise on white paper, where it is clipped
UNLAWFUL = 0.8  # how much better a template of a forbidden size or strength may fit
BANDS = ((0.0, 11.0), (12.0, 20.0), (21.0, 32.0))
DOMINANCE = 1.5  # of one offset over the other
SURROUNDINGS = 3.0  # pixels around connected ink that still belong to it
WINDOWS = (16, 24)  # sides of the squares that templates are compared in
REFINEMENTS = 2
NUDGE = 0.15  # pixels, for derivatives by finite differences

_NAMES = tuple(COLOURS)
_DARKNESS = 1.0 - np.array(list(COLOURS.values())) / 255.0
_DIRECTIONS = _DARKNESS / np.linalg.norm(_DARKNESS, axis=1, keepdims=True)
_FULL_INK = float(_DARKNESS.max(1).mean())
_SHAPE = np.repeat(np.arange(len(SHAPES)), 2)  # of every hypothesis: each shape sharp, then blurred
_BLURRY = np.tile([False, True], len(SHAPES))


@dataclass(frozen=True)
class Detection:
    """One thing read from the picture: what and where it is, and the (32, 32, 3) darkness that it explains."""

    thing: Thing
    x: float
    y: float
    blurry: bool
    darkness: np.ndarray


def read_scene(image: np.ndarray) -> Scene | None:
    """The scene that a picture shows, or None if it shows none clearly.

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
    detections = [_identify(darkness, patch, empty) for patch in patches]
    if None in detections:
        return None
    residual = ndimage.uniform_filter(darkness - sum(detection.darkness for detection in detections), (3, 3, 0))
    if np.abs(residual).max() > MAX_RESIDUAL:
        return None
    return _scene(detections)


def _at_reading_size(image: np.ndarray) -> np.ndarray:
    """The picture averaged down to (32, 32, 3) floats in [0, 1]."""
    factor = image.shape[0] // SIDE
    if image.dtype != np.uint8 or image.shape != (SIDE * factor, SIDE * factor, 3) or factor < 1:
        raise ValueError(
            f"the picture has shape {image.shape} and type {image.dtype}, but the reader takes "
            f"(size, size, 3) uint8 with a size that is a multiple of {SIDE}."
        )
    return image.reshape(SIDE, factor, SIDE, factor, 3).mean((1, 3)) / 255.0


def _patches(ink: np.ndarray) -> list[np.ndarray]:
    """(32, 32) masks, one per connected thing: it and its surroundings, at most halfway to the next thing.

    Returns no masks if the picture has too much dirt or too many things.
    """
    labels, count = ndimage.label(ink > INK_THRESHOLD, structure=np.ones((3, 3)))
    amounts = np.bincount(labels.ravel(), weights=ink.ravel(), minlength=count + 1)
    things = [label for label in range(1, count + 1) if amounts[label] >= SPECK]
    if amounts[1:].sum() - amounts[things].sum() > DIRT or len(things) > max(COUNTS):
        return []
    distances = np.stack([ndimage.distance_transform_edt(labels != label) for label in things]) if things else ()
    nearest = np.argmin(distances, axis=0) if things else None
    return [(nearest == i) & (distance <= SURROUNDINGS) for i, distance in enumerate(distances)]


def _identify(darkness: np.ndarray, patch: np.ndarray, empty: np.ndarray) -> Detection | None:
    """Identify the thing inside a mask, or return None if no template or several templates fit.

    darkness: (32, 32, 3).   patch: (32, 32) booleans.   empty: (n, 3) darkness far from all things, which is noise.
    """
    window = _window(patch)
    if window is None:
        return None
    ink, patch = darkness[window], patch[window]
    total = ink[patch].sum(0)
    colour = int(np.argmax(_DIRECTIONS @ total))
    projection = _DARKNESS[colour] / (_DARKNESS[colour] @ _DARKNESS[colour])
    coverage = patch * (ink @ projection)
    maps, parameters = _fit(coverage, patch)
    x, y, radius, strength = parameters.T
    power = (maps**2).sum((1, 2))
    error = ((coverage - patch * strength[:, None, None] * maps) ** 2).sum((1, 2))

    sizes = [_size(value) for value in radius]
    lawful = np.array([size is not None for size in sizes]) & (np.abs(strength - 1.0) <= STRENGTH_ERROR)
    unlawful = error.min(where=~lawful, initial=np.inf)
    error = np.where(lawful, error, np.inf)
    best = int(np.argmin(error))
    rival = np.delete(error, best).min()
    noise = NOISE_GAIN * patch.sum() * np.mean((empty @ projection) ** 2)
    fitted_colour = np.tensordot(maps[best] * patch, ink) / power[best]
    if (
        error[best] > MISFIT * power[best]
        or rival - error[best] < max(RIVAL * (error[best] - noise), UNSURE * error[best])
        or unlawful < UNLAWFUL * error[best]
        or np.abs(fitted_colour - _DARKNESS[colour]).max() > COLOUR_ERROR
        or _fringe(ink * patch[..., None], fitted_colour) > FRINGE
    ):
        return None
    synthesis = np.zeros_like(darkness)
    synthesis[window] = maps[best][..., None] * fitted_colour
    thing = Thing(SHAPES[_SHAPE[best]], _NAMES[colour], sizes[best])
    return Detection(thing, x[best] + window[1].start, y[best] + window[0].start, bool(_BLURRY[best]), synthesis)


def _window(patch: np.ndarray) -> tuple[slice, slice] | None:
    """The smallest square of WINDOWS that contains a mask and is inside the picture; None if there is none."""
    spans = [np.flatnonzero(patch.any(axis)) for axis in (1, 0)]
    fitting = [side for side in WINDOWS if all(span[-1] - span[0] < side for span in spans)]
    if not fitting:
        return None
    side = fitting[0]
    starts = [np.clip((span[0] + span[-1] + 1 - side) // 2, 0, SIDE - side) for span in spans]
    return tuple(slice(int(start), int(start) + side) for start in starts)


def _fit(coverage: np.ndarray, patch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares fit of every hypothesis to a coverage map.

    coverage: (s, s) zero outside ``patch``.   patch: (s, s) booleans.
    Returns maps (12, s, s) and parameters (12, 4): x, y, radius, strength.
    """
    side = len(coverage)
    middles = np.arange(side) + 0.5
    amount = max(coverage.sum(), 1.0)
    x, y = (np.clip(coverage.sum(axis) @ middles / amount, 1.0, side - 1.0) for axis in (0, 1))
    radius = np.sqrt(amount / areas())[_SHAPE]
    parameters = np.stack([np.full_like(radius, x), np.full_like(radius, y), radius, np.ones_like(radius)], axis=-1)
    for _ in range(REFINEMENTS):
        nudged_parameters = parameters[:, None, :3] + np.concatenate([np.zeros((1, 3)), np.eye(3) * NUDGE])
        maps = _maps(nudged_parameters.reshape(-1, 3), side).reshape(len(_SHAPE), 4, side, side) * patch
        strength = parameters[:, 3, None, None]
        derivatives = (maps[:, 1:] - maps[:, :1]) * (strength[:, None] / NUDGE)
        design = np.concatenate([derivatives, maps[:, :1]], axis=1).reshape(len(_SHAPE), 4, -1)
        error = (coverage - strength * maps[:, 0]).reshape(len(_SHAPE), -1, 1)
        normal = design @ design.transpose(0, 2, 1) + np.eye(4) * 1e-3
        step = np.linalg.solve(normal, design @ error)[..., 0]
        parameters = parameters + np.clip(step, -1.0, 1.0)
        parameters[:, 2] = np.clip(parameters[:, 2], 1.5, 8.0)
    return _maps(parameters[:, :3], side), parameters


def _maps(parameters: np.ndarray, side: int) -> np.ndarray:
    """Templates of all hypotheses, each for one or several (x, y, radius)."""
    copies = len(parameters) // len(_SHAPE)
    x, y, radius = parameters.T
    return templates(np.repeat(_SHAPE, copies), x, y, radius, np.repeat(_BLURRY, copies), side)


def _fringe(darkness: np.ndarray, colour: np.ndarray) -> float:
    """The largest darkness of other colours in a 3 x 3 neighbourhood. Wrong edges cause none, a second thing does."""
    parallel = (darkness @ colour)[..., None] * colour / (colour @ colour)
    return float(np.abs(ndimage.uniform_filter(darkness - parallel, (3, 3, 0))).max())


def _scene(detections: list[Detection]) -> Scene | None:
    """The scene that the things form, or None if they form none."""
    blurry = detections[0].blurry
    if any(detection.blurry != blurry for detection in detections):
        return None
    things = tuple(detection.thing for detection in detections)
    if len(detections) == 1:
        row, column = _band(detections[0].y), _band(detections[0].x)
        return None if row is None or column is None else Scene(things, PLACES[3 * row + column], None, blurry)
    if len(set(things)) == 1:
        return Scene(things, None, None, blurry)
    return _relation(*detections) if len(detections) == 2 else None


def _size(radius: float) -> str | None:
    return next((size for size, (low, high) in RADII.items() if low <= radius <= high), None)


def _band(position: float) -> int | None:
    """0, 1 or 2 for low, middle or high; None in between."""
    return next((i for i, (low, high) in enumerate(BANDS) if low <= position <= high), None)


def _relation(first: Detection, second: Detection) -> Scene | None:
    dx, dy = second.x - first.x, second.y - first.y
    if max(abs(dx), abs(dy)) < DOMINANCE * min(abs(dx), abs(dy)):
        return None
    relation, offset = ("left of", dx) if abs(dx) > abs(dy) else ("above", dy)
    things = (first.thing, second.thing) if offset > 0 else (second.thing, first.thing)
    return Scene(things, None, relation, first.blurry)
