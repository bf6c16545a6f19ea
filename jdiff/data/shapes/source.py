"""The shapes world as a source of captioned images, drawn afresh from a seed.

Every example follows from (seed, split, index) alone, but for those of one group, so any part of a split
can be drawn again without the rest. Training draws scenes with replacement; the other splits go
through all their scenes in a shuffled order before any comes again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from jdiff.data.records import Example
from jdiff.data.shapes.grammar import caption, captions
from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import KINDS, SPLITS, Scene, all_scenes, neighbours, split_of

VERSION = 4  # raise it whenever the same seed would draw other pictures or captions
WEIGHTS = {"one": 0.25, "count": 0.15, "relation": 0.6}


@dataclass(frozen=True)
class Shapes:
    """Where captioned pictures of the shapes world come from.

    world: the kinds of scene drawn, in the proportions of WEIGHTS.
    image_size: pixels along each side.
    train, test, compositions: how many examples each split has.
    blurry: the share of blurred pictures, the same in every split.
    partial: the share of captions that leave something of their scene unsaid.
    group: training scenes come in groups of this many: one drawn freely, then neighbours of it, such as the same
        two things the other way round. In one batch they teach what a bag of words does not tell [negclip].
    """

    world: tuple[str, ...] = ("one",)
    image_size: int = 32
    train: int = 50_000
    test: int = 2_000
    compositions: int = 1_000
    blurry: float = 0.12
    partial: float = 0.5
    group: int = 1
    seed: int = 0

    name = "shapes"

    def __post_init__(self):
        unknown = set(self.world) - set(KINDS)
        if unknown or not self.world:
            raise ValueError(f"world is {self.world}, but it must name some of the kinds {', '.join(KINDS)}.")
        if not 0 <= self.partial <= 1:
            raise ValueError(f"partial is {self.partial}, but a share of captions lies between 0 and 1.")
        if self.group < 1:
            raise ValueError(f"group is {self.group}, but a group has 1 scene or more.")
        if self.image_size < 16:
            raise ValueError(f"image_size is {self.image_size}; below 16 pixels the shapes cannot be told apart.")

    @property
    def ordered(self) -> bool:
        """Whether examples that follow each other belong together."""
        return self.group > 1

    def identity(self) -> dict:
        """All that decides the records."""
        return {"source": self.name, "version": VERSION, **dataclasses.asdict(self), "world": list(self.world)}

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def examples(self, split: str) -> Iterator[Example]:
        """The examples of a split, in order; equal seeds give equal examples to the bit."""
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split of the shapes world; known are {', '.join(SPLITS)}.")
        kinds, visits = self._kinds(split)
        decks = {kind: self._deck(split, kind) for kind in self.world}
        grouped, near = split == "train" and self.ordered, []
        for index, (kind, visit) in enumerate(zip(kinds, visits, strict=True)):
            rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
            deck = decks[kind]
            scene = deck[rng.integers(len(deck))] if split == "train" else deck[visit % len(deck)]
            scene = dataclasses.replace(scene, blurry=bool(rng.random() < self.blurry))
            if grouped and index % self.group == 0:
                near = _neighbours_in_training(scene, rng)[: self.group - 1]
            elif near:
                scene = near.pop()
            yield Example(
                key=f"{split}-{index:07d}",
                image=render(scene, rng, self.image_size),
                captions=captions(scene, rng, partial=self.partial),
                metadata={"scene": scene.to_json(), "caption": caption(scene, rng)},
            )

    def _kinds(self, split: str) -> tuple[list[str], np.ndarray]:
        """The kind of every example, and how many of its kind came before it."""
        weights = np.array([WEIGHTS[kind] for kind in self.world])
        draws = self._stream(split, "kinds").random(getattr(self, split))
        picks = np.searchsorted(np.cumsum(weights) / weights.sum(), draws, side="right")
        came_before = np.cumsum(picks[:, None] == np.arange(len(weights)), axis=0) - 1
        return [self.world[pick] for pick in picks], came_before[np.arange(len(picks)), picks]

    def _deck(self, split: str, kind: str) -> list[Scene]:
        """The split's scenes of one kind, shuffled."""
        scenes = scenes_of(split, kind)
        return [scenes[i] for i in self._stream(split, kind).permutation(len(scenes))]

    def _stream(self, split: str, purpose: str) -> np.random.Generator:
        """Randomness that a whole split shares; four numbers, so never that of an example, which has three."""
        number = ("kinds", *KINDS).index(purpose)
        return np.random.default_rng([self.seed, SPLITS.index(split), number, 1])


def _neighbours_in_training(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Neighbours that training may see, in random order, one family after the other."""
    families = neighbours(scene)
    drawn = [families[i][j] for i in rng.permutation(len(families)) for j in rng.permutation(len(families[i]))]
    return [other for other in dict.fromkeys(drawn) if split_of(other) == "train"]


@cache
def scenes_of(split: str, kind: str) -> tuple[Scene, ...]:
    """Every sharp scene of one kind that a split may show."""
    return tuple(scene for scene in all_scenes(kind) if split_of(scene) == split)
