"""The devices as a mesh, and where batches lie on it.

Three axes: ``data`` cuts the rows of a batch, ``fsdp`` rows and parameters, ``tensor`` parameters alone.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that the rows of a batch are spread over


def make(*, data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1) -> Mesh:
    """A mesh of data x fsdp x tensor devices; one of them may be -1, for as many as there are.

    slices: parts of the hardware between which the network is slow, as of a TPU multislice, or processes; ``data``, a
    multiple of them, alone spans them.
    """
    devices, sizes = jax.devices(), {"data": data, "fsdp": fsdp, "tensor": tensor}
    rest = [axis for axis, size in sizes.items() if size == -1]
    said = math.prod(size for size in sizes.values() if size != -1)
    if len(rest) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(f"config.mesh is {sizes}, but each axis must be 1 or more, and one of them may be -1")
    if said > len(devices) or (rest and len(devices) % said):
        raise ValueError(f"config.mesh is {sizes}, but there are {len(devices)} devices to share")
    if rest:
        sizes[rest[0]] = len(devices) // said
    shape = tuple(sizes[axis] for axis in AXES)
    if jax.process_count() > 1 and math.prod(shape) < len(devices):
        raise ValueError(
            f"config.mesh is {sizes}, but {jax.process_count()} processes have {len(devices)} devices, which must all "
            "be used"
        )
    if slices < 1 or sizes["data"] % slices:
        raise ValueError(f"config.mesh.slices is {slices}, which must divide config.mesh.data, {sizes['data']}")
    devices = devices[: math.prod(shape)]
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    found = {by: len({getattr(device, by, None) for device in devices}) for by in ("slice_index", "process_index")}
    if slices not in found.values():
        raise ValueError(
            f"config.mesh.slices is {slices}, but the devices are of {found['slice_index']} slices and "
            f"{found['process_index']} processes"
        )
    within, of_processes = (sizes["data"] // slices, *shape[1:]), found["slice_index"] != slices
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, process_is_granule=of_processes, allow_split_physical_axes=True
        ),
        AXES,
    )


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def over_batch(mesh: Mesh, rows_at: int = 0) -> NamedSharding:
    """Rows, along one axis of an array, spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * rows_at, BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def local_batch_shards(mesh: Mesh) -> tuple[int, ...]:
    """Which of the ``num_batch_shards(mesh)`` shards of a batch this process reads: those that its devices hold."""
    parts = over_batch(mesh).devices_indices_map((num_batch_shards(mesh),))
    own = (part for device, (part,) in parts.items() if device.process_index == jax.process_index())
    return tuple(sorted({i for part in own for i in range(num_batch_shards(mesh))[part]}))


def place(mesh: Mesh, batch: dict[str, np.ndarray], rows_at: int = 0) -> dict[str, jax.Array]:
    """The rows that this process reads as arrays of the whole batch, spread over the mesh. rows_at: their axis."""
    sharding, own = over_batch(mesh, rows_at), local_batch_shards(mesh)

    def whole(rows: np.ndarray) -> jax.Array:
        before, n = (slice(None),) * rows_at, rows.shape[rows_at] // len(own)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            i = own.index((index[rows_at].start or 0) // n) * n
            return rows[*before, i : i + n]

        shape = (*rows.shape[:rows_at], n * num_batch_shards(mesh), *rows.shape[rows_at + 1 :])
        return jax.make_array_from_callback(shape, sharding, part)

    return {name: whole(rows) for name, rows in batch.items()}


def gather_to_local_device(mesh: Mesh, tree: Any) -> Any:
    """Arrays that lie on a mesh, whole on this process's first device. All processes of the mesh ask together."""
    if mesh.size == 1:
        return tree
    whole = jax.jit(_same, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def _same(tree: Any) -> Any:
    return tree
