"""Timestep samplings: the distribution of the timesteps that a network is trained on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def uniform(key: Array) -> Array:
    """Every timestep as often as any other [ddpm alg. 1]. Returns its share of all, in [0, 1)."""
    return jax.random.uniform(key)


def linear(key: Array) -> Array:
    """Timestep t in proportion to t + 1/2: noisy ones, where a caption decides what will be where, more often.

    Weights do not make up for it, as they would in [iddpm eq. 18]. As ``uniform``.
    """
    return jnp.sqrt(jax.random.uniform(key))


TIMESTEP_SAMPLINGS = {"uniform": uniform, "linear": linear}
