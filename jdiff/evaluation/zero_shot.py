"""Pictures told apart by the names of what they show alone [clip sec. 3.1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

PROMPTS = epath.Path(__file__).parent / "templates.txt"  # the 80 that CLIP was measured with


def read_templates(path: epath.PathLike = PROMPTS) -> list[str]:
    """Sentences with a place {} for a name, one a line. Raises ValueError."""
    found = [line.strip() for line in epath.Path(path).read_text().splitlines() if line.strip()]
    wrong = [line for line in found if line.count("{}") != 1]
    if wrong or not found:
        raise ValueError(f"{path} must have one {{}} in each line, where the name goes; found {wrong[:1] or 'no line'}")
    return found


def class_vectors(
    embed_texts: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """One unit vector for each name: of the mean of its sentences' unit vectors.

    embed_texts: sentences to unit vectors (n, d).   Returns (names, d).
    """
    sentences = [template.replace("{}", name) for name in names for template in templates]
    means = np.asarray(embed_texts(sentences)).reshape(len(names), len(templates), -1).mean(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def accuracy(image: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of images whose class is nearest, is among the five nearest, and the mean of the classes' shares.

    image: (n, d), classes: (m, d) unit vectors.   labels: (n,) the class of each image.   A tie counts against.
    """
    similarity = image @ classes.T
    own = similarity[np.arange(len(image)), labels]
    better = np.sum(similarity >= own[:, None], axis=1) - 1
    per_class = [np.mean(better[labels == label] < 1) for label in np.unique(labels)]
    return {
        "top1": float(np.mean(better < 1)),
        "top5": float(np.mean(better < 5)),
        "per_class": float(np.mean(per_class)),
    }
