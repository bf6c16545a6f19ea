"""Multi-head attention, of a sequence to itself or to a caption."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype
from jax import Array

from jdiff.models.layers import Dense

Attend = Callable[..., Array]


def dot_product(query: Array, key: Array, value: Array, *, mask: Array | None, causal: bool) -> Array:
    """softmax(q k / sqrt(d)) v [attention eq. 1].

    query: (b, n, heads, d).   key, value: (b, m, heads, d).
    mask: (b, m) bool, true where a key may be seen; None shows all.
    Returns (b, n, heads, d).
    """
    if mask is not None:
        mask = mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def _bias_held(x: Array, kernel: Array, bias: Array | None, *, dtype) -> list[Array | None]:
    return promote_dtype(x, kernel, None if bias is None else jax.lax.stop_gradient(bias), dtype=dtype)


class Attention(nn.Module):
    """Attention with its four projections.

    A bias of the keys adds the same to all that a query compares, which a softmax does not see. Its gradient is 0 but
    for rounding, of which an optimizer like Adam would make full steps; so it stays what it is.

    x: (b, n, width).   context: (b, m, any) keys and values come from; x itself if None.
    mask: (b, m) bool over the context; a row must show at least one key.
    Returns (b, n, features); as many features as x has if not said.
    """

    heads: int
    features: int | None = None
    qkv_bias: bool = True
    causal: bool = False
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        context = x if context is None else context
        width = x.shape[-1]

        def heads_of(source: Array, name: str, **more) -> Array:
            projected = Dense(width, use_bias=self.qkv_bias, dtype=self.dtype, name=name, **more)(source)
            return projected.reshape(*source.shape[:2], self.heads, width // self.heads)

        query, value = heads_of(x, "q"), heads_of(context, "v")
        key = heads_of(context, "k", promote_dtype=_bias_held)
        seen = self.attend(query, key, value, mask=mask, causal=self.causal)
        return Dense(self.features or width, dtype=self.dtype, name="out")(seen.reshape(x.shape))
