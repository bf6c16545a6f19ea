"""The CLIP-style dual encoder: a text tower and a vision tower with one space of unit-length embeddings [clip fig. 3].

CLIP of OpenAI, open_clip and Hugging Face, and SigLIP [siglip], are configurations of it.
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
from jdiff.models.layers import Dense, l2_normalize, sinusoids, standardize
from jdiff.models.resnet import ResNetTower
from jdiff.models.transformer import Transformer, feed_forward

LOGIT_SCALE_START = math.log(1 / 0.07)
LOGIT_SCALE_CAP = math.log(100.0)
LOGIT_BIAS_START = -10.0


def patch_positions(side: int, width: int) -> Array:
    """2D sinusoidal position embeddings of a square image's patches [plainvit].

    The first half of the channels encodes the row, the second half the column. The class token comes first, with zeros.

    side: patches along each edge.   width: a multiple of 4.   Returns (1 + side**2, width) float32.
    """
    waves = sinusoids(jnp.arange(side), width // 2)
    rows, columns = jnp.repeat(waves, side, axis=0), jnp.tile(waves, (side, 1))
    return jnp.pad(jnp.concatenate([rows, columns], axis=-1), ((1, 0), (0, 0)))


class TextTower(nn.Module):
    """Captions to token states and one embedding each.

    A causal tower (CLIP's) hides later tokens and needs no mask; a bidirectional one masks padding.

    tokens: (b, n) int.   mask: (b, n) bool, true on the caption's tokens, its end token included.
    Returns hidden (b, n, width), after the final norm, and embedding (b, embed_dim) of unit length, the projected
    state of the caption's last token.

    Token embeddings are initialized with unit variance and positions as sinusoids [attention sec. 3.5], so that the
    tower distinguishes word order from the first step. With CLIP's small initial values it learns order late, and
    only if the loss needs it.
    """

    vocab_size: int
    context_length: int  # the most tokens of a caption, start and end tokens included
    width: int = 512
    layers: int = 12  # transformer blocks
    heads: int = 8  # attention heads; they divide width
    embed_dim: int = 512  # of the embedding; 0 for no projection, where the embedding is the state itself
    activation: str = "quick_gelu"  # of the MLPs, a name in ``layers.ACTIVATIONS``
    mlp_ratio: float = 4.0  # hidden width of the MLPs over width
    causal: bool = True  # hide later tokens
    epsilon: float = 1e-5  # of layer normalization
    clip_skip: int = 0  # last layers that ``hidden`` skips; 1 in Stable Diffusion 2; the embedding skips none
    projection_bias: bool = False
    attend_to_padding: bool = False  # attend to padding and take the embedding at its last token, as SigLIP does
    remat: str = "none"  # activation checkpointing of the blocks, a name in ``layers.REMAT``
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> tuple[Array, Array]:
        mask = jnp.ones_like(mask) if self.attend_to_padding else mask
        x = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), dtype=self.dtype, name="tokens"
        )(tokens)
        positions = self.param("positions", lambda _: sinusoids(jnp.arange(self.context_length), self.width))
        x = x + positions.astype(x.dtype)[None, : tokens.shape[1]]
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
    """Attention pooling: a learned query attends to all states, then a feed-forward layer [siglip; setformer].

    x: (b, n, width).   Returns (b, width).
    """

    heads: int  # attention heads; they divide width
    mlp_ratio: float = 4.0  # hidden width of the feed-forward layer over width
    activation: str = "gelu_tanh"  # of the feed-forward layer, a name in ``layers.ACTIVATIONS``
    epsilon: float = 1e-6  # of layer normalization
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, _, width = x.shape
        query = self.param("query", nn.initializers.lecun_normal(), (1, width)).astype(x.dtype)
        query = jnp.broadcast_to(query[None], (b, 1, width))
        x = Attention(self.heads, attend=self.attend, dtype=self.dtype, name="attention")(query, x)
        y = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)
        return (x + feed_forward(y, self.mlp_ratio, self.activation, self.dtype))[:, 0]


class VisionTower(nn.Module):
    """A ViT [vit]: images to patch states and one embedding each. Positions are initialized as ``patch_positions``.

    Two poolings. "class" (CLIP): the embedding is a projection of the class token's state after the final norm; hidden
    holds the states before that norm. "attention" (SigLIP): an ``AttentionPool`` over all patches after the final norm;
    there is no class token, no norm before the blocks and no projection, and hidden holds the states after the norm.

    images: (b, h, w, 3) floats in [-1, 1].
    Returns hidden (b, n, width), where n counts the patches and, first, the class token if there is one; and embedding
    (b, embed_dim) of unit length.
    """

    image_size: int  # side of the images, a multiple of patch_size
    patch_size: int  # side of a patch
    width: int = 768
    layers: int = 12  # transformer blocks
    heads: int = 12  # attention heads; they divide width
    embed_dim: int = 512  # of the embedding; equals width for attention pooling
    activation: str = "quick_gelu"  # of the MLPs, a name in ``layers.ACTIVATIONS``
    mlp_ratio: float = 4.0  # hidden width of the MLPs over width
    epsilon: float = 1e-5  # of layer normalization
    pooling: str = "class"  # one of POOLINGS
    mean: Sequence[float] = (0.5, 0.5, 0.5)  # per channel, of the training images' pixels in [0, 1]
    std: Sequence[float] = (0.5, 0.5, 0.5)  # likewise
    remat: str = "none"  # activation checkpointing of the blocks, a name in ``layers.REMAT``
    attend: Attend = dot_product  # the attention function
    dtype: jax.typing.DTypeLike | None = None  # of the computation; parameters stay float32

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        b, width, patch, class_token = images.shape[0], self.width, self.patch_size, self.pooling == "class"
        x = Conv(
            width, (patch, patch), (patch, patch), "VALID", use_bias=not class_token, dtype=self.dtype, name="patches"
        )(standardize(images, self.mean, self.std)).reshape(b, -1, width)
        if class_token:
            token = self.param("class_token", nn.initializers.normal(width**-0.5), (width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (b, 1, width)), x], axis=1)
        positions = self.param(
            "positions", lambda _: patch_positions(self.image_size // patch, width)[not class_token :]
        )
        x = x + positions.astype(x.dtype)[None]
        if class_token:
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
        if class_token:
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

    The train step caps the parameter at ``LOGIT_SCALE_CAP``. A cap inside the network would make its gradient 0 once
    it is reached.

    Returns text and image embeddings, (b, embed_dim) each, and the scale and the bias, scalars.
    """

    text: TextTower
    vision: VisionTower | ResNetTower
    use_logit_bias: bool = False  # a learned ``logit_bias`` is added to the scaled cosine similarities [siglip]

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, images: Array) -> tuple[Array, Array, Array, Array]:
        log_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE_START), ())
        bias = (
            self.param("logit_bias", nn.initializers.constant(LOGIT_BIAS_START), ())
            if self.use_logit_bias
            else jnp.zeros(())
        )
        return self.text(tokens, mask)[1], self.vision(images)[1], jnp.exp(log_scale), bias
