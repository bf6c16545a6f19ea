"""The symmetric contrastive loss of CLIP [clip fig. 3]."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax import Array


def softmax_loss(text: Array, image: Array, scale: Array) -> tuple[Array, dict[str, Array]]:
    """Each caption must find its image among the batch's, and each image its caption.

    text, image: (b, d) unit vectors, row i of one belongs to row i of the other.
    scale: scalar, 1 / temperature.
    Returns the scalar loss, the mean of both directions' cross-entropies (log b where nothing
    is learnt), and a report with the share of rows that find their partner.
    """
    logits = scale * text @ image.T
    partner = jnp.arange(logits.shape[0])
    to_image = optax.softmax_cross_entropy_with_integer_labels(logits, partner).mean()
    to_text = optax.softmax_cross_entropy_with_integer_labels(logits.T, partner).mean()
    found = {
        "text_to_image": jnp.mean(logits.argmax(1) == partner),
        "image_to_text": jnp.mean(logits.argmax(0) == partner),
    }
    return (to_image + to_text) / 2, found
