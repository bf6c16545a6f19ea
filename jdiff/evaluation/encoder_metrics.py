"""What a dual encoder is measured by, on the data it was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jdiff.contrastive import analogies
from jdiff.evaluation import retrieval
from jdiff.evaluation.evaluators import Evaluator, Splits


class Embeds(Protocol):
    """Embeds captions and images as unit vectors (n, embed_dim)."""

    def embed_texts(self, captions: Sequence[str]) -> np.ndarray: ...
    def embed_images(self, images: np.ndarray) -> np.ndarray: ...


class EncoderMetrics(NamedTuple):
    """metrics: scalars by name.   similarity: (n, n) of captions (rows) and images.   captions: of the rows."""

    metrics: dict[str, float]
    similarity: np.ndarray
    captions: list[str]


def encoder_metrics(
    model: Embeds, evaluator: Evaluator, splits: Splits, examples: Sequence[dict], num: int
) -> EncoderMetrics:
    """Recall both ways, analogies, and the confusions that the data's evaluator knows of."""
    indices = evaluator.choose_pairs(examples, num)
    captions = [evaluator.caption(examples[i]) for i in indices]
    text = np.asarray(model.embed_texts(captions))
    image = np.asarray(model.embed_images(np.stack([examples[i]["image"] for i in indices])))
    metrics = {"compared": len(indices), **retrieval.recall(text, image)}
    cases, answers = evaluator.analogies(splits)
    if cases:
        metrics |= {
            "analogies": len(cases),
            "analogy_accuracy": analogies.analogy_accuracy(model.embed_texts, cases, answers),
            "analogy_chance": 1 / len(answers),
        }
    metrics |= confusion_metrics(model, evaluator, examples)
    return EncoderMetrics(metrics, text @ image.T, captions)


def confusion_metrics(model: Embeds, evaluator: Evaluator, examples: Sequence[dict]) -> dict[str, float]:
    """How many images of two things are nearer to their caption than to one with a single attribute exchanged."""
    confusions = evaluator.hard_negative_captions(examples)
    pair_indices = sorted({index for cases in confusions.values() for index, _, _ in cases})
    if not pair_indices:
        return {}
    image = np.asarray(model.embed_images(np.stack([examples[index]["image"] for index in pair_indices])))
    metrics: dict[str, float] = {"pairs": len(pair_indices)}
    for name, cases in confusions.items():
        case_indices, *captions = zip(*cases)
        right, wrong = (np.asarray(model.embed_texts(list(column))) for column in captions)
        rows = np.searchsorted(pair_indices, case_indices)
        metrics[f"{name}_accuracy"] = retrieval.prefers_correct_caption(image[rows], right, wrong).mean()
    return metrics
