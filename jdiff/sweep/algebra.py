"""What the cells of a sweep are, written as sums and products: each a dict from a config's dotted key to its value.

product(grid({"train.batch_size": (64, 128)}), chain(first, second), seeds(5))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product as combinations
from typing import Any

Cells = list[dict[str, Any]]
SEED = ".seed"  # what the keys of repetitions end with


def grid(axes: Mapping[str, Sequence]) -> Cells:
    """Every combination of values, the last key's changing fastest. axes: values by dotted key."""
    return [dict(zip(axes, values)) for values in combinations(*axes.values())]


def zipped(axes: Mapping[str, Sequence]) -> Cells:
    """The first values of all keys, then the second, and so on. Raises ``ValueError`` where one key has more."""
    if len({len(values) for values in axes.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in axes.items())
        raise ValueError(f"zipped takes as many values of every key, but {lengths}")
    return [dict(zip(axes, values)) for values in zip(*axes.values())]


def chain(*sweeps: Cells) -> Cells:
    """The cells of one sweep after those of another."""
    return [cell for cells in sweeps for cell in cells]


def product(*sweeps: Cells) -> Cells:
    """Every cell of one sweep with every cell of another. Raises ``ValueError`` where both say the same key."""
    made: Cells = []
    for parts in combinations(*sweeps):
        cell: dict[str, Any] = {}
        for part in parts:
            if both := cell.keys() & part.keys():
                raise ValueError(f"two factors of a product say {', '.join(sorted(both))}")
            cell |= part
        made.append(cell)
    return made


def seeds(count: int, key: str = "train" + SEED) -> Cells:
    """Repetitions, whose differences are chance: seeds 0 to ``count``. Cells of one seed share all that it draws."""
    return [{key: seed} for seed in range(count)]
