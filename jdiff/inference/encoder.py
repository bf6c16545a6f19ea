"""From captions and images to unit vectors of one space: a trained dual encoder in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from jdiff.data.tokenizer import Tokenizer
from jdiff.models.clip import DualEncoder, ResNetTower, TextTower, VisionTower
from jdiff.training.update import images_of

BATCH = 256  # captions or images embedded at a time


@dataclass(frozen=True)
class DualEncoderModel:
    """A trained dual encoder, ready to compare captions and images."""

    tokenizer: Tokenizer
    network: DualEncoder
    params: Mapping[str, Any]

    def embed_texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions as unit vectors, (n, embed_dim)."""

        def embed(rows: np.ndarray) -> Array:
            tokens, mask = self.tokenizer.encode([captions[i] for i in rows])
            return _embed_texts(self.network.text, self.params["text"], tokens, mask)

        return _in_batches(embed, len(captions))

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Images (n, h, w, 3) uint8 as unit vectors, (n, embed_dim)."""
        return _in_batches(
            lambda rows: _embed_images(self.network.vision, self.params["vision"], images[rows]), len(images)
        )


def _in_batches(embed: Callable[[np.ndarray], Array], n: int) -> np.ndarray:
    """``embed`` of rows 0 to n, batch by batch; the last batch is filled up, so that one program serves."""
    size = min(n, BATCH)
    batches = [np.asarray(embed(np.arange(start, start + size) % n)) for start in range(0, n, size)]
    return np.concatenate(batches)[:n]


@partial(jax.jit, static_argnums=0)
def _embed_texts(text: TextTower, params, tokens, mask) -> jax.Array:
    return text.apply({"params": params}, tokens, mask)[1]


@partial(jax.jit, static_argnums=0)
def _embed_images(vision: VisionTower | ResNetTower, params, images) -> jax.Array:
    return vision.apply({"params": params}, images_of({"image": images}))[1]
