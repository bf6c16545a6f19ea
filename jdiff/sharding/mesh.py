"""The devices as a mesh, and where batches lie on it.

Three axes: ``data`` cuts the rows of a batch, ``fsdp`` rows and parameters, ``tensor`` parameters alone.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that the rows of a batch are spread over


def make(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh of data x fsdp x tensor devices; one of them may be -1, for as many as there are."""
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
    return Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), AXES)


def shares(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def over_batch(mesh: Mesh) -> NamedSharding:
    """Rows spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def place(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch as arrays of the whole batch, spread over the mesh."""
    sharding = over_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
