"""Denoisers known exactly, for data whose density is known: what a perfect network would answer.

For data x0 ~ sum_k w_k N(m_k, s_k^2) the noised density is again a mixture, of
N(alpha m_k, alpha^2 s_k^2 + sigma^2), and

    E[x0 | xt] = sum_k p(k | xt) (m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (xt - alpha m_k)).   (12)

A sampler that is handed this must reproduce the data, or it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.levels import Level


def mixture_denoiser(means: Array, stds: Array, weights: Array) -> Callable:
    """The exact denoiser of a mixture of isotropic Gaussians, equation (12).

    means: (k, d).   stds, weights: (k,).
    Returns (xt (b, d), timestep, level) -> (x0, eps).
    """

    def denoise(xt: Array, timestep: Array, level: Level) -> tuple[Array, Array]:
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        variance = alpha**2 * stds[None] ** 2 + sigma**2
        offset = xt[:, None] - alpha[..., None] * means[None]
        fit = jnp.log(weights)[None] - 0.5 * (offset**2).sum(-1) / variance - 0.5 * xt.shape[-1] * jnp.log(variance)
        belief = jax.nn.softmax(fit, axis=-1)
        pull = (alpha * stds[None] ** 2 / variance)[..., None]
        x0 = (belief[..., None] * (means[None] + pull * offset)).sum(1)
        return x0, (xt - alpha * x0) / sigma

    return denoise
