"""The arithmetic of meanings: "red circle" - "red" + "blue" is nearest to "blue circle"."""

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


def nearest(query: np.ndarray, vectors: np.ndarray, count: int = 1) -> np.ndarray:
    """Places of the ``count`` vectors of greatest cosine with each query, best first.

    query: (q, d).   vectors: (n, d) unit length.   Returns (q, count) int.
    """
    return np.argsort(-(query @ vectors.T), axis=1, kind="stable")[:, :count]


def accuracy(
    embed: Callable[[list[str]], np.ndarray], analogies: Sequence[Analogy], candidates: Sequence[str]
) -> float:
    """How often the right caption is nearest among all candidates; the three inputs are left in.

    embed: captions -> (n, d) unit vectors.   candidates: every answer, among others.
    Chance is one in ``len(candidates)``.
    """
    words = sorted({word for a in analogies for word in (a.start, a.minus, a.plus)})
    vector = dict(zip(words, np.asarray(embed(words)), strict=True))
    queries = np.stack([vector[a.start] - vector[a.minus] + vector[a.plus] for a in analogies])
    found = nearest(queries, np.asarray(embed(list(candidates))))[:, 0]
    return float(np.mean([candidates[i] == a.answer for i, a in zip(found, analogies, strict=True)]))
