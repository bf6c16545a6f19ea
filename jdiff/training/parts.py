"""A batch in parts, for its gradient: in turn, where all of it at once is more than memory holds, or in a fixed order,
so that the bits of a step do not depend on how many devices share it.

Rounding makes a + (b + c) another number than (a + b) + c, so a sum over devices depends on their number. In a fixed
order the batch has as many parts on any layout, each small enough to lie on one device; all gradients are brought to
every device, and summed there in pairs, then pairs of pairs, by every device alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jdiff.sharding import mesh as meshes
from jdiff.training.state import TrainState

Rows = Any  # a tree of arrays (rows, ...)
Of = Callable[[TrainState, Rows], Any]  # something made of a state and some rows


@dataclass(frozen=True)
class GradientAccumulation:
    """``count`` parts, one after another; each has some rows of every device, so that none moves.

    shares: over how many devices the rows are spread.
    """

    count: int = 1
    shares: int = 1

    def each(self, of: Of, state: TrainState, rows: Rows) -> Rows:
        """What ``of`` makes of the rows of every part, in the order of ``rows``."""
        if self.count == 1:
            return of(state, rows)
        made = jax.lax.scan(lambda _, part: (None, of(state, part)), None, self._cut(rows))[1]

        def joined(x: jax.Array) -> jax.Array:
            apart = x.reshape(self.count, self.shares, -1, *x.shape[2:])
            return apart.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        return jax.tree.map(joined, made)

    def sum(self, of: Of, state: TrainState, rows: Rows) -> Any:
        """The sum of what ``of`` makes of every part."""
        if self.count == 1:
            return of(state, rows)
        parts = self._cut(rows)
        shapes = jax.eval_shape(of, state, jax.tree.map(lambda x: x[0], parts))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def more(total: Any, part: Rows) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of(state, part)), None

        return jax.lax.scan(more, nothing, parts)[0]

    def whole(self, rows: Rows) -> Rows:
        """The rows of all devices."""
        return rows

    def own(self, rows: Rows) -> Rows:
        """Of the rows of all devices, those that ``sum`` takes."""
        return rows

    def _cut(self, rows: Rows) -> Rows:
        def cut(x: jax.Array) -> jax.Array:
            apart = x.reshape(self.shares, self.count, -1, *x.shape[1:])
            return apart.swapaxes(0, 1).reshape(self.count, -1, *x.shape[1:])

        return jax.tree.map(cut, rows)


@dataclass(frozen=True)
class DeterministicReduction:
    """``count`` parts, a power of two, whatever the layout; as ``GradientAccumulation``, inside ``replicated_step``.

    Every device holds all parameters, moments and averages, and the gradients of all parts, so this is for models of
    which a device holds ``count`` + 5 copies, to compare layouts and to look for faults. It takes two or more devices,
    and two or more parts on each: XLA rounds a program of one device another way, and so it does a loop of one turn.
    """

    count: int
    shares: int

    def each(self, of: Of, state: TrainState, rows: Rows) -> Rows:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self._made(of, state, rows))

    def sum(self, of: Of, state: TrainState, rows: Rows) -> Any:
        def in_pairs(x: jax.Array) -> jax.Array:
            x = jax.lax.all_gather(x, meshes.BATCH, tiled=True)
            while len(x) > 1:
                x = x[0::2] + x[1::2]
            return x[0]

        return jax.tree.map(in_pairs, self._made(of, state, rows))

    def whole(self, rows: Rows) -> Rows:
        return jax.lax.all_gather(rows, meshes.BATCH, tiled=True)

    def own(self, rows: Rows) -> Rows:
        def mine(x: jax.Array) -> jax.Array:
            n = len(x) // self.shares
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(meshes.BATCH) * n, n)

        return jax.tree.map(mine, rows)

    def _made(self, of: Of, state: TrainState, rows: Rows) -> Any:
        """What ``of`` makes of each of this device's parts, one above the other."""
        parts = jax.tree.map(lambda x: x.reshape(self.count // self.shares, -1, *x.shape[1:]), rows)
        return jax.lax.scan(lambda _, part: (None, of(state, part)), None, parts)[1]


def replicated_step(step: Callable, mesh: Mesh) -> Callable:
    """A step of parts in a fixed order, (numbers, state, batch) -> (state, metrics), compiled, done alike by every
    device.

    Between steps the state lies as it did: XLA rounds the update of a part of a parameter another way than of the
    whole, so it is brought together and cut up again outside of the program.
    """
    whole, spread = PartitionSpec(), PartitionSpec(meshes.BATCH)
    alike = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(whole, whole, spread), out_specs=whole, check_vma=False))

    def compiled(numbers: Any, state: TrainState, batch: Rows) -> tuple[TrainState, Any]:
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        state, metrics = alike(numbers, jax.device_put(state, meshes.replicated(mesh)), batch)
        return jax.device_put(state, places), metrics

    return compiled
