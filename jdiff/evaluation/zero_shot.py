"""Zero-shot classification: images classified by the names of the classes alone [clip sec. 3.1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from jdiff.text import read_lines

PROMPTS = epath.Path(__file__).parent / "templates.txt"  # the 80 templates of CLIP's evaluation on ImageNet


def read_templates(path: epath.PathLike = PROMPTS) -> list[str]:
    """Read prompt templates, one per line, with {} in place of the class name. Raises ValueError."""
    templates = read_lines(path)
    invalid_lines = [line for line in templates if line.count("{}") != 1]
    if invalid_lines or not templates:
        raise ValueError(
            f"{path} must have one {{}} in each line, for the class name; found {invalid_lines[:1] or 'no line'}"
        )
    return templates


def class_embeddings(
    embed_texts: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """One unit vector for each class: the normalized mean over templates of the sentences' unit vectors.

    embed_texts: sentences to unit vectors (n, d).   Returns (names, d).
    """
    sentences = [template.replace("{}", name) for name in names for template in templates]
    means = np.asarray(embed_texts(sentences)).reshape(len(names), len(templates), -1).mean(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def accuracy(image: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 accuracy, and the mean over classes of their top-1 accuracy.

    image: (n, d), classes: (m, d) unit vectors.   labels: (n,) the class of each image.   A tie counts against.
    """
    similarity = image @ classes.T
    true_similarity = similarity[np.arange(len(image)), labels]
    better = np.sum(similarity >= true_similarity[:, None], axis=1) - 1
    per_class = [np.mean(better[labels == label] < 1) for label in np.unique(labels)]
    return {
        "top1": float(np.mean(better < 1)),
        "top5": float(np.mean(better < 5)),
        "per_class": float(np.mean(per_class)),
    }
