"""Captions of a scene: full ones that determine it, and partial ones that omit something.

Both are enumerated, so that a test can read every sentence of the grammar; drawing a caption is one random choice.
Full captions name every attribute. Partial ones omit at least one, never contradict the scene, and never name only one
thing of a pair: "a red circle" should mean a picture of nothing but a red circle.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from jdiff.data.shapes.world import COLOURS, CONVERSES, COUNTS, Scene, Thing

PER_RECORD = 8  # captions

PLACE_PHRASES = {
    "top left": ("at the top left", "in the top left", "in the top left corner"),
    "top": ("at the top", "near the top edge", "at the top in the middle"),
    "top right": ("at the top right", "in the top right", "in the top right corner"),
    "left": ("on the left", "at the left", "on the left side"),
    "centre": ("in the centre", "at the centre", "in the middle"),
    "right": ("on the right", "at the right", "on the right side"),
    "bottom left": ("at the bottom left", "in the bottom left", "in the bottom left corner"),
    "bottom": ("at the bottom", "near the bottom edge", "at the bottom in the middle"),
    "bottom right": ("at the bottom right", "in the bottom right", "in the bottom right corner"),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
WITH_PHRASES = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One full caption, such as "in the top left, a small red circle"."""
    sentences = full_captions(scene)
    return sentences[int(rng.integers(len(sentences)))]


def captions(scene: Scene, rng: np.random.Generator, *, partial: float = 0.5) -> tuple[str, ...]:
    """The captions of one record: true and all different; fewer than PER_RECORD if the grammar has no more.

    partial: the share of partial captions, rounded to the nearest eighth.
    """
    num_partial = round(PER_RECORD * partial)
    return (
        *_sample(full_captions(scene), PER_RECORD - num_partial, rng),
        *_sample(partial_captions(scene), num_partial, rng),
    )


def short_caption(colour: str, shape: str) -> str:
    """The shortest name of one thing: "a red circle"."""
    return _a(f"{colour} {shape}")


def ordered_caption(scene: Scene) -> str:
    """The full caption of a sharp pair that begins with the left or upper thing.

    Two pairs that differ only in which thing has which attribute get captions with the same words in another order.
    """
    first, second = scene.things
    return f"{_a(_name(first))} {scene.relation} {_a(_name(second))}"


@lru_cache(maxsize=4096)
def full_captions(scene: Scene) -> tuple[str, ...]:
    """Every caption that names everything in the scene."""
    phrases, sentences = _FULL[scene.kind](scene)
    if scene.blurry:
        pictures = [f"a blurry {word} of {phrase}" for phrase in phrases for word in ("picture", "image")]
        return (*pictures, *(f"{sentence}, blurry" for sentence in (*phrases, *sentences)))
    openings = ("a picture of", "there are" if scene.kind == "count" else "there is")
    return (*phrases, *sentences, *(f"{opening} {text}" for text in phrases for opening in openings))


@lru_cache(maxsize=4096)
def partial_captions(scene: Scene) -> tuple[str, ...]:
    """Captions that name a part of what is in the scene; they may omit blur."""
    parts = _PARTIAL[scene.kind](scene)
    if scene.blurry:
        parts += (f"a blurry picture of {parts[0]}", f"{parts[1]}, blurry", "a blurry picture")
    return tuple(dict.fromkeys(parts))


def _full_one(scene: Scene):
    """Phrases that can follow "a picture of", and sentences that cannot."""
    thing = _a(_name(scene.things[0]))
    places = PLACE_PHRASES[scene.place]
    return [f"{thing} {place}" for place in places], [
        *(f"{place}, {thing}" for place in places),
        f"{_name(scene.things[0])}, {scene.place}",
    ]


def _full_count(scene: Scene):
    things, number = _plural(_name(scene.things[0])), len(scene.things)
    return [f"{COUNTS[number]} {things}", f"{number} {things}"], [f"{things}, {COUNTS[number]} of them"]


def _full_relation(scene: Scene):
    """Most captions, and all that an opening can precede, begin with the more salient thing.

    So the relation's word mostly tells on which side that thing is, which makes relations easier to learn.
    """
    first, second = scene.things
    ways = [(first, scene.relation, second), (second, CONVERSES[scene.relation], first)]
    ways.sort(key=lambda way: _salience(way[0]), reverse=True)
    phrases, sentences = [], []
    for (subject, relation, other), target in zip(ways, (phrases, sentences)):
        subject, other = _a(_name(subject)), _a(_name(other))
        target += [f"{subject} {words} {other}" for words in RELATION_PHRASES[relation]]
        sentences.append(f"{subject} with {other} {WITH_PHRASES[CONVERSES[relation]]}")
    return phrases, sentences


def _salience(thing: Thing) -> tuple:
    """Sort key: large above small, then dark (a low sum of channels) above light, then by the shape's name."""
    return thing.size == "large", -sum(COLOURS[thing.colour]), thing.shape


def _partial_one(scene: Scene) -> tuple[str, ...]:
    thing = scene.things[0]
    shape, colour, size, place = thing.shape, thing.colour, thing.size, PLACE_PHRASES[scene.place][0]
    return (
        short_caption(colour, shape),
        f"{colour} {shape}",
        f"{short_caption(colour, shape)} {place}",
        _a(_name(thing)),
        f"{size} {colour} {shape}",
        f"{_a(shape)} {place}",
        f"{_a(f'{size} {shape}')} {place}",
        f"{_a(f'{colour} shape')} {place}",
        _a(f"{colour} shape"),
        f"something {colour}",
        f"something {size} {place}",
        _a(shape),
        shape,
        colour,
    )


def _partial_count(scene: Scene) -> tuple[str, ...]:
    thing, number = scene.things[0], COUNTS[len(scene.things)]
    shape, colour, size = thing.shape, thing.colour, thing.size
    return (
        f"{number} {colour} {_plural(shape)}",
        f"{number} {_plural(shape)}",
        f"{colour} {_plural(shape)}",
        f"{number} {size} {_plural(shape)}",
        f"{size} {colour} {_plural(shape)}",
        f"{number} {colour} shapes",
        f"{number} {size} shapes",
        f"{number} shapes",
        f"{colour} shapes",
        _plural(shape),
    )


def _partial_relation(scene: Scene) -> tuple[str, ...]:
    first, second = scene.things
    relation, converse = scene.relation, CONVERSES[scene.relation]
    red, blue = short_caption(first.colour, first.shape), short_caption(second.colour, second.shape)
    return (
        f"{red} {relation} {blue}",
        f"{red} and {blue}",
        f"{blue} {converse} {red}",
        f"{blue} and {red}",
        f"{_a(_name(first))} and {_a(_name(second))}",
        f"{_a(first.shape)} {relation} {_a(second.shape)}",
        f"{_a(second.shape)} {converse} {_a(first.shape)}",
        f"{_a(f'{first.colour} shape')} {relation} {_a(f'{second.colour} shape')}",
        f"{_a(f'{first.size} {first.shape}')} {relation} {_a(f'{second.size} {second.shape}')}",
        f"{_a(first.shape)} and {_a(second.shape)}",
    )


_FULL = {"one": _full_one, "count": _full_count, "relation": _full_relation}
_PARTIAL = {"one": _partial_one, "count": _partial_count, "relation": _partial_relation}


def _name(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _sample(sentences: tuple[str, ...], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Up to ``count`` different sentences in random order."""
    return tuple(sentences[i] for i in rng.permutation(len(sentences))[:count])
