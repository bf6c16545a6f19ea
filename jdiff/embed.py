"""From captions and images to unit vectors of one space: the dual encoder in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jdiff.data.tokenizer import Tokenizer
from jdiff.models.clip import DualEncoder, ResNetTower, TextTower, VisionTower
from jdiff.training.steps import images_of


@dataclass(frozen=True)
class Encoder:
    """A trained dual encoder, ready to compare captions and images."""

    tokenizer: Tokenizer
    network: DualEncoder
    weights: Mapping[str, Any]

    def embed_texts(self, captions: list[str]) -> jax.Array:
        """Captions as unit vectors, (n, embed_dim)."""
        return _embed_texts(self.network.text, self.weights["text"], *self.tokenizer.encode(captions))

    def embed_images(self, images) -> jax.Array:
        """Images (n, h, w, 3) uint8 as unit vectors, (n, embed_dim)."""
        return _embed_images(self.network.vision, self.weights["vision"], images)


@partial(jax.jit, static_argnums=0)
def _embed_texts(text: TextTower, params, tokens, mask) -> jax.Array:
    return text.apply({"params": params}, tokens, mask)[1]


@partial(jax.jit, static_argnums=0)
def _embed_images(vision: VisionTower | ResNetTower, params, images) -> jax.Array:
    return vision.apply({"params": params}, images_of({"image": images}))[1]
