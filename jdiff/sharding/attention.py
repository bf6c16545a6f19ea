"""Fused attention kernels by platform: cuDNN's on a GPU, a Pallas flash kernel on a TPU.

Neither materializes softmax(q k). Each supports certain shapes and dtypes; all others, and all other platforms, use the
plain implementation. Masks are those of captions, whose tokens come first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from jdiff.sharding.mesh import BATCH

Attend = Callable[..., Array]
BLOCK = 128  # queries and keys per block of the flash kernel


@cache
def kernel(device: jax.Device, fallback: Attend, mesh: Mesh | None = None) -> Attend:
    """The attention function for the platform of a device, with the interface of ``fallback``.

    fallback: the plain implementation, for what no kernel supports.
    mesh: that the program is sharded over, None for one device. The TPU kernel runs under ``shard_map``, on each
        device's own rows and heads; cuDNN's is partitioned by XLA.
    """
    if device.platform == "gpu" and _is_ampere_or_newer(device):
        return partial(_cudnn, fallback)
    if device.platform == "tpu":
        return partial(_flash, fallback, mesh)
    return fallback


def _is_ampere_or_newer(gpu: jax.Device) -> bool:
    """Whether a GPU has compute capability 8.0 or more; AMD's capability is a name such as gfx90a."""
    capability = getattr(gpu, "compute_capability", "")
    return capability.partition(".")[0].isdecimal() and float(capability) >= 8.0


def cudnn_supports(query: Array) -> bool:
    """Whether cuDNN attends with queries of this shape and dtype.

    A single query, as in attention pooling, goes to XLA: a fused kernel would save nothing.
    """
    half, (_, n, _, d) = query.dtype in (jnp.bfloat16, jnp.float16), query.shape
    return half and n > 1 and d % 8 == 0 and d <= 128


def flash_supports(query: Array, key: Array) -> bool:
    """Whether the flash kernel attends with queries and keys of these shapes."""
    d = query.shape[-1]
    return query.shape[1] % BLOCK == 0 and key.shape[1] % BLOCK == 0 and (d <= BLOCK or d % BLOCK == 0)


def _cudnn(fallback: Attend, query: Array, key: Array, value: Array, *, mask: Array | None, causal: bool) -> Array:
    if not cudnn_supports(query):
        return fallback(query, key, value, mask=mask, causal=causal)
    n, m = query.shape[1], key.shape[1]
    # The backward pass needs even lengths: an odd one is padded by one position, masked as a key and cut as a query.
    query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = None if mask is None else jnp.sum(mask, axis=-1, dtype=jnp.int32)
    if mask is None and m % 2:
        lengths = jnp.full(len(key), m, jnp.int32)
    output = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return output[:, :n]


def _flash(
    fallback: Attend,
    mesh: Mesh | None,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None,
    causal: bool,
) -> Array:
    if not flash_supports(query, key):
        return fallback(query, key, value, mask=mask, causal=causal)
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention  # slow to import

    mask = jnp.ones(key.shape[:2], bool) if mask is None else mask

    def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        segment_ids = SegmentIds(jnp.ones((len(mask), query.shape[2]), jnp.int32), mask.astype(jnp.int32))
        scale = query.shape[-1] ** -0.5
        return flash_attention(query, key, value, segment_ids=segment_ids, causal=causal, sm_scale=scale).swapaxes(1, 2)

    if mesh is not None:
        heads = "tensor" if query.shape[2] % mesh.shape["tensor"] == 0 else None
        rows_and_heads = PartitionSpec(BATCH, None, heads)
        attend = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(*[rows_and_heads] * 3, PartitionSpec(BATCH)),
            out_specs=rows_and_heads,
            check_vma=False,
        )
    return attend(query, key, value, mask)
