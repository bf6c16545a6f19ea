"""What the shapes world lets one measure exactly: unseen scenes, negative prompts, the arithmetic of meanings,
and what a bag of words confuses."""

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


def sharp(records: Sequence[dict], count: int) -> list[int]:
    """Places of up to ``count`` sharp records; a scene comes again, in another picture, only after all others."""
    return [place for _, place in _visits(records)[:count]]


def distinct(records: Sequence[dict], count: int) -> list[int]:
    """Places of up to ``count`` sharp records that differ in meaning."""
    return [place for visit, place in _visits(records) if visit == 0][:count]


def _visits(records: Sequence[dict]) -> list[tuple[int, int]]:
    """Of every sharp record, how many came before with its scene, and its place; sorted."""
    seen: Counter[Scene] = Counter()
    visits = []
    for place, scene in enumerate(scenes(records)):
        if not scene.blurry:
            visits.append((seen[scene], place))
            seen[scene] += 1
    return sorted(visits)


def full_caption(record: dict) -> str:
    """The caption that leaves nothing of the scene unsaid."""
    return json.loads(record["metadata"])["caption"]


def confusions(records: Sequence[dict]) -> dict[str, list[tuple[int, str, str]]]:
    """What a bag of words confuses: of each matter that can be exchanged in a pair, by its name, and every sharp pair,
    the record's place, a caption of it, and one with that exchanged; but for the relation both have the same words."""
    found, shown = {}, scenes(records)
    for place in distinct(records, len(records)):
        if shown[place].kind == "relation":
            for name, other in exchanges(shown[place]).items():
                found.setdefault(name, []).append((place, ordered_caption(shown[place]), ordered_caption(other)))
    return found


@dataclass(frozen=True)
class Avoidance:
    """A prompt, what its picture is to keep clear of, and whether a scene shows that all the same."""

    prompt: str
    negative: str
    shown: Callable[[Scene], bool]


def avoidances() -> dict[str, list[Avoidance]]:
    """Prompts that leave a colour, or blur, open, with the word for it as the negative prompt."""

    def has(colour: str) -> Callable[[Scene], bool]:
        return lambda scene: any(thing.colour == colour for thing in scene.things)

    pairs = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    return {
        "colour": [Avoidance(f"a {shape}", colour, has(colour)) for colour, shape in pairs],
        "blur": [Avoidance(short_caption(*pair), "blurry", lambda scene: scene.blurry) for pair in pairs],
    }


def candidates() -> list[str]:
    """A caption of every colour and shape."""
    return [short_caption(colour, shape) for colour in COLOURS for shape in SHAPES]


def analogies() -> list[Analogy]:
    """Every change of colour, and every change of shape, of every colour-shape caption."""
    found = []
    for colour in COLOURS:
        for shape in SHAPES:
            start = short_caption(colour, shape)
            found += [
                Analogy(start, colour, other, short_caption(other, shape)) for other in COLOURS if other != colour
            ]
            found += [Analogy(start, shape, other, short_caption(colour, other)) for other in SHAPES if other != shape]
    return found
