"""The devices as a mesh, and where batches and parameters lie on it.

One axis today, ``data``: every device holds all parameters and its share of each batch.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH = ("data",)  # the axes that the rows of a batch are spread over


def make(*, data: int = -1) -> Mesh:
    """A mesh of ``data`` devices, all of them if -1."""
    devices = jax.devices()
    if data == -1:
        data = len(devices)
    if not 1 <= data <= len(devices):
        raise ValueError(f"config.mesh.data is {data}, but there are {len(devices)} devices; set it to -1 to use all")
    return Mesh(np.array(devices[:data]), ("data",))


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
