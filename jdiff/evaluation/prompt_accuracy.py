"""Prompt accuracy: how often an image shows what its prompt asks for, by the exact reader of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jdiff.data.shapes.reader import read_scene
from jdiff.data.shapes.verdict import agrees
from jdiff.data.shapes.world import Scene


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a proportion, which is accurate near 0 and 1, too [wilson]."""
    from scipy.stats import binomtest  # takes half a second to import

    if total == 0:
        return 0.0, 1.0
    low, high = binomtest(right, total).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def scene_verdicts(scenes: Sequence[Scene], images: np.ndarray) -> list[dict]:
    """Which attributes of each prompted scene its image shows. images: (n, h, w, 3) uint8."""
    return [agrees(scene, read_scene(image)) for scene, image in zip(scenes, images, strict=True)]


def rate(outcomes: Sequence[bool]) -> dict[str, float]:
    """A proportion with its interval and count: {"share", "low", "high", "count"}; for no outcomes, 0 (0 to 1)."""
    right, total = sum(outcomes), len(outcomes)
    low, high = interval(right, total)
    return {"share": right / max(total, 1), "low": low, "high": high, "count": total}


def summary(verdicts: Sequence[dict]) -> dict[str, dict[str, float]]:
    """The rate of each attribute, {"prompt_accuracy": {"share", ...}, ...}, and the missing_object_rate.

    An attribute that only some prompts have (a place, a relation) is counted over those.
    """
    names = list(dict.fromkeys(name for verdict in verdicts for name in verdict if name != "num_missing"))
    table = {name: rate([bool(verdict[name]) for verdict in verdicts if name in verdict]) for name in names}
    missing = [verdict["num_missing"] > 0 for verdict in verdicts if "num_missing" in verdict]
    return table | ({"missing_object_rate": rate(missing)} if missing else {})


def occurrence_rate(predicates: Sequence[Callable[[Scene], bool]], images: np.ndarray) -> dict[str, float]:
    """The rate of images whose scene fulfils its predicate, among those that the reader accepts."""
    scenes = [read_scene(image) for image in images]
    return rate([predicate(scene) for predicate, scene in zip(predicates, scenes, strict=True) if scene is not None])


def overlap(scenes: Iterable[Scene], training_scenes: Iterable[Scene]) -> int:
    """How many scenes training showed in any image, blurred or not."""

    def without_blur(scene: Scene) -> tuple:
        return scene.things, scene.place, scene.relation

    training_set = {without_blur(scene) for scene in training_scenes}
    return sum(without_blur(scene) in training_set for scene in scenes)
