"""The denoising U-Net: residual blocks conditioned on the timestep, and cross-attention to the caption.

Its layers, their order and their constants are those of Stable Diffusion 1.x and 2.x [ldm], which are configurations.
``patch_size``, ``pooled`` and ``scale_shift_norm`` go beyond them. The network takes a timestep and does not depend
on the noise schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff.models.attention import Attend, Attention, dot_product
from jdiff.models.layers import (
    Dense,
    GroupNorm,
    ResidualBlock,
    conv,
    depth_to_space,
    remat_block,
    sinusoids,
    space_to_depth,
    upsample_nearest,
)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the caption and a gated feed-forward layer (GEGLU), each pre-norm residual.

    x: (b, n, width).   context: (b, m, d).   mask: (b, m) bool or None.   Returns (b, n, width).
    """

    heads: int  # attention heads; they divide width
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None) -> Array:
        width = x.shape[-1]

        def attention(name: str) -> Attention:
            return Attention(self.heads, qkv_bias=False, attend=self.attend, dtype=self.dtype, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)

        x = x + attention("attn1")(norm("norm1")(x))
        x = x + attention("attn2")(norm("norm2")(x), context, mask)
        value, gate = jnp.split(Dense(8 * width, dtype=self.dtype, name="ff1")(norm("norm3")(x)), 2, axis=-1)
        return x + Dense(width, dtype=self.dtype, name="ff2")(value * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections, with a skip connection.

    x: (b, h, w, c).   context: (b, m, d).   mask: (b, m) bool or None.   Returns (b, h, w, c).
    """

    heads: int  # attention heads; they divide c
    depth: int = 1  # number of transformer blocks
    groups: int = 32  # of group normalization
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None) -> Array:
        b, h, w, c = x.shape

        def project(y: Array, name: str, kernel_init) -> Array:
            # A 1x1 convolution and a linear layer are the same map; weights files differ only in layout.
            return Dense(c, dtype=self.dtype, kernel_init=kernel_init, name=name)(y)

        y = GroupNorm(self.groups, 1e-6, name="norm")(x).reshape(b, h * w, c)
        y = project(y, "proj_in", nn.initializers.lecun_normal())
        for i in range(self.depth):
            y = TransformerBlock(self.heads, self.attend, self.dtype, name=f"blocks_{i}")(y, context, mask)
        return x + project(y, "proj_out", nn.initializers.zeros).reshape(b, h, w, c)


class UNet(nn.Module):
    """Predicts the training target (eps, x0 or v) from a noised image, its timestep and a caption.

    xt: (b, h, w, c) noised image.   timestep: (b,) float.
    context: (b, m, d) token states of the caption.   mask: (b, m) bool, true on the caption's tokens; None: on all.
    pooled: (b, e) caption embedding of unit length; used only if the field ``pooled`` is true.
    Returns (b, h, w, out_channels) float32.
    """

    channels: Sequence[int] = (320, 640, 1280, 1280)  # width of each level; each but the last halves the side
    attention: Sequence[bool] = (True, True, True, False)  # which levels have transformers; the middle always has one
    heads: Sequence[int] = (8, 8, 8, 8)  # attention heads of each level
    blocks: int = 2  # residual blocks of each level on the way down; one more on the way up
    depth: int = 1  # transformer blocks of each spatial transformer
    groups: int = 32  # of group normalization
    out_channels: int = 4
    patch_size: int = 1  # side of the pixel squares folded into channels before the first convolution
    pooled: bool = False  # whether a projection of the caption embedding is added to the time embedding
    scale_shift_norm: bool = False  # the time embedding scales and shifts norms' outputs, as in ``ResidualBlock``
    attend_to_padding: bool = False  # ignore ``mask`` and attend to padding tokens, as in Stable Diffusion's training
    remat: str = "none"  # activation checkpointing of residual blocks and transformers, a name in ``layers.REMAT``
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(
        self, xt: Array, timestep: Array, context: Array, mask: Array | None = None, pooled: Array | None = None
    ) -> Array:
        top, last = self.channels[0], len(self.channels) - 1
        mask = None if self.attend_to_padding else mask

        residual_block = remat_block(ResidualBlock, self.remat)
        spatial_transformer = remat_block(SpatialTransformer, self.remat)

        def residual(x: Array, features: int, name: str) -> Array:
            return residual_block(
                features, self.groups, scale_shift_norm=self.scale_shift_norm, dtype=self.dtype, name=name
            )(x, time)

        def transformer(x: Array, level: int, name: str) -> Array:
            return spatial_transformer(
                self.heads[level], self.depth, self.groups, attend=self.attend, dtype=self.dtype, name=name
            )(x, context, mask)

        time = sinusoids(timestep, top).astype(xt.dtype)
        time = Dense(4 * top, dtype=self.dtype, name="time1")(time)
        time = Dense(4 * top, dtype=self.dtype, name="time2")(nn.silu(time))
        if self.pooled:
            # Coordinates of a unit vector have variance 1 / dimensions; scale them to unit variance.
            scaled = pooled * pooled.shape[-1] ** 0.5
            time = time + Dense(4 * top, dtype=self.dtype, name="pooled")(scaled.astype(time.dtype))

        x = conv(top, name="conv_in", dtype=self.dtype)(space_to_depth(xt, self.patch_size))
        skips = [x]
        for level, features in enumerate(self.channels):
            for i in range(self.blocks):
                x = residual(x, features, f"down_{level}_residual_{i}")
                if self.attention[level]:
                    x = transformer(x, level, f"down_{level}_transformer_{i}")
                skips.append(x)
            if level < last:
                x = conv(features, stride=2, name=f"down_{level}_sample", dtype=self.dtype)(x)
                skips.append(x)

        x = residual(x, self.channels[-1], "middle_residual_0")
        x = transformer(x, last, "middle_transformer")
        x = residual(x, self.channels[-1], "middle_residual_1")

        for level in reversed(range(len(self.channels))):
            for i in range(self.blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = residual(x, self.channels[level], f"up_{level}_residual_{i}")
                if self.attention[level]:
                    x = transformer(x, level, f"up_{level}_transformer_{i}")
            if level > 0:
                x = conv(self.channels[level], name=f"up_{level}_sample", dtype=self.dtype)(upsample_nearest(x))

        x = nn.silu(GroupNorm(self.groups, name="norm_out")(x))
        x = conv(self.out_channels * self.patch_size**2, zero=True, name="conv_out", dtype=self.dtype)(x)
        return depth_to_space(x, self.patch_size).astype(jnp.float32)
