"""Layers that the networks share. Layouts: images NHWC, kernels HWIO, text (b, n, d)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff.models.convolution import Conv


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
}


def _products(primitive, *args, **params) -> bool:
    """Checkpoint policy: save matmul and convolution outputs, the costliest to recompute; recompute attention's."""
    return primitive.name == "conv_general_dilated" or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(
        primitive, *args, **params
    )


REMAT = {"none": None, "blocks": jax.checkpoint_policies.nothing_saveable, "products": _products}


def remat_block(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """Activation checkpointing: a block that recomputes activations in the backward pass [checkpointing].

    remat: a name in ``REMAT``. "none" saves all activations, "products" the outputs of matmuls and convolutions,
        "blocks" only each block's input.
    """
    return block if remat == "none" else nn.remat(block, policy=REMAT[remat])


class Dense(nn.Dense):
    """A linear layer that flattens all leading axes into one.

    The gradient of the kernel sums over batch and position. XLA's CPU backend takes up to twice as long for a sum
    over two axes as for one over the flattened axis.
    """

    def __call__(self, x: Array) -> Array:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class GroupNorm(nn.Module):
    """Group normalization in one pass over the image [groupnorm].

    Sums and sums of squares are taken per channel in float32 and folded into one scale and one shift per image and
    channel, so the image is read once for statistics and once for the result.

    x: (b, h, w, c).
    modulation: (scale, shift), (b, c) each: the output y becomes y (1 + scale) + shift [film]. It is folded into the
        norm's own scale and shift, so it costs no further pass over the image.
    Returns the shape and type of x.
    """

    groups: int = 32  # groups of channels that share a mean and a variance
    epsilon: float = 1e-5  # added to the variance

    @nn.compact
    def __call__(self, x: Array, modulation: tuple[Array, Array] | None = None) -> Array:
        b, h, w, c = x.shape
        groups = self.groups
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        wide = x.astype(jnp.float32)
        moments = jnp.stack([wide.mean((1, 2)), (wide * wide).mean((1, 2))])
        mean, square = moments.reshape(2, b, groups, c // groups).mean(-1)
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + self.epsilon)
        mean, inverse = (jnp.repeat(a, c // groups, axis=-1) for a in (mean, inverse))
        gain = inverse * scale[None]
        shift = bias[None] - mean * gain
        if modulation is not None:
            extra_scale, extra_shift = modulation
            gain, shift = gain * (1 + extra_scale), shift * (1 + extra_scale) + extra_shift
        return (wide * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)


def sinusoids(position: Array, width: int) -> Array:
    """Sinusoidal embedding of a position, cosines first, as Stable Diffusion's weights expect.

    Embeds the U-Net's timestep [ddpm sec. 3.3] and initializes the towers' learned positions.

    position: (...) numbers, here 0..1000.   width: even.   Returns (..., width) float32.
    """
    half = width // 2
    frequency = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.multiply.outer(position.astype(jnp.float32), frequency)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def l2_normalize(x: Array) -> Array:
    """Vectors of length one along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def standardize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Normalize pixels with per-channel statistics: (pixel - mean) / std, with pixels in [0, 1].

    images: (b, h, w, c) in [-1, 1]; converted to [0, 1] on the way.   mean, std: (c) numbers for pixels in [0, 1].
    Returns (b, h, w, c); ``images`` unchanged where mean and std are 0.5.
    """
    gain, shift = 0.5 / np.asarray(std), (0.5 - np.asarray(mean)) / np.asarray(std)
    if np.all(gain == 1) and np.all(shift == 0):
        return images
    gain, shift = (jnp.asarray(a, images.dtype)[None, None, None] for a in (gain, shift))
    return images * gain + shift


def conv(features: int, size: int = 3, stride: int = 1, *, zero: bool = False, name: str, dtype=None) -> Conv:
    """A square convolution, padded so that stride 1 keeps the side and stride 2 halves an even side.

    zero: initialize the kernel to zero.
    """
    kernel_init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    pads = (((size - 1) // 2,) * 2,) * 2
    return Conv(features, (size, size), (stride, stride), pads, kernel_init=kernel_init, dtype=dtype, name=name)


def upsample_nearest(x: Array) -> Array:
    """Nearest-neighbour upsampling by 2. (b, h, w, c) -> (b, 2h, 2w, c)."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection, optionally conditioned on a time embedding between them.

    x: (b, h, w, c).   time: (b, d) embedding, or None for an unconditioned block.   Returns (b, h, w, features).
    """

    features: int  # output channels
    groups: int = 32  # of group normalization
    epsilon: float = 1e-5  # of group normalization
    scale_shift_norm: bool = (
        False  # time scales and shifts the second norm's output [film; adm sec. 3.1], not its input
    )
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None) -> Array:
        y = nn.silu(GroupNorm(self.groups, self.epsilon, name="norm1")(x))
        y = conv(self.features, name="conv1", dtype=self.dtype)(y)
        norm, modulation = GroupNorm(self.groups, self.epsilon, name="norm2"), None
        if time is not None:
            width = self.features * (2 if self.scale_shift_norm else 1)
            conditioning = Dense(width, dtype=self.dtype, name="time")(nn.silu(time))
            if self.scale_shift_norm:
                modulation = jnp.split(conditioning, 2, axis=-1)
            else:
                y = y + conditioning[:, None, None]
        y = conv(self.features, zero=True, name="conv2", dtype=self.dtype)(nn.silu(norm(y, modulation)))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="shortcut", dtype=self.dtype)(x)
        return x + y


def space_to_depth(x: Array, block: int) -> Array:
    """Fold each block x block square of pixels into channels. (b, h, w, c) -> (b, h/block, w/block, block**2 c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int) -> Array:
    """The inverse of ``space_to_depth``."""
    b, h, w, c = x.shape
    c //= block * block
    x = x.reshape(b, h, w, block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c)
