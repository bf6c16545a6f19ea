"""What people say of a scene: full captions that pin it down, and partial ones that leave things out.

Both are enumerated, so that a test can read every sentence the grammar knows; drawing a
caption is then one choice. Full captions name every attribute. Partial ones leave out at least
one, never contradict the scene, and never name only one thing of a pair: "a red circle"
should mean a picture of a red circle.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from jdiff.data.shapes.world import COLOURS, CONVERSES, COUNTS, Scene, Thing

PER_RECORD = 8  # captions

WHERE = {
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
BESIDE = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
WITH = {"left of": "to its left", "right of": "to its right", "above": "above it", "below": "below it"}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One full caption, such as "in the top left, a small red circle"."""
    sentences = full_captions(scene)
    return sentences[int(rng.integers(len(sentences)))]


def captions(scene: Scene, rng: np.random.Generator, *, partial: float = 0.5) -> tuple[str, ...]:
    """The captions of one record: true ones, all different; fewer where the grammar knows no more.

    partial: the share that leaves something unsaid, to the nearest eighth.
    """
    leaving_out = round(PER_RECORD * partial)
    return (
        *_some(full_captions(scene), PER_RECORD - leaving_out, rng),
        *_some(partial_captions(scene), leaving_out, rng),
    )


def short_caption(colour: str, shape: str) -> str:
    """The plainest name of one thing: "a red circle"."""
    return _a(f"{colour} {shape}")


def ordered_caption(scene: Scene) -> str:
    """The full caption of a sharp pair that begins with the left or upper thing, so that two pairs that differ only in
    which thing has what are told in the same words."""
    first, second = scene.things
    return f"{_a(_name(first))} {scene.relation} {_a(_name(second))}"


@lru_cache(maxsize=4096)
def full_captions(scene: Scene) -> tuple[str, ...]:
    """Every way to say all that the scene holds."""
    phrases, sentences = _WHOLES[scene.kind](scene)
    if scene.blurry:
        pictures = [f"a blurry {word} of {phrase}" for phrase in phrases for word in ("picture", "image")]
        return (*pictures, *(f"{sentence}, blurry" for sentence in (*phrases, *sentences)))
    there = "there are" if scene.kind == "count" else "there is"
    return (*phrases, *sentences, *(f"{opening} {text}" for text in phrases for opening in ("a picture of", there)))


@lru_cache(maxsize=4096)
def partial_captions(scene: Scene) -> tuple[str, ...]:
    """Ways to say a part of what the scene holds; blur may go unsaid here."""
    parts = _PARTS[scene.kind](scene)
    if scene.blurry:
        parts += (f"a blurry picture of {parts[0]}", f"{parts[1]}, blurry", "a blurry picture")
    return tuple(dict.fromkeys(parts))


def _one(scene: Scene):
    """Phrases that can follow "a picture of", and sentences that stand alone."""
    thing = _a(_name(scene.things[0]))
    where = WHERE[scene.place]
    return [f"{thing} {place}" for place in where], [
        *(f"{place}, {thing}" for place in where),
        f"{_name(scene.things[0])}, {scene.place}",
    ]


def _count(scene: Scene):
    many, number = _plural(_name(scene.things[0])), len(scene.things)
    return [f"{COUNTS[number]} {many}", f"{number} {many}"], [f"{many}, {COUNTS[number]} of them"]


def _relation(scene: Scene):
    """Most sentences, and all that an opening can precede, begin with the thing that stands out, so that the relation's
    word alone mostly tells on which side that one is; a learner who knows so much can find out the rest."""
    first, second = scene.things
    ways = [(first, scene.relation, second), (second, CONVERSES[scene.relation], first)]
    ways.sort(key=lambda way: _stands_out(way[0]), reverse=True)
    plain, more = [], []
    for (one, relation, other), said in zip(ways, (plain, more)):
        one, other = _a(_name(one)), _a(_name(other))
        said += [f"{one} {beside} {other}" for beside in BESIDE[relation]]
        more.append(f"{one} with {other} {WITH[CONVERSES[relation]]}")
    return plain, more


def _stands_out(thing: Thing) -> tuple:
    """Greater for what catches the eye: large before small, dark (a low sum of channels) before light; else by name."""
    return thing.size == "large", -sum(COLOURS[thing.colour]), thing.shape


def _one_parts(scene: Scene) -> tuple[str, ...]:
    thing = scene.things[0]
    shape, colour, size, where = thing.shape, thing.colour, thing.size, WHERE[scene.place][0]
    return (
        short_caption(colour, shape),
        f"{colour} {shape}",
        f"{short_caption(colour, shape)} {where}",
        _a(_name(thing)),
        f"{size} {colour} {shape}",
        f"{_a(shape)} {where}",
        f"{_a(f'{size} {shape}')} {where}",
        f"{_a(f'{colour} shape')} {where}",
        _a(f"{colour} shape"),
        f"something {colour}",
        f"something {size} {where}",
        _a(shape),
        shape,
        colour,
    )


def _count_parts(scene: Scene) -> tuple[str, ...]:
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


def _relation_parts(scene: Scene) -> tuple[str, ...]:
    first, second = scene.things
    beside, behind = scene.relation, CONVERSES[scene.relation]
    red, blue = short_caption(first.colour, first.shape), short_caption(second.colour, second.shape)
    return (
        f"{red} {beside} {blue}",
        f"{red} and {blue}",
        f"{blue} {behind} {red}",
        f"{blue} and {red}",
        f"{_a(_name(first))} and {_a(_name(second))}",
        f"{_a(first.shape)} {beside} {_a(second.shape)}",
        f"{_a(second.shape)} {behind} {_a(first.shape)}",
        f"{_a(f'{first.colour} shape')} {beside} {_a(f'{second.colour} shape')}",
        f"{_a(f'{first.size} {first.shape}')} {beside} {_a(f'{second.size} {second.shape}')}",
        f"{_a(first.shape)} and {_a(second.shape)}",
    )


_WHOLES = {"one": _one, "count": _count, "relation": _relation}
_PARTS = {"one": _one_parts, "count": _count_parts, "relation": _relation_parts}


def _name(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape}"


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _some(sentences: tuple[str, ...], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Up to ``count`` different sentences in random order."""
    return tuple(sentences[i] for i in rng.permutation(len(sentences))[:count])
