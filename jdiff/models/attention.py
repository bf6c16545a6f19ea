"""Multi-head attention [attention]: self-attention, and cross-attention to a caption."""

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
    mask: (b, m) bool, true where a key may be attended to; None allows all.   causal: hide later keys.
    Returns (b, n, heads, d).
    """
    if mask is not None:
        mask = mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def _promote_with_constant_bias(x: Array, kernel: Array, bias: Array | None, *, dtype) -> list[Array | None]:
    """Flax's ``promote_dtype``, with a bias that receives no gradient."""
    return promote_dtype(x, kernel, None if bias is None else jax.lax.stop_gradient(bias), dtype=dtype)


class Attention(nn.Module):
    """Attention with its four projections.

    The bias of the keys is not trained. It adds the same number to all logits of a query, which the softmax cancels,
    so its true gradient is 0; what rounding leaves of it, an optimizer like Adam would scale up to full steps.

    x: (b, n, width) the queries' source.   context: (b, m, any) the keys' and values' source; None takes x.
    mask: (b, m) bool over the context; each row must have at least one key that is true.
    Returns (b, n, features).
    """

    heads: int  # attention heads; they divide width
    features: int | None = None  # of the output; None takes x's width
    qkv_bias: bool = True  # biases of the query, key and value projections
    causal: bool = False  # hide later keys
    attend: Attend = dot_product  # the attention function, with the signature of ``dot_product``
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        context = x if context is None else context
        width = x.shape[-1]

        def project(source: Array, name: str, **options) -> Array:
            rows = Dense(width, use_bias=self.qkv_bias, dtype=self.dtype, name=name, **options)(source)
            return rows.reshape(*source.shape[:2], self.heads, width // self.heads)

        query, value = project(x, "q"), project(context, "v")
        key = project(context, "k", promote_dtype=_promote_with_constant_bias)
        output = self.attend(query, key, value, mask=mask, causal=self.causal)
        return Dense(self.features or width, dtype=self.dtype, name="out")(output.reshape(x.shape))
