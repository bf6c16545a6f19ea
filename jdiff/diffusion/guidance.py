"""Classifier-free guidance and negative prompts: closures around a network, so samplers have no options about them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def guided(predict: Callable, prompt, negative, scale: Array) -> Callable:
    """Turn a text-conditioned network into one that leans harder on its prompt.

    Both passes run as one batch of 2b, and the answer is extrapolated from ``negative``
    through ``prompt`` ([cfg eq. 6], whose w is ``scale - 1``):

        answer = negative's + scale (prompt's - negative's).                                     (8)

    A scale of 0 ignores the prompt, 1 is the plain conditional model; larger values trade
    variety for fidelity. A negative prompt is nothing more than a ``negative`` that is not
    the empty caption.

    predict: (xt (b, ...), timestep (b,), conditioning) -> prediction like xt.
    prompt, negative: encoded captions, trees of arrays (b, ...).   scale: (b,) one per image.
    Returns a function of (xt, timestep) alone.
    """
    both = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), prompt, negative)

    def answer(xt: Array, timestep: Array) -> Array:
        doubled = predict(jnp.concatenate([xt, xt]), jnp.concatenate([timestep, timestep]), both)
        with_prompt, without = jnp.split(doubled, 2)
        weight = scale.reshape(-1, *(1,) * (xt.ndim - 1))
        return without + weight * (with_prompt - without)

    return answer
