"""Draw a scene: place its things, then compute each pixel's coverage by them.

Lengths are in units of a 32-pixel picture, x to the right and y down, and scale with the picture's size. Every thing is
drawn from its exact inside test, sampled on a fine grid over its bounding box. Things never touch, so their coverages
simply add up.
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
RELATION_DRIFT = 3.5  # the largest offset of a pair along the axis that is not the relation's


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
    distance, height = np.hypot(x, y) * np.array((np.sin(angle), np.cos(angle)))
    dent_x, dent_y = 0.6 * math.sin(tenth), 0.6 * math.cos(tenth)
    return distance * (1.2 - dent_y) < dent_x * (1.2 - height)


def cross(x, y):
    x, y = abs(x), abs(y)
    return (np.minimum(x, y) < 0.36) & (np.maximum(x, y) < 1.05)


def ring(x, y):
    distance = x * x + y * y
    return (distance < 1.1**2) & (distance > 0.55**2)


INSIDE_TESTS = {"circle": circle, "square": square, "triangle": triangle, "star": star, "cross": cross, "ring": ring}

# The extent of each shape of reference radius 1 from its centre: left and right, up, down.
REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.9, 0.9, 0.9),
    "triangle": (1.25 * math.cos(math.pi / 6), 1.25, 0.625),
    "star": (1.2 * math.cos(math.pi / 10), 1.2, 1.2 * math.cos(math.pi / 5)),
    "cross": (1.05, 1.05, 1.05),
    "ring": (1.1, 1.1, 1.1),
}


@dataclass(frozen=True)
class Placement:
    """A thing with its centre and reference radius, in 32-pixel units."""

    thing: Thing
    x: float
    y: float
    radius: float


def render(scene: Scene, rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """One picture of a scene, with random positions and sizes within what the scene specifies.

    Returns image: (size, size, 3) uint8 on a white background.
    """
    return draw_scene(arrange(scene, rng), blurry=scene.blurry, size=size)


def arrange(scene: Scene, rng: np.random.Generator) -> tuple[Placement, ...]:
    """Draw random radii and centres for a scene's things, so that they do not touch and are inside the picture."""
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
    return tuple(Placement(*values) for values in zip(scene.things, *zip(*centres, strict=True), radii, strict=True))


def draw_scene(placements: tuple[Placement, ...], *, blurry: bool, size: int) -> np.ndarray:
    """(size, size, 3) uint8 picture of things that do not touch, on white."""
    scale = size / UNITS
    image = np.full((size, size, 3), 255.0)
    for placement in placements:
        _blend(image, placement.thing, placement.radius * scale, (placement.x * scale, placement.y * scale))
    if blurry:
        image = ndimage.gaussian_filter(image, (BLUR_SIGMA * scale, BLUR_SIGMA * scale, 0), mode="nearest")
    return np.rint(image).astype(np.uint8)


def _blend(image: np.ndarray, thing: Thing, radius: float, centre: tuple[float, float]) -> None:
    """Blend one thing into ``image`` in place; lengths are in pixels."""
    reach_x, reach_up, reach_down = (radius * reach for reach in REACH[thing.shape])
    x0, x1 = math.floor(centre[0] - reach_x), math.ceil(centre[0] + reach_x)
    y0, y1 = math.floor(centre[1] - reach_up), math.ceil(centre[1] + reach_down)
    offsets = (np.arange(SAMPLES) + 0.5) / SAMPLES
    x = ((np.arange(x0, x1)[:, None] + offsets).reshape(1, -1) - centre[0]) / radius
    y = ((np.arange(y0, y1)[:, None] + offsets).reshape(-1, 1) - centre[1]) / radius
    hits = INSIDE_TESTS[thing.shape](x, y)
    coverage = hits.reshape(y1 - y0, SAMPLES, x1 - x0, SAMPLES).mean((1, 3))[..., None]
    patch = image[y0:y1, x0:x1]
    patch += coverage * (np.array(COLOURS[thing.colour]) - patch)


def _place_one(scene: Scene, box, rng) -> tuple[float, float]:
    row, column = divmod(PLACES.index(scene.place), 3)
    bands = BANDS[scene.things[0].size]
    return _draw_centre(bands[column], box[0], box[0], rng), _draw_centre(bands[row], box[1], box[2], rng)


def _place_pair(relation: str, boxes, rng) -> list[tuple[float, float]]:
    """Spread the pair along the relation's axis, with at most RELATION_DRIFT between them along the other axis."""
    axis = 0 if relation == "left of" else 1
    first, second = _spread([_extent(box, axis) for box in boxes], rng)
    low, high = _room(*_extent(boxes[1], 1 - axis))
    level = _draw_centre((low - RELATION_DRIFT, high + RELATION_DRIFT), *_extent(boxes[0], 1 - axis), rng)
    second_level = _draw_centre((level - RELATION_DRIFT, level + RELATION_DRIFT), *_extent(boxes[1], 1 - axis), rng)
    centres = [(first, level), (second, second_level)]
    return centres if axis == 0 else [(x, y) for y, x in centres]


def _place_many(boxes, rng) -> list[tuple[float, float]]:
    """Lanes across the picture with one or more things in each: boxes cannot overlap, so no draw is ever rejected."""
    axis = int(rng.integers(2))
    lane = _lane(boxes, axis)
    ways = {2: ((1, 1),), 3: ((2, 1), (1, 2), (1, 1, 1))}[len(boxes)]
    ways = [counts for counts in ways if _slack([lane] * len(counts)) >= 0]
    counts = ways[int(rng.integers(len(ways)))]
    centres = []
    for middle, count in zip(_spread([lane] * len(counts), rng), counts, strict=True):
        members = boxes[len(centres) : len(centres) + count]
        for position in _spread([_extent(box, 1 - axis) for box in members], rng):
            centres.append((middle, position) if axis == 0 else (position, middle))
    return centres


def _lane(boxes, axis: int) -> tuple[float, float]:
    """The extent of a lane on both sides of its middle line, enough for any of the boxes."""
    extents = [_extent(box, axis) for box in boxes]
    return max(low for low, _ in extents), max(high for _, high in extents)


def _extent(box, axis: int) -> tuple[float, float]:
    """The extent of a box on both sides of its centre, towards lower and higher coordinates, along x (0) or y (1)."""
    return (box[0], box[0]) if axis == 0 else (box[1], box[2])


def _slack(extents) -> float:
    """The length along an axis that boxes in a row leave free."""
    return UNITS - 2 * MARGIN - GAP * (len(extents) - 1) - sum(low + high for low, high in extents)


def _spread(extents, rng) -> list[float]:
    """Centres of boxes in a row, in their order, with the free length distributed at random."""
    shifts = np.sort(rng.uniform(0, _slack(extents), len(extents)))
    centres, edge = [], MARGIN
    for shift, (low, high) in zip(shifts, extents, strict=True):
        centres.append(float(edge + shift + low))
        edge += low + high + GAP
    return centres


def _draw_centre(band, low: float, high: float, rng) -> float:
    """A random centre in a band that keeps the box inside the margin. low, high: the box's extent."""
    first, last = _room(low, high)
    return float(rng.uniform(max(band[0], first), min(band[1], last)))


def _room(low: float, high: float) -> tuple[float, float]:
    """The first and last centre that keep a box of this extent inside the margin."""
    return MARGIN + low, UNITS - MARGIN - high
