"""Gradient accumulation, and a deterministic gradient reduction.

``GradientAccumulation`` runs the batch as microbatches under ``lax.scan`` and adds their results, to save activation
memory. ``DeterministicReduction`` sums the results of microbatches in one tree order on every device, so that a step
gives the same bits on any number of devices; it is for debugging. Rounding makes a + (b + c) another number than
(a + b) + c, so a sum over devices depends on how many there are: here the batch has the same number of microbatches on
any layout, each small enough for one device, whose results are gathered on every device and summed there in pairs,
then pairs of pairs.
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
OfRows = Callable[[Rows], Any]


@dataclass(frozen=True)
class GradientAccumulation:
    """``count`` microbatches, one after another; each has rows of every device, so that no row moves.

    num_shards: over how many devices the rows are sharded.
    """

    count: int = 1
    num_shards: int = 1

    def map(self, function: OfRows, rows: Rows) -> Rows:
        """``function`` of every microbatch, row by row in the order of ``rows``."""
        if self.count == 1:
            return function(rows)
        results = jax.lax.scan(lambda _, part: (None, function(part)), None, self._split(rows))[1]

        def join(x: jax.Array) -> jax.Array:
            by_shard = x.reshape(self.count, self.num_shards, -1, *x.shape[2:])
            return by_shard.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        return jax.tree.map(join, results)

    def sum(self, function: OfRows, rows: Rows) -> Any:
        """The sum of ``function`` over the microbatches."""
        if self.count == 1:
            return function(rows)
        microbatches = self._split(rows)
        shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], microbatches))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Rows) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(part)), None

        return jax.lax.scan(add, zeros, microbatches)[0]

    def gather(self, rows: Rows) -> Rows:
        """The rows of all devices: under jit, arrays are global already."""
        return rows

    def local(self, rows: Rows) -> Rows:
        """Of the rows of all devices, those that ``sum`` takes."""
        return rows

    def _split(self, rows: Rows) -> Rows:
        def split(x: jax.Array) -> jax.Array:
            by_shard = x.reshape(self.num_shards, self.count, -1, *x.shape[1:])
            return by_shard.swapaxes(0, 1).reshape(self.count, -1, *x.shape[1:])

        return jax.tree.map(split, rows)


@dataclass(frozen=True)
class DeterministicReduction:
    """``count`` microbatches, a power of two, on any layout; as ``GradientAccumulation``, inside ``replicated_step``.

    Every device holds all parameters, moments and EMAs, and the gradients of all microbatches, so this is for models of
    which a device holds ``count`` + 5 copies. It takes two or more devices, and two or more microbatches on each: XLA
    rounds a program of one device differently, and so it does a loop of one iteration.
    """

    count: int
    num_shards: int

    def map(self, function: OfRows, rows: Rows) -> Rows:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), self._results(function, rows))

    def sum(self, function: OfRows, rows: Rows) -> Any:
        def sum_pairs(x: jax.Array) -> jax.Array:
            x = jax.lax.all_gather(x, meshes.BATCH, tiled=True)
            while len(x) > 1:
                x = x[0::2] + x[1::2]
            return x[0]

        return jax.tree.map(sum_pairs, self._results(function, rows))

    def gather(self, rows: Rows) -> Rows:
        return jax.lax.all_gather(rows, meshes.BATCH, tiled=True)

    def local(self, rows: Rows) -> Rows:
        def shard(x: jax.Array) -> jax.Array:
            n = len(x) // self.num_shards
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(meshes.BATCH) * n, n)

        return jax.tree.map(shard, rows)

    def _results(self, function: OfRows, rows: Rows) -> Any:
        """``function`` of each of this device's microbatches, stacked."""
        microbatches = jax.tree.map(lambda x: x.reshape(self.count // self.num_shards, -1, *x.shape[1:]), rows)
        return jax.lax.scan(lambda _, part: (None, function(part)), None, microbatches)[1]


Reduction = GradientAccumulation | DeterministicReduction


def replicated_step(step: Callable, mesh: Mesh) -> Callable:
    """A step with ``DeterministicReduction``, (hparams, state, batch) -> (state, metrics), compiled to run replicated.

    Between steps the state is sharded as before: XLA rounds the update of a part of a parameter differently from that
    of the whole, so parameters are gathered before the program and sharded again after it.
    """
    replicated, rows = PartitionSpec(), PartitionSpec(meshes.BATCH)
    program = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(replicated, replicated, rows), out_specs=replicated, check_vma=False)
    )

    def run(hparams: Any, state: TrainState, batch: Rows) -> tuple[TrainState, Any]:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        state, metrics = program(hparams, jax.device_put(state, meshes.replicated(mesh)), batch)
        return jax.device_put(state, shardings), metrics

    return run
