"""Random keys by name. Noise belongs to an example, not to a device.

Every draw of a training step is keyed by (seed, stream name, step, index of the example in
the global batch), so any number of devices, microbatches or restarts see the same noise.
No other file makes a root key.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def stream(seed: ArrayLike, name: str) -> Array:
    """The key of one named stream of a seed; streams of different names are independent."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)


def example_keys(key: Array, step: int | Array, index: Array) -> Array:
    """One key per example of one step.

    key: a stream.   index: (b,) index of each row in the global batch.
    Returns (b,) keys.
    """
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(at_step, i))(index)


def image_keys(seeds: Array) -> Array:
    """One key per sampled image, from its own seed alone. seeds: (b,) integers. Returns (b,) keys."""
    return jax.vmap(lambda seed: stream(seed, "image"))(jnp.asarray(seeds, jnp.uint32))


def normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise, drawn per example. keys: (b,). Returns (b, *shape) float32."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
