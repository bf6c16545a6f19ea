"""Analogies in embedding space: "red circle" - "red" + "blue" is nearest to "blue circle"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Analogy:
    """``start`` - ``minus`` + ``plus`` should be ``answer``. All are captions."""

    start: str
    minus: str
    plus: str
    answer: str


def nearest_vectors(query: np.ndarray, vectors: np.ndarray, count: int = 1) -> np.ndarray:
    """Indices of the ``count`` vectors of greatest cosine similarity with each query, best first.

    query: (q, d).   vectors: (n, d) unit length.   Returns (q, count) int.
    """
    return np.argsort(-(query @ vectors.T), axis=1, kind="stable")[:, :count]


def analogy_accuracy(
    embed: Callable[[list[str]], np.ndarray], analogies: Sequence[Analogy], candidates: Sequence[str]
) -> float:
    """The share of analogies whose answer is nearest among all candidates, the three inputs included.

    embed: captions -> (n, d) unit vectors.   candidates: captions that include every answer.
    Chance is one in ``len(candidates)``.
    """
    words = sorted({word for a in analogies for word in (a.start, a.minus, a.plus)})
    vector = dict(zip(words, np.asarray(embed(words)), strict=True))
    queries = np.stack([vector[a.start] - vector[a.minus] + vector[a.plus] for a in analogies])
    indices = nearest_vectors(queries, np.asarray(embed(list(candidates))))[:, 0]
    return float(np.mean([candidates[i] == a.answer for i, a in zip(indices, analogies, strict=True)]))
