"""The training loss of a diffusion model: noise each image to a random level, ask, compare [ddpm eq. 14]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion import prediction, process
from jdiff.diffusion.schedules import Schedule

BINS = 4


def draw(keys: Array, x0: Array, timesteps: int) -> tuple[Array, Array]:
    """Timestep and noise of each example, from its own key.

    keys: (b,).   x0: (b, *dims).   Returns timestep (b,) int in 0..T-1 and eps like x0.
    """

    def one(key: Array) -> tuple[Array, Array]:
        level_key, noise_key = jax.random.split(key)
        return jax.random.randint(level_key, (), 0, timesteps), jax.random.normal(noise_key, x0.shape[1:])

    return jax.vmap(one)(keys)


def loss(
    predict: Callable, x0: Array, *, keys: Array, schedule: Schedule, prediction_type: str, weighting: str = "simple"
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of the network's answers, weighed by noise level.

    predict: (xt, timestep) -> prediction like xt.
    x0: (b, *dims) clean data.   keys: (b,) one per example.   weighting: a name in ``prediction.WEIGHTINGS``.
    Returns the scalar loss and a report: ``loss_bin_i``, the plain loss of each quarter of the timesteps, as a pair of
    its mean and the number of examples that fell there.
    """
    timestep, eps = draw(keys, x0, schedule.timesteps)
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
