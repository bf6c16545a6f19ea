"""The dual encoder: a text tower and a vision tower that meet in one space of unit vectors [clip fig. 3]."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff.models.attention import Attend, dot_product
from jdiff.models.layers import Dense, sinusoids
from jdiff.models.transformer import Transformer

LOGIT_SCALE_START = math.log(1 / 0.07)
LOGIT_SCALE_CAP = math.log(100.0)


def unit(x: Array) -> Array:
    """Vectors of length one along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def patch_positions(side: int, width: int) -> Array:
    """Where each patch of a square image is: half of it tells the row and half the column; zero for the class token
    before them [plainvit].

    width: a multiple of 4.   Returns (1 + side**2, width) float32.
    """
    along = sinusoids(jnp.arange(side), width // 2)
    rows, columns = jnp.repeat(along, side, axis=0), jnp.tile(along, (side, 1))
    return jnp.pad(jnp.concatenate([rows, columns], axis=-1), ((1, 0), (0, 0)))


class TextTower(nn.Module):
    """Captions to token states and one embedding each.

    A causal tower (CLIP's) hides later tokens and needs no mask; a bidirectional one hides padding.

    tokens: (b, n) int.   mask: (b, n) bool, true on the caption's own tokens, its end included.
    Returns hidden (b, n, width), after the last norm, and embedding (b, embed_dim) of unit length,
    read at the last token of the caption.

    Tokens start at unit size and positions as sinusoids [attention sec. 3.5], so that order is told from the first
    step; where all starts small, as in CLIP, it is not until something asks for it.

    skip: how many of the last layers ``hidden`` leaves out, under the same norm; Stable Diffusion 2 leaves out one.
    The embedding leaves out none.
    """

    vocab_size: int
    context_length: int
    width: int = 512
    layers: int = 12
    heads: int = 8
    embed_dim: int = 512
    activation: str = "quick_gelu"
    causal: bool = True
    epsilon: float = 1e-5
    skip: int = 0
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        x = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype, name="tokens"
        )(tokens)
        places = self.param("positions", lambda _: sinusoids(jnp.arange(self.context_length), self.width))
        x = x + places.astype(x.dtype)[None, : tokens.shape[1]]
        states = Transformer(
            self.layers,
            self.heads,
            activation=self.activation,
            causal=self.causal,
            epsilon=self.epsilon,
            attend=self.attend,
            dtype=self.dtype,
            name="transformer",
        )(x, None if self.causal else mask)
        norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")
        last = jnp.sum(mask, axis=-1) - 1
        pooled = norm(jnp.take_along_axis(states[-1], last[:, None, None], axis=1))[:, 0]
        projected = Dense(self.embed_dim, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        return norm(states[-1 - self.skip]), unit(projected.astype(jnp.float32))


class VisionTower(nn.Module):
    """Images to patch states and one embedding each: a ViT with a class token [vit], whose positions start as
    ``patch_positions``.

    images: (b, h, w, 3) floats in [-1, 1].
    Returns hidden (b, 1 + patches, width), before the last norm, and embedding (b, embed_dim) of unit length.
    """

    image_size: int
    patch_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    embed_dim: int = 512
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        b, width, patch = images.shape[0], self.width, self.patch_size
        x = nn.Conv(width, (patch, patch), (patch, patch), "VALID", use_bias=False, dtype=self.dtype, name="patches")(
            images
        ).reshape(b, -1, width)
        first = self.param("class_token", nn.initializers.normal(width**-0.5), (width,)).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, width)), x], axis=1)
        places = self.param("positions", lambda _: patch_positions(self.image_size // patch, width))
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_in")(x + places.astype(x.dtype)[None])
        hidden = Transformer(
            self.layers,
            self.heads,
            activation=self.activation,
            epsilon=self.epsilon,
            attend=self.attend,
            dtype=self.dtype,
            name="transformer",
        )(x)[-1]
        pooled = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_out")(hidden[:, 0])
        projected = Dense(self.embed_dim, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        return hidden, unit(projected.astype(jnp.float32))


class DualEncoder(nn.Module):
    """Both towers and the learned ``logit_scale``, 1 / temperature, whose log is the parameter.

    Training caps the parameter at ``LOGIT_SCALE_CAP``; a cap in here would hold its gradient at 0 from then on.
    Returns text and image embeddings, (b, embed_dim) each, and the scale, a scalar.
    """

    text: TextTower
    vision: VisionTower

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, images: Array) -> tuple[Array, Array, Array]:
        log_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE_START), ())
        return self.text(tokens, mask)[1], self.vision(images)[1], jnp.exp(log_scale)
