"""The devices of a run as a mesh, and the sharding of batches over it.

Three axes: ``data`` shards the rows of a batch, ``fsdp`` rows and parameters, ``tensor`` parameters only.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that shard the rows of a batch


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1) -> Mesh:
    """A mesh of data x fsdp x tensor devices; one of the sizes may be -1, for all devices that remain.

    slices: groups of devices with a slow network between them, such as the slices of a TPU multislice, or processes.
        ``data`` must be a multiple of it, and is the only axis that crosses slices.
    """
    devices, sizes = jax.devices(), {"data": data, "fsdp": fsdp, "tensor": tensor}
    free_axes = [axis for axis, size in sizes.items() if size == -1]
    product = math.prod(size for size in sizes.values() if size != -1)
    if len(free_axes) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ValueError(f"config.mesh is {sizes}, but each axis must be 1 or more, and one of them may be -1")
    if product > len(devices) or (free_axes and len(devices) % product):
        raise ValueError(f"config.mesh is {sizes}, but there are {len(devices)} devices to divide")
    if free_axes:
        sizes[free_axes[0]] = len(devices) // product
    shape = tuple(sizes[axis] for axis in AXES)
    if jax.process_count() > 1 and math.prod(shape) < len(devices):
        raise ValueError(
            f"config.mesh is {sizes}, but the {jax.process_count()} processes have {len(devices)} devices, all "
            "of which must be in the mesh"
        )
    if slices < 1 or sizes["data"] % slices:
        raise ValueError(f"config.mesh.slices is {slices}; it must divide config.mesh.data, {sizes['data']}")
    devices = devices[: math.prod(shape)]
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES)
    counts = {
        name: len({getattr(device, name, None) for device in devices}) for name in ("slice_index", "process_index")
    }
    if slices not in counts.values():
        raise ValueError(
            f"config.mesh.slices is {slices}, but the devices belong to {counts['slice_index']} slices and "
            f"{counts['process_index']} processes"
        )
    slice_shape, of_processes = (sizes["data"] // slices, *shape[1:]), counts["slice_index"] != slices
    return Mesh(
        mesh_utils.create_hybrid_device_mesh(
            slice_shape, (slices, 1, 1), devices, process_is_granule=of_processes, allow_split_physical_axes=True
        ),
        AXES,
    )


def num_batch_shards(mesh: Mesh) -> int:
    """The number of shards that the rows of a batch are divided into."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def batch_sharding(mesh: Mesh, batch_axis: int = 0) -> NamedSharding:
    """The sharding of an array whose rows, along ``batch_axis``, are divided over the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * batch_axis, BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def local_batch_shards(mesh: Mesh) -> tuple[int, ...]:
    """Which of the ``num_batch_shards(mesh)`` shards of a batch this process reads: those of its devices."""
    slices = batch_sharding(mesh).devices_indices_map((num_batch_shards(mesh),))
    local_slices = (rows for device, (rows,) in slices.items() if device.process_index == jax.process_index())
    return tuple(sorted({i for rows in local_slices for i in range(num_batch_shards(mesh))[rows]}))


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray], batch_axis: int = 0) -> dict[str, jax.Array]:
    """Turn the rows that this process reads into arrays of the global batch, sharded over the mesh."""
    sharding, local_shards = batch_sharding(mesh, batch_axis), local_batch_shards(mesh)

    def global_array(rows: np.ndarray) -> jax.Array:
        leading, n = (slice(None),) * batch_axis, rows.shape[batch_axis] // len(local_shards)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            i = local_shards.index((index[batch_axis].start or 0) // n) * n
            return rows[*leading, i : i + n]

        shape = (*rows.shape[:batch_axis], n * num_batch_shards(mesh), *rows.shape[batch_axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: global_array(rows) for name, rows in batch.items()}


def gather_to_local_device(mesh: Mesh, tree: Any) -> Any:
    """Arrays of a mesh, whole on this process's first device. All processes of the mesh must call it together."""
    if mesh.size == 1:
        return tree
    gathered = jax.jit(_identity, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), gathered)


def _identity(tree: Any) -> Any:
    return tree
