"""The shapes world as a source of captioned images, generated from a seed.

Every example depends on (seed, split, index) only, except inside a group, so any part of a split can be generated
without the rest. Training draws scenes with replacement; the other splits show all their scenes in a shuffled order
before any repeats.
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
    """The data source of the shapes world.

    world: the kinds of scenes, drawn in the proportions of WEIGHTS.
    image_size: pixels along each side.
    train, test, compositions: how many examples each split has.
    blurry: the share of blurred pictures, the same in every split.
    partial: the share of partial captions, which omit something of their scene.
    group: training scenes come in groups of this many: one drawn at random, then neighbours of it, such as the same
        two things exchanged. In one batch these hard negatives teach what a bag of words cannot distinguish [negclip].
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
    evaluator = "shapes"  # of evaluation.evaluators

    def __post_init__(self):
        unknown = set(self.world) - set(KINDS)
        if unknown or not self.world:
            raise ValueError(f"config.data.world is {self.world}, expected one or more of {', '.join(KINDS)}.")
        if not 0 <= self.partial <= 1:
            raise ValueError(f"config.data.partial is {self.partial}, expected a share of captions between 0 and 1.")
        if self.group < 1:
            raise ValueError(f"config.data.group is {self.group}, expected 1 scene or more.")
        if self.image_size < 16:
            raise ValueError(
                f"config.data.image_size is {self.image_size}; below 16 pixels the shapes cannot be distinguished."
            )

    @property
    def disable_shuffling(self) -> bool:
        """Whether consecutive examples form groups, so that records must keep their order."""
        return self.group > 1

    def identity(self) -> dict:
        """Everything that determines the records."""
        return {"source": self.name, "version": VERSION, **dataclasses.asdict(self), "world": list(self.world)}

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def examples(self, split: str) -> Iterator[Example]:
        """The examples of a split, in order; equal seeds give bit-identical examples."""
        if split not in SPLITS:
            raise ValueError(f"The split is {split!r}, expected one of {', '.join(SPLITS)}.")
        kinds, visits = self._kinds(split)
        decks = {kind: self._deck(split, kind) for kind in self.world}
        in_groups, remaining_neighbours = split == "train" and self.group > 1, []
        for index, (kind, visit) in enumerate(zip(kinds, visits, strict=True)):
            rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
            deck = decks[kind]
            scene = deck[rng.integers(len(deck))] if split == "train" else deck[visit % len(deck)]
            scene = dataclasses.replace(scene, blurry=bool(rng.random() < self.blurry))
            if in_groups and index % self.group == 0:
                remaining_neighbours = _neighbours_in_training(scene, rng)[: self.group - 1]
            elif remaining_neighbours:
                scene = remaining_neighbours.pop()
            yield Example(
                key=f"{split}-{index:07d}",
                image=render(scene, rng, self.image_size),
                captions=captions(scene, rng, partial=self.partial),
                metadata={"scene": scene.to_json(), "caption": caption(scene, rng)},
            )

    def _kinds(self, split: str) -> tuple[list[str], np.ndarray]:
        """The kind of every example, and the number of earlier examples of that kind."""
        weights = np.array([WEIGHTS[kind] for kind in self.world])
        draws = self._stream(split, "kinds").random(getattr(self, split))
        picks = np.searchsorted(np.cumsum(weights) / weights.sum(), draws, side="right")
        earlier = np.cumsum(picks[:, None] == np.arange(len(weights)), axis=0) - 1
        return [self.world[pick] for pick in picks], earlier[np.arange(len(picks)), picks]

    def _deck(self, split: str, kind: str) -> list[Scene]:
        """The split's scenes of one kind, shuffled."""
        scenes = scenes_of(split, kind)
        return [scenes[i] for i in self._stream(split, kind).permutation(len(scenes))]

    def _stream(self, split: str, purpose: str) -> np.random.Generator:
        """A generator for a whole split. Its seed has four numbers, an example's three, so they never coincide."""
        number = ("kinds", *KINDS).index(purpose)
        return np.random.default_rng([self.seed, SPLITS.index(split), number, 1])


def _neighbours_in_training(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Neighbours that are training scenes, in random order, one family after the other."""
    families = neighbours(scene)
    candidates = [families[i][j] for i in rng.permutation(len(families)) for j in rng.permutation(len(families[i]))]
    return [other for other in dict.fromkeys(candidates) if split_of(other) == "train"]


@cache
def scenes_of(split: str, kind: str) -> tuple[Scene, ...]:
    """Every sharp scene of one kind in a split."""
    return tuple(scene for scene in all_scenes(kind) if split_of(scene) == split)
