"""The vocabulary of the shapes world, its scenes, and their train and test splits.

There are three kinds of scenes:

    one       a single thing at one of nine places
    count     two or three identical things, anywhere
    relation  two different things, the first left of or above the second

Two test splits are held out from training, of different difficulty. Every thing in a scene has a *role*: its place, its
number, or its side of a relation. A tenth of all (colour, shape, role) triples is held out, so that no training picture
ever shows, say, a red star in the centre, although red stars, red things in the centre and stars in the centre all
occur. Scenes of held-out triples only are the split "compositions"; scenes with both held-out and training triples are
in no split. Of the remaining scenes, a hash selects a part as "test": new scenes, each of which is in training with its
first thing in the other size. Blur does not affect the split.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (225, 25, 45),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 30),
    "green": (30, 150, 50),
    "cyan": (30, 200, 220),
    "blue": (30, 60, 215),
    "purple": (150, 35, 190),
    "black": (25, 25, 25),
}
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
RELATIONS = ("left of", "above")
CONVERSES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = {2: "two", 3: "three"}
KINDS = ("one", "count", "relation")
SPLITS = ("train", "test", "compositions")

HELD_OUT_SHARE = 0.10  # of (colour, shape, role) triples
TEST_SHARE = 0.18  # of the scenes without held-out triples

SIDES = {"left of": ("left of something", "right of something"), "above": ("above something", "below something")}
ROLES = PLACES + tuple(COUNTS.values()) + SIDES["left of"] + SIDES["above"]


@dataclass(frozen=True)
class Thing:
    """One object: its attributes without its position."""

    shape: str
    colour: str
    size: str

    def __post_init__(self):
        _check("shape", self.shape, SHAPES)
        _check("colour", self.colour, COLOURS)
        _check("size", self.size, SIZES)


@dataclass(frozen=True)
class Scene:
    """The content of one picture, as a full caption describes it.

    things: one thing with a place; two different things with a relation, of which things[0]
        is left of or above things[1]; or two or three identical things with neither.
    """

    things: tuple[Thing, ...]
    place: str | None = None
    relation: str | None = None
    blurry: bool = False

    def __post_init__(self):
        if self.kind == "one":
            _check("place", self.place, PLACES)
        elif self.place is not None:
            raise ValueError(f"a scene of {len(self.things)} things has no place, but place is {self.place!r}.")
        if self.kind == "relation":
            _check("relation", self.relation, RELATIONS)
        elif self.relation is not None:
            raise ValueError(f"only two different things have a relation, but {self} has {self.relation!r}.")

    @property
    def kind(self) -> str:
        """One of KINDS, determined by the things."""
        if len(self.things) == 1:
            return "one"
        if len(self.things) in COUNTS and len(set(self.things)) == 1:
            return "count"
        if len(self.things) == 2:
            return "relation"
        raise ValueError(
            f"a scene holds one thing, two different things, or two or three identical things, not {self.things}."
        )

    def to_json(self) -> dict:
        """The scene as dictionaries and lists, the inverse of ``Scene.from_json``."""
        things = [{"shape": thing.shape, "colour": thing.colour, "size": thing.size} for thing in self.things]
        return {"things": things, "place": self.place, "relation": self.relation, "blurry": self.blurry}

    @staticmethod
    def from_json(record: dict) -> Scene:
        """The scene that ``to_json`` wrote. Raises ValueError if the record is not a valid scene."""
        things = tuple(Thing(**thing) for thing in record["things"])
        return Scene(things, record["place"], record["relation"], record["blurry"])


def roles(scene: Scene) -> tuple[str, ...]:
    """The role of each thing in its scene: its place, its number, or its side of the relation."""
    if scene.kind == "one":
        return (scene.place,)
    if scene.kind == "count":
        return (COUNTS[len(scene.things)],) * len(scene.things)
    return SIDES[scene.relation]


def held_out(colour: str, shape: str, role: str) -> bool:
    """Whether this colour and shape in this role are held out from training."""
    return _fraction("held out", colour, shape, role) < HELD_OUT_SHARE


def split_of(scene: Scene) -> str | None:
    """The split that a scene belongs to: "train", "test", "compositions", or None for no split."""
    triples_held_out = {
        held_out(thing.colour, thing.shape, role) for thing, role in zip(scene.things, roles(scene), strict=True)
    }
    if triples_held_out == {True}:
        return "compositions"
    if triples_held_out == {True, False}:
        return None
    return "test" if _is_test(scene) else "train"


def neighbours(scene: Scene) -> list[list[Scene]]:
    """Scenes that a bag of words hardly distinguishes from this one, in families of one kind of difference.

    For one thing, its place or size; for a count, its number or size; for a pair, first the arrangement (which
    thing is which, the relation, or both), then the things (colours, shapes or sizes exchanged, one of the sizes).
    """
    first, *others = scene.things

    def resize(thing: Thing) -> Thing:
        return dataclasses.replace(thing, size=SIZES[1 - SIZES.index(thing.size)])

    if scene.kind == "one":
        other_places = [dataclasses.replace(scene, place=place) for place in PLACES]
        families = [[*other_places, dataclasses.replace(scene, things=(resize(first),))]]
    elif scene.kind == "count":
        other_counts = [dataclasses.replace(scene, things=(first,) * count) for count in COUNTS]
        families = [[*other_counts, dataclasses.replace(scene, things=(resize(first),) * len(scene.things))]]
    else:
        (second,) = others
        ways = product(((first, second), (second, first)), RELATIONS)
        arrangements = [dataclasses.replace(scene, things=things, relation=relation) for things, relation in ways]
        pairs = [pair for pair in ((resize(first), second), (first, resize(second))) if pair[0] != pair[1]]
        scenes = exchanges(scene)
        families = [
            arrangements,
            [dataclasses.replace(scene, things=pair) for pair in pairs]
            + [scenes[name] for name in ("colour", "shape", "size") if name in scenes],
        ]
    return [[other for other in family if other != scene] for family in families]


def exchanges(scene: Scene) -> dict[str, Scene]:
    """A pair's scene with one property exchanged, by the property's name.

    "order" exchanges the two things, "relation" the relation, and "colour", "shape" and "size" the two things'
    attribute, if they differ in it.
    """
    first, second = scene.things
    variants = {
        "order": dataclasses.replace(scene, things=(second, first)),
        "relation": dataclasses.replace(scene, relation=RELATIONS[1 - RELATIONS.index(scene.relation)]),
    }
    for name in ("colour", "shape", "size"):
        a, b = getattr(first, name), getattr(second, name)
        pair = dataclasses.replace(first, **{name: b}), dataclasses.replace(second, **{name: a})
        variants[name] = dataclasses.replace(scene, things=pair)
    return {name: other for name, other in variants.items() if other != scene}


def _is_test(scene: Scene) -> bool:
    """Scenes come in pairs that differ in the size of the first thing; at most one of a pair is a test scene."""
    words = [word for thing in scene.things for word in (thing.colour, thing.shape)]
    words += [*(thing.size for thing in scene.things[1:] if scene.kind == "relation"), *roles(scene)]
    test_size = SIZES[int(2 * _fraction("tested size", *words))]
    return scene.things[0].size == test_size and _fraction("test", *words) < 2 * TEST_SHARE


def all_scenes(kind: str) -> Iterator[Scene]:
    """Every sharp scene of a kind, in a fixed order."""
    _check("kind", kind, KINDS)
    things = [Thing(shape, colour, size) for shape, colour, size in product(SHAPES, COLOURS, SIZES)]
    if kind == "one":
        yield from (Scene((thing,), place=place) for thing, place in product(things, PLACES))
    elif kind == "count":
        yield from (Scene((thing,) * count) for thing, count in product(things, COUNTS))
    else:
        pairs = permutations(things, 2)
        yield from (Scene(pair, relation=relation) for pair, relation in product(pairs, RELATIONS))


def _fraction(*words: str) -> float:
    """A number in [0, 1) from a hash of the words, equal on every machine and Python version."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check(attribute: str, value, values) -> None:
    if value not in values:
        raise ValueError(f"The {attribute} is {value!r}, expected one of {', '.join(values)}.")
