"""Exact denoisers of data whose density is known: what a perfect network would predict.

For data x0 ~ sum_k w_k N(m_k, s_k^2) the noised density is again a mixture, of
N(alpha m_k, alpha^2 s_k^2 + sigma^2), and

    E[x0 | xt]  = sum_k p(k | xt) (m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (xt - alpha m_k)),   (12)
    E[eps | xt] = sum_k p(k | xt) sigma / (alpha^2 s_k^2 + sigma^2) (xt - alpha m_k).

A data set is such a mixture, of points. A correct sampler reproduces the data when it is given this denoiser.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion.prediction import Denoised, target
from jdiff.diffusion.schedules import Schedule
from jdiff.levels import Level


def mixture(means: Array, stds: Array, weights: Array) -> Callable:
    """E[x0 | xt] and E[eps | xt] of a mixture of isotropic Gaussians, equation (12).

    means: (k, d).   stds, weights: (k,).
    Returns (xt (b, d), level of (b,)) -> (x0, eps), each (b, d).
    """

    def means_of(xt: Array, level: Level) -> tuple[Array, Array]:
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        variance = alpha**2 * stds[None] ** 2 + sigma**2
        offset = xt[:, None] - alpha[..., None] * means[None]
        fit = jnp.log(weights)[None] - 0.5 * (offset**2).sum(-1) / variance - 0.5 * xt.shape[-1] * jnp.log(variance)
        belief = jax.nn.softmax(fit, axis=-1)[..., None]
        pull = (alpha * stds[None] ** 2 / variance)[..., None]
        push = (sigma / variance)[..., None]
        return (belief * (means[None] + pull * offset)).sum(1), (belief * push * offset).sum(1)

    return means_of


def data_set(points: Array) -> Callable:
    """(12) where every image is one of ``points``, (k, d), each as likely. As ``mixture``."""
    count = points.shape[0]
    return mixture(points, jnp.zeros(count), jnp.full(count, 1 / count))


def denoiser(exact: Callable) -> Callable:
    """The denoiser that ``sampler.sample`` takes, from a ``mixture`` or a ``data_set``: (xt, row) -> ``Denoised``."""
    return lambda xt, row: Denoised(*exact(xt, row.level))


def perfect_network(exact: Callable, schedule: Schedule, prediction_type: str) -> Callable:
    """A perfect network of a prediction type, for any sampler: (xt (b, d), timestep (b,)) -> (b, d)."""

    def predict(xt: Array, timestep: Array) -> Array:
        level = schedule.level(timestep)
        x0, eps = exact(xt, level)
        return target(prediction_type, x0, eps, level)

    return predict
