"""What the shapes world lets one measure exactly: prompts of unseen scenes, and the arithmetic of its words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from jdiff.contrastive.analogies import Analogy
from jdiff.data.shapes.grammar import short_caption
from jdiff.data.shapes.world import COLOURS, SHAPES, Scene


def scenes(records: Sequence[dict]) -> list[Scene]:
    """The scene of every record, in order."""
    return [Scene.from_json(json.loads(records[i]["metadata"])["scene"]) for i in range(len(records))]


def distinct(records: Sequence[dict], count: int, *, kind: str | None = None) -> list[int]:
    """Places of the first ``count`` sharp records that differ in meaning, of one kind of scene if it is named."""
    chosen: dict[Scene, int] = {}
    for place, scene in enumerate(scenes(records)):
        if not scene.blurry and kind in (None, scene.kind):
            chosen.setdefault(scene, place)
    return list(chosen.values())[:count]


def full_caption(record: dict) -> str:
    """The caption that leaves nothing of the scene unsaid."""
    return json.loads(record["metadata"])["caption"]


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
