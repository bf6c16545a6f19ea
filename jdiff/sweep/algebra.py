"""The cells of a sweep as sums and products: each is a dict of a config's dotted keys and their values.

product(grid({"train.batch_size": (64, 128)}), chain(first, second), seeds(5))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product as combinations
from typing import Any

Cells = list[dict[str, Any]]
SEED = ".seed"  # the end of the keys of repetitions


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
    """The cells of all sweeps, one sweep after another."""
    return [cell for cells in sweeps for cell in cells]


def product(*sweeps: Cells) -> Cells:
    """Every cell of one sweep with every cell of another. Raises ``ValueError`` where both set the same key."""
    cells: Cells = []
    for factors in combinations(*sweeps):
        cell: dict[str, Any] = {}
        for factor in factors:
            if common_keys := cell.keys() & factor.keys():
                raise ValueError(f"two factors of a product set {', '.join(sorted(common_keys))}")
            cell |= factor
        cells.append(cell)
    return cells


def seeds(count: int, key: str = "train" + SEED) -> Cells:
    """Repetitions with seeds 0 to ``count`` - 1. Cells of one seed share all random draws."""
    return [{key: seed} for seed in range(count)]
