"""The training loss of a diffusion model: noise each image to a random level, ask, compare [ddpm eq. 14]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion import prediction, process
from jdiff.diffusion.schedules import Schedule

BINS = 4


def uniform(key: Array, timesteps: int) -> Array:
    """Every timestep as often as any other [ddpm alg. 1]. Returns an int in 0..timesteps-1."""
    return jax.random.randint(key, (), 0, timesteps)


def rising(key: Array, timesteps: int) -> Array:
    """Timestep t in proportion to t + 1/2: noisy ones, where a caption decides what will be where, more often.

    Weights do not make up for it, as they would in [iddpm eq. 18]. As ``uniform``.
    """
    share = jnp.sqrt(jax.random.uniform(key))
    return jnp.minimum((timesteps * share).astype(jnp.int32), timesteps - 1)


DENSITIES = {"uniform": uniform, "rising": rising}


def draw(keys: Array, x0: Array, timesteps: int, density: str = "uniform") -> tuple[Array, Array]:
    """Timestep and noise of each example, from its own key.

    keys: (b,).   x0: (b, *dims).   density: a name in ``DENSITIES``.
    Returns timestep (b,) int in 0..T-1 and eps like x0.
    """

    def one(key: Array) -> tuple[Array, Array]:
        level_key, noise_key = jax.random.split(key)
        return DENSITIES[density](level_key, timesteps), jax.random.normal(noise_key, x0.shape[1:])

    return jax.vmap(one)(keys)


def loss(
    predict: Callable,
    x0: Array,
    *,
    keys: Array,
    schedule: Schedule,
    prediction_type: str,
    weighting: str = "simple",
    density: str = "uniform",
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of the network's answers, weighed by noise level.

    predict: (xt, timestep) -> prediction like xt.
    x0: (b, *dims) clean data.   keys: (b,) one per example.   weighting: a name in ``prediction.WEIGHTINGS``.
    density: how timesteps are drawn, a name in ``DENSITIES``.
    Returns the scalar loss and a report: ``loss_bin_i``, the plain loss of each quarter of the timesteps, as a pair of
    its mean and the number of examples that fell there.
    """
    timestep, eps = draw(keys, x0, schedule.timesteps, density)
    level = schedule.level(timestep)
    xt = process.diffuse(x0, eps, level)
    answer = predict(xt, timestep.astype(jnp.float32))
    error = answer - prediction.target(prediction_type, x0, eps, level)
    each = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    place = timestep * BINS // schedule.timesteps
    inside = place[None] == jnp.arange(BINS)[:, None]
    count = inside.sum(axis=1)
    binned = jnp.where(inside, each[None], 0).sum(axis=1) / jnp.maximum(count, 1)
    weight = prediction.WEIGHTINGS[weighting](prediction_type, level)
    return jnp.mean(weight * each), {f"loss_bin_{i}": (binned[i], count[i]) for i in range(BINS)}
