"""Accuracy of the reader on images with a known answer: scenes that it must read, and non-scenes that it must refuse.

Some of these images show a scene, clean or as a good but imperfect generator would draw it; the others only resemble
one. Prompt accuracies measured by the reader can be no more reliable than its accuracy here.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jdiff.data.shapes.reader import read_scene
from jdiff.data.shapes.render import UNITS, arrange, draw_scene, render
from jdiff.data.shapes.source import scenes_of
from jdiff.data.shapes.world import KINDS, SPLITS, Scene

NOISE = 8.0  # standard deviation, of 255
SHIFT = 12.0  # per channel, of 255


def any_scene(rng: np.random.Generator) -> Scene:
    """A scene of any kind and split, sharp or blurred with equal chance."""
    scenes = scenes_of(SPLITS[rng.integers(len(SPLITS))], KINDS[rng.integers(len(KINDS))])
    return dataclasses.replace(scenes[rng.integers(len(scenes))], blurry=bool(rng.integers(2)))


def clean(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    return render(scene, rng, size)


def imperfect(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    """A scene with all colours shifted by the same amount, and noise on every pixel."""
    shifted = render(scene, rng, size) + rng.uniform(-SHIFT, SHIFT, 3)
    return _picture(np.clip(shifted, 0, 255) + rng.normal(0, NOISE, (size, size, 3)))


def uniform_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def flat_grey(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full((size, size, 3), rng.integers(256), np.uint8)


def half_drawn(rng: np.random.Generator, size: int) -> np.ndarray:
    """A scene in which one half of one thing is missing, cut straight through its centre.

    A triangle never keeps its top half, because that is a triangle itself.
    """
    scene = any_scene(rng)
    placements = arrange(scene, rng)
    target = placements[rng.integers(len(placements))]
    complete = draw_scene(placements, blurry=scene.blurry, size=size)
    image = draw_scene(tuple(p for p in placements if p is not target), blurry=scene.blurry, size=size)
    sides = ("left", "right", "bottom") if target.thing.shape == "triangle" else ("left", "right", "bottom", "top")
    side = sides[rng.integers(len(sides))]
    row, column = round(target.y * size / UNITS), round(target.x * size / UNITS)
    half = {
        "left": np.s_[:, :column],
        "right": np.s_[:, column:],
        "bottom": np.s_[row:],
        "top": np.s_[:row],
    }[side]
    image[half] = complete[half]
    return image


def blend(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two different scenes, each at half strength."""
    first, second = any_scene(rng), any_scene(rng)
    while second == first:
        second = any_scene(rng)
    return _picture((render(first, rng, size).astype(float) + render(second, rng, size)) / 2)


SCENE_PICTURES = {"clean": clean, "imperfect": imperfect}
NON_SCENES = {"uniform noise": uniform_noise, "flat grey": flat_grey, "half drawn": half_drawn, "blend": blend}


def measure_reader(
    count: int, seed: int, *, size: int = 32, kinds: tuple[str, ...] = (*SCENE_PICTURES, *NON_SCENES)
) -> dict[str, tuple[int, int]]:
    """How often the reader is right, per kind of picture.

    count: pictures of each kind.   kinds: names in SCENE_PICTURES and NON_SCENES.
    Returns name -> (number read exactly right, or refused if a non-scene; total).
    """
    return {name: (_right(name, count, seed, size), count) for name in kinds}


def _right(name: str, count: int, seed: int, size: int) -> int:
    rng = np.random.default_rng([seed, (*SCENE_PICTURES, *NON_SCENES).index(name)])
    right = 0
    for _ in range(count):
        if name in SCENE_PICTURES:
            scene = any_scene(rng)
            right += read_scene(SCENE_PICTURES[name](scene, rng, size)) == scene
        else:
            right += read_scene(NON_SCENES[name](rng, size)) is None
    return right


def _picture(values: np.ndarray) -> np.ndarray:
    """Real numbers rounded and clipped to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
