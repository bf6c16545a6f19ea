"""The KL autoencoder (VAE) of latent diffusion: images to latents of an eighth of the side, and back [ldm sec. 3.1].

Diffusion then works on latents exactly as on images: the loss and the sampler are the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff.models.attention import Attend, Attention, dot_product
from jdiff.models.convolution import Conv
from jdiff.models.layers import GroupNorm, ResidualBlock, conv, upsample_nearest

EPSILON = 1e-6


class _Middle(nn.Module):
    """Self-attention over all pixels, between two residual blocks. x: (b, h, w, c). Returns the same shape."""

    groups: int
    attend: Attend
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        x = ResidualBlock(c, self.groups, EPSILON, dtype=self.dtype, name="residual_0")(x)
        y = GroupNorm(self.groups, EPSILON, name="norm")(x).reshape(b, h * w, c)
        x = x + Attention(1, attend=self.attend, dtype=self.dtype, name="attention")(y).reshape(x.shape)
        return ResidualBlock(c, self.groups, EPSILON, dtype=self.dtype, name="residual_1")(x)


class Encoder(nn.Module):
    """Images (b, h, w, 3) to mean and log variance of their latents, (b, h/f, w/f, 2 latent_channels).

    Fields as in ``Autoencoder``; f is its ``factor``.
    """

    channels: Sequence[int]
    blocks: int
    groups: int
    latent_channels: int
    attend: Attend
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.channels[0], name="conv_in", dtype=self.dtype)(x)
        for level, features in enumerate(self.channels):
            for i in range(self.blocks):
                name = f"down_{level}_residual_{i}"
                x = ResidualBlock(features, self.groups, EPSILON, dtype=self.dtype, name=name)(x)
            if level < len(self.channels) - 1:
                name = f"down_{level}_sample"  # pads on the right and below only
                x = Conv(features, (3, 3), (2, 2), ((0, 1), (0, 1)), dtype=self.dtype, name=name)(x)
        x = _Middle(self.groups, self.attend, self.dtype, name="middle")(x)
        x = nn.silu(GroupNorm(self.groups, EPSILON, name="norm_out")(x))
        return conv(2 * self.latent_channels, name="conv_out", dtype=self.dtype)(x)


class Decoder(nn.Module):
    """Latents (b, h, w, latent_channels) to images (b, f h, f w, 3). Fields as in ``Autoencoder``."""

    channels: Sequence[int]
    blocks: int
    groups: int
    attend: Attend
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv(self.channels[-1], name="conv_in", dtype=self.dtype)(x)
        x = _Middle(self.groups, self.attend, self.dtype, name="middle")(x)
        for level in reversed(range(len(self.channels))):
            for i in range(self.blocks + 1):
                name = f"up_{level}_residual_{i}"
                x = ResidualBlock(self.channels[level], self.groups, EPSILON, dtype=self.dtype, name=name)(x)
            if level > 0:
                x = conv(self.channels[level], name=f"up_{level}_sample", dtype=self.dtype)(upsample_nearest(x))
        x = nn.silu(GroupNorm(self.groups, EPSILON, name="norm_out")(x))
        return conv(3, name="conv_out", dtype=self.dtype)(x)


class Autoencoder(nn.Module):
    """Images to latents of about unit variance, and latents to images."""

    channels: Sequence[int] = (128, 256, 512, 512)  # width of each level; each but the last halves the side
    blocks: int = 2  # residual blocks of each encoder level; the decoder has one more
    groups: int = 32  # of group normalization
    latent_channels: int = 4
    scale: float = 0.18215  # latents are multiplied by this, to unit variance [ldm sec. 4.3.2]
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    def setup(self):
        options = {"attend": self.attend, "dtype": self.dtype}
        self.encoder = Encoder(self.channels, self.blocks, self.groups, self.latent_channels, **options)
        self.decoder = Decoder(self.channels, self.blocks, self.groups, **options)
        self.quant = Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant = Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    @property
    def factor(self) -> int:
        """Downsampling factor f: pixels of an image's side per pixel of its latents' side."""
        return 2 ** (len(self.channels) - 1)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """The Gaussian posterior of an image's latents.

        images: (b, h, w, 3) floats in [-1, 1].
        Returns mean and standard deviation, (b, h/f, w/f, latent_channels) each; the deviation is small.
        """
        mean, log_variance = jnp.split(self.quant(self.encoder(images)).astype(jnp.float32), 2, axis=-1)
        deviation = jnp.exp(0.5 * jnp.clip(log_variance, -30, 20))
        return self.scale * mean, self.scale * deviation

    def decode(self, latents: Array) -> Array:
        """Reconstruct images. latents: (b, h, w, latent_channels). Returns (b, f h, f w, 3), about in [-1, 1]."""
        return self.decoder(self.post_quant(latents / self.scale)).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:
        """Reconstructions of ``images`` from the posterior's mean."""
        return self.decode(self.encode(images)[0])
