"""What a text-to-image model is measured by: images for a split's captions, judged by the data's evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from jdiff.evaluation import prompt_accuracy
from jdiff.evaluation.evaluators import Evaluator, Rates, Splits

GRID_IMAGES, COLUMNS = 64, 8  # of the picture of each guidance scale


class Draw(Protocol):
    """Draws images (n, h, w, 3) uint8 for prompts at a guidance scale."""

    def __call__(
        self, scale: float, prompts: Sequence[str], *, negative: Any = "", seed: int | Sequence[int] = 0
    ) -> np.ndarray: ...


def sampler_metrics(
    draw: Draw, evaluator: Evaluator, splits: Splits, examples: Sequence[dict], num: int, scales: Sequence[float]
) -> tuple[dict[str, Any], dict[float, tuple[np.ndarray, list[str]]]]:
    """Draw a split's captions at every guidance scale and judge the images, where the evaluator can.

    Returns metrics, {"prompts", "scales": {scale: rates}, ...}, and for each scale images for a grid with captions.
    """
    indices = evaluator.choose(examples, num)
    captions, chosen_examples = [evaluator.caption(examples[i]) for i in indices], [examples[i] for i in indices]
    metrics: dict[str, Any] = {"prompts": len(indices), "scales": {}}
    grids = {}
    for scale in scales:
        images = draw(scale, captions, seed=0)
        grid_images, grid_captions = images[:GRID_IMAGES], captions[:GRID_IMAGES]
        if evaluator.shows_references:
            references = np.stack([e["image"] for e in chosen_examples[:GRID_IMAGES]])
            grid_images, grid_captions = _below_references(references, grid_images, grid_captions)
        grids[scale] = grid_images, grid_captions
        metrics["scales"][f"{scale:g}"] = evaluator.judge(images, chosen_examples, splits)
    return metrics | evaluator.coverage(chosen_examples, splits), grids


def negative_prompt_metrics(
    draw: Callable[..., np.ndarray], evaluator: Evaluator, num: int
) -> dict[str, list[dict[str, float]]]:
    """How many of the readable images show what is to be avoided: without and with it as the negative prompt.

    draw: (prompts, negative=, seed=) -> images.   The counts are of images that could be read.
    """
    metrics = {}
    for name, cases in evaluator.negative_prompt_cases().items():
        cases = [cases[i % len(cases)] for i in range(num)]
        metrics[name] = []
        for negative in ([""] * num, [case.negative for case in cases]):
            images = draw([case.prompt for case in cases], negative=negative, seed=range(num))
            metrics[name].append(prompt_accuracy.occurrence_rate([case.is_shown for case in cases], images))
    return metrics


def shares(rates: Rates) -> dict[str, float]:
    """The share of each attribute, without its interval."""
    return {name: rate["share"] for name, rate in rates.items()}


def _below_references(references: np.ndarray, images: np.ndarray, captions: list[str]) -> tuple[np.ndarray, list[str]]:
    """Rows of real images, each with the generated ones beneath it, for a grid whose captions are of the latter.

    references, images: (n, h, w, 3).
    """
    shape, missing = references.shape[1:], -len(references) % COLUMNS
    blank = np.full((missing, *shape), 208, np.uint8)
    rows = [np.concatenate([part, blank]).reshape(-1, COLUMNS, *shape) for part in (references, images)]
    rows_of_captions = np.array([*captions, *[""] * missing], dtype=object).reshape(-1, COLUMNS)
    grid_captions = np.stack([np.full_like(rows_of_captions, ""), rows_of_captions], axis=1)
    return np.stack(rows, axis=1).reshape(-1, *shape), grid_captions.reshape(-1).tolist()
