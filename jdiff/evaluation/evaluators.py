"""What can be asked of models of a data set, by the data's source.

A source names its evaluator: its attribute ``evaluator`` is a name in ``EVALUATORS``, or an object with the methods of
``CaptionEvaluator``, which fits any captioned images. Evaluators take examples and arrays, never a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jdiff.contrastive.analogies import Analogy
from jdiff.data.sources import SOURCES
from jdiff.evaluation import emoji, prompt_accuracy, shapes
from jdiff.evaluation.shapes import NegativePromptCase

Splits = Callable[[str], Sequence[dict]]  # the name of a split -> its examples
Rates = dict[str, dict[str, float]]  # of each attribute {"share", "low", "high", "count"}


class CaptionEvaluator:
    """Of captioned images in general: retrieval can be measured, and nothing can tell what a picture shows."""

    def choose(self, examples: Sequence[dict], num: int) -> list[int]:
        """Which examples a text-to-image model is asked to draw."""
        return list(range(min(num, len(examples))))

    def choose_pairs(self, examples: Sequence[dict], num: int) -> list[int]:
        """Which examples retrieval is measured among."""
        return self.choose(examples, num)

    def caption(self, example: dict) -> str:
        return example["captions"][0].decode()

    def judge(self, images: np.ndarray, examples: Sequence[dict], splits: Splits) -> Rates:
        """How many images show what was asked for. images: (n, h, w, 3) uint8, one for each example."""
        return {}

    def coverage(self, examples: Sequence[dict], splits: Splits) -> dict[str, int]:
        """How many different scenes are asked for, and how many of them training showed."""
        return {}

    def analogies(self, splits: Splits) -> tuple[list[Analogy], list[str]]:
        """Analogies, and the captions among which each answer must be nearest."""
        return [], []

    def hard_negative_captions(self, examples: Sequence[dict]) -> dict[str, list[tuple[int, str, str]]]:
        """By what is exchanged: an example's index, its caption, and a caption with that exchanged."""
        return {}

    def negative_prompt_cases(self) -> dict[str, list[NegativePromptCase]]:
        """Prompts with negative prompts whose effect can be read from a picture, by what is avoided."""
        return {}

    @property
    def shows_references(self) -> bool:
        """Whether pictures of results show the real image above each generated one."""
        return True


class ShapesEvaluator(CaptionEvaluator):
    """Of the shapes world, whose pictures can be read exactly."""

    shows_references = False

    def choose(self, examples: Sequence[dict], num: int) -> list[int]:
        return shapes.sharp_indices(examples, num)

    def choose_pairs(self, examples: Sequence[dict], num: int) -> list[int]:
        return shapes.distinct_indices(examples, num)

    def caption(self, example: dict) -> str:
        return shapes.full_caption(example)

    def judge(self, images: np.ndarray, examples: Sequence[dict], splits: Splits) -> Rates:
        return prompt_accuracy.summary(prompt_accuracy.scene_verdicts(shapes.scenes(examples), images))

    def coverage(self, examples: Sequence[dict], splits: Splits) -> dict[str, int]:
        scenes = set(shapes.scenes(examples))
        trained = shapes.scenes(splits("train"))
        return {"scenes": len(scenes), "overlap": prompt_accuracy.overlap(scenes, trained)}

    def analogies(self, splits: Splits) -> tuple[list[Analogy], list[str]]:
        return shapes.analogies(), shapes.candidates()

    def hard_negative_captions(self, examples: Sequence[dict]) -> dict[str, list[tuple[int, str, str]]]:
        return shapes.hard_negative_captions(examples)

    def negative_prompt_cases(self) -> dict[str, list[NegativePromptCase]]:
        return shapes.negative_prompt_cases()


class EmojiEvaluator(CaptionEvaluator):
    """Of the emoji, where a drawing is known by the glyph nearest to it."""

    def judge(self, images: np.ndarray, examples: Sequence[dict], splits: Splits) -> Rates:
        return prompt_accuracy.summary(emoji.glyph_verdicts(images, examples, _glyphs(splits)))

    def analogies(self, splits: Splits) -> tuple[list[Analogy], list[str]]:
        answers = [self.caption(glyph) for glyph in _glyphs(splits)]
        return emoji.analogies(answers), answers


def _glyphs(splits: Splits) -> list[dict]:
    all_splits = (splits("train"), splits("test"))
    return [examples[i] for examples in all_splits for i in range(len(examples))]


Evaluator = CaptionEvaluator
EVALUATORS = {"captions": CaptionEvaluator, "shapes": ShapesEvaluator, "emoji": EmojiEvaluator}


def evaluator_of(source: str) -> Evaluator:
    """The evaluator that a source of config.data names. source: as config.data.source."""
    evaluator = getattr(SOURCES.get(source.partition(":")[0]), "evaluator", "captions")
    return EVALUATORS[evaluator]() if isinstance(evaluator, str) else evaluator
