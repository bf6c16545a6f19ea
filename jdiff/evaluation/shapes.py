"""Evaluation sets of the shapes world, whose scenes are known exactly: unseen scenes, hard negative captions, negative
prompts, analogies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jdiff.contrastive.analogies import Analogy
from jdiff.data.shapes.grammar import ordered_caption, short_caption
from jdiff.data.shapes.world import COLOURS, SHAPES, Scene, exchanges


def scenes(records: Sequence[dict]) -> list[Scene]:
    """The scene of every record, in order."""
    return [Scene.from_json(json.loads(records[i]["metadata"])["scene"]) for i in range(len(records))]


def sharp_indices(records: Sequence[dict], count: int) -> list[int]:
    """Indices of up to ``count`` records without blur; a scene repeats, in another image, only after all others."""
    return [index for _, index in _repetitions(records)[:count]]


def distinct_indices(records: Sequence[dict], count: int) -> list[int]:
    """Indices of up to ``count`` records without blur, all of different scenes."""
    return [index for repetition, index in _repetitions(records) if repetition == 0][:count]


def _repetitions(records: Sequence[dict]) -> list[tuple[int, int]]:
    """For every record without blur the number of earlier records of its scene, and its index; sorted."""
    counts: Counter[Scene] = Counter()
    repetitions = []
    for index, scene in enumerate(scenes(records)):
        if not scene.blurry:
            repetitions.append((counts[scene], index))
            counts[scene] += 1
    return sorted(repetitions)


def full_caption(record: dict) -> str:
    """The caption that names every attribute of the scene."""
    return json.loads(record["metadata"])["caption"]


def hard_negative_captions(records: Sequence[dict]) -> dict[str, list[tuple[int, str, str]]]:
    """Captions of two objects with one property exchanged: hard negatives for an encoder that ignores word order.

    Returns, by property ("order", "relation", "colour", ...) and for every pair without blur, the record's index, its
    caption, and the caption with that property exchanged. Both have the same words, except for the relation.
    """
    captions, all_scenes = {}, scenes(records)
    for index in distinct_indices(records, len(records)):
        scene = all_scenes[index]
        if scene.kind == "relation":
            for name, other in exchanges(scene).items():
                captions.setdefault(name, []).append((index, ordered_caption(scene), ordered_caption(other)))
    return captions


@dataclass(frozen=True)
class NegativePromptCase:
    """A prompt, a negative prompt, and whether a scene shows what the negative prompt excludes."""

    prompt: str
    negative: str
    is_shown: Callable[[Scene], bool]


def negative_prompt_cases() -> dict[str, list[NegativePromptCase]]:
    """Prompts that leave the colour, or blur, open; the negative prompt names a colour, or "blurry"."""

    def has_colour(colour: str) -> Callable[[Scene], bool]:
        return lambda scene: any(thing.colour == colour for thing in scene.things)

    pairs = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    return {
        "colour": [NegativePromptCase(f"a {shape}", colour, has_colour(colour)) for colour, shape in pairs],
        "blur": [NegativePromptCase(short_caption(*pair), "blurry", lambda scene: scene.blurry) for pair in pairs],
    }


def candidates() -> list[str]:
    """A caption of every colour and shape."""
    return [short_caption(colour, shape) for colour in COLOURS for shape in SHAPES]


def analogies() -> list[Analogy]:
    """Every change of colour, and every change of shape, of every colour-shape caption."""
    cases = []
    for colour in COLOURS:
        for shape in SHAPES:
            start = short_caption(colour, shape)
            cases += [
                Analogy(start, colour, other, short_caption(other, shape)) for other in COLOURS if other != colour
            ]
            cases += [Analogy(start, shape, other, short_caption(colour, other)) for other in SHAPES if other != shape]
    return cases
