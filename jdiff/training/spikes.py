"""Updates that are skipped: of a loss or a gradient that is not finite, or far above those of the steps before.

A value is a spike where it exceeds the median m of the last ``WINDOW`` accepted steps by more than 6 robust standard
deviations, 1.4826 times the median of |value - m|, and by a multiple of |m|, so that steps which hardly vary are not
judged by their noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

WINDOW = 64
SIGMAS = 6.0
MULTIPLES = (1.0, 9.0)  # of the median, by which the loss and the norm of the gradient exceed it at least


@flax.struct.dataclass
class Health:
    """values: (2, WINDOW) the loss and the norm of the gradient of the last accepted steps, as a ring.

    num_accepted, num_skipped: () int32 steps so far.   in_a_row: () int32 steps skipped since the last accepted one.
    """

    values: Array
    num_accepted: Array
    num_skipped: Array
    in_a_row: Array


def initial_health() -> Health:
    """Of no steps."""
    return Health(jnp.zeros((2, WINDOW), jnp.float32), jnp.int32(0), jnp.int32(0), jnp.int32(0))


def judge(health: Health, loss: Array, grad_norm: Array) -> tuple[Array, Health]:
    """Whether a step is accepted, () bool, and the health after it. Until ``WINDOW`` are, only what is not finite is
    skipped."""
    value = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    finite = jnp.isfinite(value).all()
    median = jnp.median(health.values, axis=1)
    deviation = 1.4826 * jnp.median(jnp.abs(health.values - median[:, None]), axis=1)
    limit = median + jnp.maximum(SIGMAS * deviation, jnp.asarray(MULTIPLES, jnp.float32) * jnp.abs(median))
    spike = (health.num_accepted >= WINDOW) & (value > limit).any()
    is_accepted = finite & ~spike
    skip = (~is_accepted).astype(jnp.int32)
    values = health.values.at[:, health.num_accepted % WINDOW].set(value)
    return is_accepted, Health(
        values=jnp.where(is_accepted, values, health.values),
        num_accepted=health.num_accepted + 1 - skip,
        num_skipped=health.num_skipped + skip,
        in_a_row=(health.in_a_row + 1) * skip,
    )


def where_accepted(is_accepted: Array, new: Any, old: Any) -> Any:
    """The new tree, or the old one of a step that is skipped."""
    return jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), new, old)


class Guard:
    """Watches the health of a run from the host, at the steps that log.

    max_in_a_row: skipped steps after which training cannot go on as it does.   report: takes a sentence.
    """

    def __init__(self, max_in_a_row: int, report: Callable[[str], None]):
        self._max_in_a_row, self._report = max_in_a_row, report
        self._num_skipped = 0

    def check(self, health: Health | None, step: int) -> tuple[int, bool]:
        """How many steps in a row were skipped, and whether these are too many. Reports skipped steps."""
        if health is None:
            return 0, False
        num_skipped, in_a_row = int(health.num_skipped), int(health.in_a_row)
        if num_skipped > self._num_skipped:
            num_new = num_skipped - self._num_skipped
            self._report(
                f"{num_new} updates up to step {step} were skipped: the loss or the gradient was not finite, or far "
                f"above that of the {WINDOW} steps before"
            )
        self._num_skipped = num_skipped
        return in_a_row, in_a_row >= self._max_in_a_row
