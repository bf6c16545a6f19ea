"""Draw a scene: where its things go, then what each pixel sees of them.

Lengths are in units of a 32-pixel picture, x to the right and y down, and scale with the
size asked for. Every thing is drawn from its exact inside-test, sampled on a fine grid over its own
bounding box only; things never touch, so their coverages simply add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from jdiff.data.shapes.world import COLOURS, PLACES, Scene, Thing

UNITS = 32.0
MARGIN = 1.0  # between any outline and the edge of the picture
GAP = 3.0  # between any two bounding boxes, enough for blurred things to stay apart
BLUR_SIGMA = 1.1
SAMPLES = 8  # per pixel and axis

RADII = {"small": (3.1, 3.7), "large": (5.2, 5.9)}
BANDS = {
    "small": ((6.0, 8.5), (14.5, 17.5), (23.5, 26.0)),
    "large": ((7.4, 8.6), (14.8, 17.2), (23.4, 24.6)),
}
RELATION_DRIFT = 3.5  # the most that a pair is off along the axis its relation does not speak of


def circle(x, y):
    return x * x + y * y < 1.0


def square(x, y):
    return np.maximum(abs(x), abs(y)) < 0.9


def triangle(x, y):
    """Circumradius 1.25: the three sides lie at half of that from the centre."""
    return np.maximum(y, abs(x) * math.sin(math.pi / 3) - y * 0.5) < 0.625


def star(x, y):
    """Five points at radius 1.2, five dents at 0.6: fold into one tenth, then one straight edge."""
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + tenth) % (2 * tenth) - tenth)
    across, along = np.hypot(x, y) * np.array((np.sin(angle), np.cos(angle)))
    dent_x, dent_y = 0.6 * math.sin(tenth), 0.6 * math.cos(tenth)
    return across * (1.2 - dent_y) < dent_x * (1.2 - along)


def cross(x, y):
    x, y = abs(x), abs(y)
    return (np.minimum(x, y) < 0.36) & (np.maximum(x, y) < 1.05)


def ring(x, y):
    distance = x * x + y * y
    return (distance < 1.1**2) & (distance > 0.55**2)


INSIDE = {"circle": circle, "square": square, "triangle": triangle, "star": star, "cross": cross, "ring": ring}

# How far each shape of reference radius 1 reaches from its centre: left and right, up, down.
REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.9, 0.9, 0.9),
    "triangle": (1.25 * math.cos(math.pi / 6), 1.25, 0.625),
    "star": (1.2 * math.cos(math.pi / 10), 1.2, 1.2 * math.cos(math.pi / 5)),
    "cross": (1.05, 1.05, 1.05),
    "ring": (1.1, 1.1, 1.1),
}


@dataclass(frozen=True)
class Placed:
    """A thing with its centre and reference radius, in 32-pixel units."""

    thing: Thing
    x: float
    y: float
    radius: float


def render(scene: Scene, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """One picture of a scene, in one of the many places and sizes that its words allow.

    Returns image: (size, size, 3) uint8 on a white background.
    """
    return draw(arrange(scene, rng), blurry=scene.blurry, size=size)


def arrange(scene: Scene, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Draw the numbers that the words leave open: radii and centres, never touching, wholly inside."""
    radii = [float(rng.uniform(*RADII[thing.size])) for thing in scene.things]
    boxes = [
        [radius * reach for reach in REACH[thing.shape]] for thing, radius in zip(scene.things, radii, strict=True)
    ]
    if scene.kind == "one":
        centres = [_place_one(scene, boxes[0], rng)]
    elif scene.kind == "relation":
        centres = _place_pair(scene.relation, boxes, rng)
    else:
        centres = _place_many(boxes, rng)
    return tuple(Placed(*one) for one in zip(scene.things, *zip(*centres, strict=True), radii, strict=True))


def draw(placed: tuple[Placed, ...], *, blurry: bool, size: int) -> np.ndarray:
    """(size, size, 3) uint8 picture of things that do not touch, on white."""
    scale = size / UNITS
    image = np.full((size, size, 3), 255.0)
    for one in placed:
        _blend(image, one.thing, one.radius * scale, (one.x * scale, one.y * scale))
    if blurry:
        image = ndimage.gaussian_filter(image, (BLUR_SIGMA * scale, BLUR_SIGMA * scale, 0), mode="nearest")
    return np.rint(image).astype(np.uint8)


def _blend(image: np.ndarray, thing: Thing, radius: float, centre: tuple[float, float]) -> None:
    """Blend one thing into ``image`` in place; lengths are in pixels."""
    sideways, up, down = (radius * reach for reach in REACH[thing.shape])
    left, right = math.floor(centre[0] - sideways), math.ceil(centre[0] + sideways)
    top, bottom = math.floor(centre[1] - up), math.ceil(centre[1] + down)
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES
    x = ((np.arange(left, right)[:, None] + offsets).reshape(1, -1) - centre[0]) / radius
    y = ((np.arange(top, bottom)[:, None] + offsets).reshape(-1, 1) - centre[1]) / radius
    inside = INSIDE[thing.shape](x, y)
    coverage = inside.reshape(bottom - top, SAMPLES, right - left, SAMPLES).mean((1, 3))[..., None]
    patch = image[top:bottom, left:right]
    patch += coverage * (np.array(COLOURS[thing.colour]) - patch)


def _place_one(scene: Scene, box, rng) -> tuple[float, float]:
    row, column = divmod(PLACES.index(scene.place), 3)
    bands = BANDS[scene.things[0].size]
    return _within(bands[column], box[0], box[0], rng), _within(bands[row], box[1], box[2], rng)


def _place_pair(relation: str, boxes, rng) -> list[tuple[float, float]]:
    """Spread the pair along the relation's axis; along the other one they keep nearly level."""
    along = 0 if relation == "left of" else 1
    first, second = _spread([_extent(box, along) for box in boxes], rng)
    low, high = _room(*_extent(boxes[1], 1 - along))
    level = _within((low - RELATION_DRIFT, high + RELATION_DRIFT), *_extent(boxes[0], 1 - along), rng)
    beside = _within((level - RELATION_DRIFT, level + RELATION_DRIFT), *_extent(boxes[1], 1 - along), rng)
    centres = [(first, level), (second, beside)]
    return centres if along == 0 else [(x, y) for y, x in centres]


def _place_many(boxes, rng) -> list[tuple[float, float]]:
    """Lanes across the picture, one or more things in each: no two boxes can meet, so no draw is ever thrown away."""
    along = int(rng.integers(2))
    lane = _lane(boxes, along)
    ways = {2: ((1, 1),), 3: ((2, 1), (1, 2), (1, 1, 1))}[len(boxes)]
    ways = [counts for counts in ways if _slack([lane] * len(counts)) >= 0]
    counts = ways[int(rng.integers(len(ways)))]
    centres = []
    for middle, count in zip(_spread([lane] * len(counts), rng), counts, strict=True):
        members = boxes[len(centres) : len(centres) + count]
        for across in _spread([_extent(box, 1 - along) for box in members], rng):
            centres.append((middle, across) if along == 0 else (across, middle))
    return centres


def _lane(boxes, axis: int) -> tuple[float, float]:
    """The room before and after its middle line that a lane needs, whichever things it holds."""
    extents = [_extent(box, axis) for box in boxes]
    return max(before for before, _ in extents), max(after for _, after in extents)


def _extent(box, axis: int) -> tuple[float, float]:
    """How far a box reaches before and after its centre along x (0) or y (1)."""
    return (box[0], box[0]) if axis == 0 else (box[1], box[2])


def _slack(extents) -> float:
    """The room along an axis that boxes in a row leave unused."""
    return UNITS - 2 * MARGIN - GAP * (len(extents) - 1) - sum(before + after for before, after in extents)


def _spread(extents, rng) -> list[float]:
    """Centres of boxes in a row, their order kept, the unused room shared out at random."""
    cuts = np.sort(rng.uniform(0, _slack(extents), len(extents)))
    centres, edge = [], MARGIN
    for cut, (before, after) in zip(cuts, extents, strict=True):
        centres.append(float(edge + cut + before))
        edge += before + after + GAP
    return centres


def _within(band, before: float, after: float, rng) -> float:
    """A centre in a band that keeps the whole box inside the margin."""
    low, high = _room(before, after)
    return float(rng.uniform(max(band[0], low), min(band[1], high)))


def _room(before: float, after: float) -> tuple[float, float]:
    """The first and last centre that keep a box inside the margin."""
    return MARGIN + before, UNITS - MARGIN - after
