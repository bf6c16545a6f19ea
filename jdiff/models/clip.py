"""The dual encoder: a text tower and a vision tower that meet in one space of unit vectors [clip fig. 3].

OpenAI's, open_clip's and Hugging Face's CLIP and SigLIP [siglip] are configurations of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from jdiff.models.attention import Attend, Attention, dot_product
from jdiff.models.convolution import Conv
from jdiff.models.layers import Dense, l2_normalize, sinusoids, standardised
from jdiff.models.resnet import ResNetTower
from jdiff.models.transformer import Transformer, feed_forward

LOGIT_SCALE_START = math.log(1 / 0.07)
LOGIT_SCALE_CAP = math.log(100.0)
LOGIT_BIAS_START = -10.0


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
    embed_dim: 0 for a tower without projection, whose embedding is the state itself.
    attend_to_padding: whether padding is read like words, the embedding at the last of it, as SigLIP was trained to.
    remat: what layers keep for their gradients, a name in ``layers.REMAT``.
    """

    vocab_size: int
    context_length: int
    width: int = 512
    layers: int = 12
    heads: int = 8
    embed_dim: int = 512
    activation: str = "quick_gelu"
    mlp_ratio: float = 4.0
    causal: bool = True
    epsilon: float = 1e-5
    clip_skip: int = 0
    projection_bias: bool = False
    attend_to_padding: bool = False
    remat: str = "none"
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        mask = jnp.ones_like(mask) if self.attend_to_padding else mask
        x = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype, name="tokens"
        )(tokens)
        places = self.param("positions", lambda _: sinusoids(jnp.arange(self.context_length), self.width))
        x = x + places.astype(x.dtype)[None, : tokens.shape[1]]
        states = Transformer(
            self.layers,
            self.heads,
            self.mlp_ratio,
            self.activation,
            causal=self.causal,
            epsilon=self.epsilon,
            remat=self.remat,
            attend=self.attend,
            dtype=self.dtype,
            name="transformer",
        )(x, None if self.causal or self.attend_to_padding else mask)
        norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")
        last = jnp.sum(mask, axis=-1) - 1
        pooled = norm(jnp.take_along_axis(states[-1], last[:, None, None], axis=1))[:, 0]
        if self.embed_dim:
            pooled = Dense(self.embed_dim, use_bias=self.projection_bias, dtype=self.dtype, name="projection")(pooled)
        return norm(states[-1 - self.clip_skip]), l2_normalize(pooled.astype(jnp.float32))


class AttentionPool(nn.Module):
    """One state of many: what a learned query attends to, then a feed-forward layer [siglip; setformer].

    x: (b, n, width).   Returns (b, width).
    """

    heads: int
    mlp_ratio: float = 4.0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, _, width = x.shape
        query = self.param("query", nn.initializers.lecun_normal(), (1, width)).astype(x.dtype)
        query = jnp.broadcast_to(query[None], (b, 1, width))
        x = Attention(self.heads, attend=self.attend, dtype=self.dtype, name="attention")(query, x)
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)
        return (x + feed_forward(y, self.mlp_ratio, self.activation, self.dtype))[:, 0]


class VisionTower(nn.Module):
    """Images to patch states and one embedding each: a ViT [vit], whose positions start as ``patch_positions``.

    images: (b, h, w, 3) floats in [-1, 1].
    Returns hidden (b, patches, width), of the class token first where there is one and before the last norm, or of
    the patches alone after it; and embedding (b, embed_dim) of unit length.

    pooling: "class" reads a class token, through a norm and a projection; "attention" reads all patches after the
    norm by an ``AttentionPool``, and has no norm before the blocks and no projection, so embed_dim is the width.
    mean, std: of the pixels from 0 to 1 that the tower was trained on, by channel; one half leaves images as they are.
    remat: as of ``TextTower``.
    """

    image_size: int
    patch_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    embed_dim: int = 512
    activation: str = "quick_gelu"
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    pooling: str = "class"
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    remat: str = "none"
    attend: Attend = dot_product
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        b, width, patch, classed = images.shape[0], self.width, self.patch_size, self.pooling == "class"
        x = Conv(
            width, (patch, patch), (patch, patch), "VALID", use_bias=not classed, dtype=self.dtype, name="patches"
        )(standardised(images, self.mean, self.std)).reshape(b, -1, width)
        if classed:
            first = self.param("class_token", nn.initializers.normal(width**-0.5), (width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, width)), x], axis=1)
        places = self.param("positions", lambda _: patch_positions(self.image_size // patch, width)[not classed :])
        x = x + places.astype(x.dtype)[None]
        if classed:
            x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_in")(x)
        hidden = Transformer(
            self.layers,
            self.heads,
            self.mlp_ratio,
            self.activation,
            epsilon=self.epsilon,
            remat=self.remat,
            attend=self.attend,
            dtype=self.dtype,
            name="transformer",
        )(x)[-1]
        norm = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm_out")
        if classed:
            pooled = norm(hidden[:, 0])
            pooled = Dense(self.embed_dim, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        else:
            hidden = norm(hidden)
            pooled = AttentionPool(
                self.heads, self.mlp_ratio, self.activation, self.epsilon, self.attend, self.dtype, name="pool"
            )(hidden)
        return hidden, l2_normalize(pooled.astype(jnp.float32))


POOLINGS = ("class", "attention")
VISION_TOWERS = {"vit": VisionTower, "resnet": ResNetTower}


class DualEncoder(nn.Module):
    """Both towers and the learned ``logit_scale``, 1 / temperature, whose log is the parameter.

    Training caps the parameter at ``LOGIT_SCALE_CAP``; a cap in here would hold its gradient at 0 from then on.
    biased: whether a learned ``logit_bias`` is added to the scaled cosines, as SigLIP's loss needs it.
    Returns text and image embeddings, (b, embed_dim) each, and the scale and the bias, scalars.
    """

    text: TextTower
    vision: VisionTower | ResNetTower
    use_logit_bias: bool = False

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, images: Array) -> tuple[Array, Array, Array, Array]:
        log_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE_START), ())
        bias = (
            self.param("logit_bias", nn.initializers.constant(LOGIT_BIAS_START), ())
            if self.use_logit_bias
            else jnp.zeros(())
        )
        return self.text(tokens, mask)[1], self.vision(images)[1], jnp.exp(log_scale), bias
