"""CLIP's ResNet vision tower: average pooling before each stride, and attention pooling at the end [clip sec. 2.4]."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff.models.attention import Attend, Attention, dot_product
from jdiff.models.convolution import Conv
from jdiff.models.layers import l2_normalize, remat_block, standardize


class FrozenBatchNorm(nn.Module):
    """Batch normalization with fixed statistics: those stored with the pretrained weights.

    Training does not update them either, because statistics of a small batch would be worse. They are parameters
    without a gradient. x: (b, h, w, c).
    """

    epsilon: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        scale, bias = (
            self.param(n, i, (c,)) for n, i in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )
        mean, variance = (
            jax.lax.stop_gradient(self.param(n, i, (c,)))
            for n, i in (("mean", nn.initializers.zeros), ("variance", nn.initializers.ones))
        )
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * gain
        return (x * gain[None, None, None] + shift[None, None, None]).astype(x.dtype)


def _pooled(x: Array, stride: int) -> Array:
    """Average pooling over squares of stride x stride pixels."""
    return x if stride == 1 else nn.avg_pool(x, (stride, stride), (stride, stride))


class Bottleneck(nn.Module):
    """A bottleneck residual block: 1x1, 3x3 and 1x1 convolutions, added to the input. x: (b, h, w, c).

    Returns (b, h/stride, w/stride, 4 features).
    """

    features: int  # channels of the inner convolutions
    stride: int = 1  # by average pooling
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def step(x: Array, features: int, size: int, name: str) -> Array:
            x = Conv(features, (size, size), padding="SAME", use_bias=False, dtype=self.dtype, name=f"conv{name}")(x)
            return FrozenBatchNorm(name=f"norm{name}")(x)

        y = nn.relu(step(x, self.features, 1, "1"))
        y = nn.relu(step(y, self.features, 3, "2"))
        y = step(_pooled(y, self.stride), 4 * self.features, 1, "3")
        if self.stride > 1 or x.shape[-1] != 4 * self.features:
            x = step(_pooled(x, self.stride), 4 * self.features, 1, "_shortcut")
        return nn.relu(y + x)


class ResNetTower(nn.Module):
    """Images to one state per square of 32 x 32 pixels, and one embedding.

    images: (b, h, w, 3) floats in [-1, 1].
    Returns hidden (b, (image_size / 32)**2, 32 width) and embedding (b, embed_dim) of unit length.
    """

    image_size: int  # side of the images, a multiple of 32
    layers: Sequence[int] = (3, 4, 6, 3)  # blocks of each of the four stages
    width: int = 64  # channels of the stem, 64 in a plain ResNet
    heads: int = 32  # of the attention pooling, width / 2 in CLIP's
    embed_dim: int = 1024  # of the embedding shared with the text tower
    mean: Sequence[float] = (0.5, 0.5, 0.5)  # per channel, of the training images' pixels in [0, 1]
    std: Sequence[float] = (0.5, 0.5, 0.5)  # likewise
    remat: str = "none"  # activation checkpointing of the blocks, a name in ``layers.REMAT``
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        x = standardize(images, self.mean, self.std)
        for i, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), 1):
            x = Conv(
                features, (3, 3), (stride, stride), ((1, 1), (1, 1)), use_bias=False, dtype=self.dtype, name=f"conv{i}"
            )(x)
            x = nn.relu(FrozenBatchNorm(name=f"norm{i}")(x))
        x = _pooled(x, 2)
        bottleneck = remat_block(Bottleneck, self.remat)
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                x = bottleneck(self.width * 2**stage, stride, self.dtype, name=f"stage_{stage}_{i}")(x)
        hidden = x.reshape(x.shape[0], -1, x.shape[-1])
        # The query is the mean of all states; the mean is also prepended to the keys and values.
        y = jnp.concatenate([hidden.mean(1, keepdims=True), hidden], axis=1)
        length = 1 + (self.image_size // 32) ** 2
        y = y + self.param("positions", nn.initializers.normal(y.shape[-1] ** -0.5), (length, y.shape[-1]))[None]
        pool = Attention(self.heads, self.embed_dim, attend=self.attend, dtype=self.dtype, name="pool")
        return hidden, l2_normalize(pool(y[:, :1], y)[:, 0].astype(jnp.float32))
