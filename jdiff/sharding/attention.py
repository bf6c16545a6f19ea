"""Which attention kernel runs, by the platform of the devices it is for.

cuDNN's on a GPU and a flash kernel on a TPU never write all of softmax(q k) down. Each takes some shapes and types
alone, and what it does not take is computed as anywhere else. Masks are those of captions, whose tokens come first.
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
BLOCK = 128  # rows of queries and of keys that the flash kernel takes together


@cache
def kernel(device: jax.Device, otherwise: Attend, mesh: Mesh | None = None) -> Attend:
    """Attention for devices like one, with the interface of ``otherwise``, which computes what no kernel takes.

    mesh: of the devices, None where there is one. A TPU's kernel is run by each on its own rows and heads; cuDNN's is
    cut up by XLA.
    """
    if device.platform == "gpu" and _since_ampere(device):
        return partial(_cudnn, otherwise)
    if device.platform == "tpu":
        return partial(_flash, otherwise, mesh)
    return otherwise


def _since_ampere(gpu: jax.Device) -> bool:
    """Whether a GPU is NVIDIA's, of a generation that cuDNN has attention for; AMD's capability is a name."""
    capability = getattr(gpu, "compute_capability", "")
    return capability.partition(".")[0].isdecimal() and float(capability) >= 8.0


def takes_cudnn(query: Array) -> bool:
    """Whether cuDNN takes queries of this shape and type.

    A lone query, which a tower's pooling has, is left to XLA: nothing is saved by it.
    """
    half, (_, n, _, d) = query.dtype in (jnp.bfloat16, jnp.float16), query.shape
    return half and n > 1 and d % 8 == 0 and d <= 128


def takes_flash(query: Array, key: Array) -> bool:
    """Whether the flash kernel takes queries and keys of these shapes."""
    d = query.shape[-1]
    return query.shape[1] % BLOCK == 0 and key.shape[1] % BLOCK == 0 and (d <= BLOCK or d % BLOCK == 0)


def _cudnn(otherwise: Attend, query: Array, key: Array, value: Array, *, mask: Array | None, causal: bool) -> Array:
    if not takes_cudnn(query):
        return otherwise(query, key, value, mask=mask, causal=causal)
    n, m = query.shape[1], key.shape[1]
    # Gradients are of even lengths alone: one more of each is added, which nothing sees, and left out again.
    query, key, value = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = None if mask is None else jnp.sum(mask, axis=-1, dtype=jnp.int32)
    if mask is None and m % 2:
        lengths = jnp.full(len(key), m, jnp.int32)
    attended = jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return attended[:, :n]


def _flash(
    otherwise: Attend,
    mesh: Mesh | None,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None,
    causal: bool,
) -> Array:
    if not takes_flash(query, key):
        return otherwise(query, key, value, mask=mask, causal=causal)
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention  # takes a while to load

    mask = jnp.ones(key.shape[:2], bool) if mask is None else mask

    def attend(query: Array, key: Array, value: Array, mask: Array) -> Array:
        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        kinds = SegmentIds(jnp.ones((len(mask), query.shape[2]), jnp.int32), mask.astype(jnp.int32))
        scale = query.shape[-1] ** -0.5
        return flash_attention(query, key, value, segment_ids=kinds, causal=causal, sm_scale=scale).swapaxes(1, 2)

    if mesh is not None:
        heads = "tensor" if query.shape[2] % mesh.shape["tensor"] == 0 else None
        own = PartitionSpec(BATCH, None, heads)
        attend = jax.shard_map(
            attend, mesh=mesh, in_specs=(own, own, own, PartitionSpec(BATCH)), out_specs=own, check_vma=False
        )
    return attend(query, key, value, mask)
