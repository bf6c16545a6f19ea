"""Hyperparameters that are passed to the jitted training step as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from jax import Array
from jax.typing import ArrayLike

from jdiff.levels import Level

FIELDS = ("seed", "optimizer", "ema_decays", "caption_dropout", "schedule_table", "weighting_index")


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=())
@dataclass(frozen=True)
class TracedHyperparameters:
    """Scalars and tables that a compiled step takes as arguments.

    Two configs that differ only in these reuse one compiled program, and a sweep vmaps over them.

    seed: of all that training draws.   optimizer: float arguments of the optimizer, by name.
    ema_decays: of EMAs with a constant decay.   caption_dropout: share of captions replaced by the empty one.
    schedule_table: rates of the noise schedule, (T + 1,), and weighting_index: the place of the loss weighting among
        those that a sweep compares; None where a step is compiled for its own.
    """

    seed: ArrayLike
    optimizer: dict[str, ArrayLike]
    ema_decays: tuple[ArrayLike, ...]
    caption_dropout: ArrayLike
    schedule_table: Level | None = None
    weighting_index: int | Array | None = None
