"""The pre-norm transformer that CLIP's two towers share [clip sec. 2.4]."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax import Array

from jdiff.models.attention import Attend, Attention, dot_product
from jdiff.models.layers import ACTIVATIONS, Dense, remat_block


def feed_forward(x: Array, ratio: float, activation: str, dtype) -> Array:
    """A two-layer MLP whose hidden width is ``ratio`` times x's.

    Call it inside a compact module, which then owns the layers ``mlp_1`` and ``mlp_2``. activation: in ``ACTIVATIONS``.
    """
    width = x.shape[-1]
    y = ACTIVATIONS[activation](Dense(round(width * ratio), dtype=dtype, name="mlp_1")(x))
    return Dense(width, dtype=dtype, name="mlp_2")(y)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). Fields as in ``Transformer``.

    x: (b, n, width).   mask: (b, n) bool, true on tokens that may be attended to; None allows all.
    """

    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    causal: bool = False
    epsilon: float = 1e-5
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_1")(x)
        y = Attention(self.heads, causal=self.causal, attend=self.attend, dtype=self.dtype, name="attention")(
            y, mask=mask
        )
        x = x + y
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_2")(x)
        return x + feed_forward(y, self.mlp_ratio, self.activation, self.dtype)


class Transformer(nn.Module):
    """A stack of ``Block``s, without a final norm.

    x: (b, n, width).   mask: (b, n) bool, true on tokens that may be attended to; None allows all.
    Returns the states after each block, each (b, n, width).
    """

    layers: int  # number of blocks
    heads: int  # attention heads; they divide width
    mlp_ratio: float = 4.0  # hidden width of the MLP over width
    activation: str = "gelu"  # of the MLP, a name in ``layers.ACTIVATIONS``
    causal: bool = False  # hide later tokens
    epsilon: float = 1e-5  # of layer normalization
    remat: str = "none"  # activation checkpointing of the blocks, a name in ``layers.REMAT``
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> list[Array]:
        states, block = [], remat_block(Block, self.remat)
        for i in range(self.layers):
            x = block(
                self.heads,
                self.mlp_ratio,
                self.activation,
                self.causal,
                self.epsilon,
                self.attend,
                self.dtype,
                name=f"layers_{i}",
            )(x, mask)
            states.append(x)
        return states
