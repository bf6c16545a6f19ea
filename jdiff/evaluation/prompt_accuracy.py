"""How often a picture shows what its prompt said, as the shapes world's exact reader sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import sqrt

import numpy as np

from jdiff.data.shapes.reader import read
from jdiff.data.shapes.verdict import agrees
from jdiff.data.shapes.world import Scene


def interval(right: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: honest near 0 and 1, where the usual one is not [wilson]."""
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def verdicts(asked: Sequence[Scene], images: np.ndarray) -> list[dict]:
    """What of each request its picture fulfils. images: (n, h, w, 3) uint8."""
    return [agrees(scene, read(image)) for scene, image in zip(asked, images, strict=True)]


def rate(found: Sequence[bool]) -> dict[str, float]:
    """A share with its interval and count: {"share", "low", "high", "count"}; of nothing, 0 (0 to 1)."""
    right, total = sum(found), len(found)
    low, high = interval(right, total)
    return {"share": right / max(total, 1), "low": low, "high": high, "count": total}


def summary(judged: Sequence[dict]) -> dict[str, dict[str, float]]:
    """The rate of each attribute, {"prompt_accuracy": {"share", ...}, ...}, and of pictures with something left out.

    An attribute that only some requests have (a place, a relation) is counted over those.
    """
    names = list(dict.fromkeys(name for verdict in judged for name in verdict if name != "num_missing"))
    table = {name: rate([bool(verdict[name]) for verdict in judged if name in verdict]) for name in names}
    missing = [verdict["num_missing"] > 0 for verdict in judged if "num_missing" in verdict]
    return table | ({"missing_object_rate": rate(missing)} if missing else {})


def shown(whether: Sequence[Callable[[Scene], bool]], images: np.ndarray) -> dict[str, float]:
    """The rate, among the pictures that can be read, of those whose scene shows what it is asked about."""
    seen = [(shows, read(image)) for shows, image in zip(whether, images, strict=True)]
    return rate([shows(scene) for shows, scene in seen if scene is not None])


def overlap(asked: Iterable[Scene], trained: Iterable[Scene]) -> int:
    """How many requests training showed in any picture, blurred or not."""

    def tuple_of(scene: Scene) -> tuple:
        return scene.things, scene.place, scene.relation

    seen = {tuple_of(scene) for scene in trained}
    return sum(tuple_of(scene) in seen for scene in asked)
