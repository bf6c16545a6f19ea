"""The training loss of a diffusion model: noise each image to a random level, predict, compare [ddpm eq. 14].

Where the network has a learned variance, the variational bound trains the variance, and never the mean [iddpm eq. 16]:

    + T / 1000 KL(q(xs | xt, x0) || N(mean, variance)), s = t - 1, in bits a dimension;                     (30)
      at t = 0 the negative log likelihood of the 256 values of a pixel [iddpm sec. 2.1].
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr

from jdiff.diffusion import prediction, process
from jdiff.diffusion.gaussian_baseline import gaussian_loss
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.timestep_sampling import TimestepSampling, uniform
from jdiff.diffusion.weighting import Weighting, simple
from jdiff.levels import Level, broadcast_like

EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)  # of log SNR, between the bins that losses are reported in
BINS = tuple(f"{low:g}_to_{high:g}" for low, high in zip((-np.inf, *EDGES), (*EDGES, np.inf)))


def draw_timesteps_and_noise(
    keys: Array, x0: Array, schedule: Schedule, timestep_sampling: TimestepSampling = uniform
) -> tuple[Array, Array]:
    """Timestep and noise of each example, from its own key.

    keys: (b,).   x0: (b, *dims).   timestep_sampling: (key, schedule) -> timestep, as ``timestep_sampling.lognormal``.
    Returns timestep (b,) float, of the schedule's, and eps like x0.
    """

    def draw_example(key: Array) -> tuple[Array, Array]:
        level_key, noise_key = jax.random.split(key)
        return timestep_sampling(level_key, schedule), jax.random.normal(noise_key, x0.shape[1:])

    return jax.vmap(draw_example)(keys)


def loss(
    predict: Callable,
    x0: Array,
    *,
    keys: Array,
    schedule: Schedule,
    prediction_type: str,
    weighting: Weighting = simple,
    timestep_sampling: TimestepSampling = uniform,
    spectrum: Array | None = None,
) -> tuple[Array, dict[str, Array | tuple[Array, Array]]]:
    """Weighted mean squared error of the network's predictions, plus (30) where the network has a learned variance.

    predict: (xt, timestep) -> output like xt, or with twice its channels.
    x0: (b, *dims) clean data.   keys: (b,) one per example.
    weighting: (prediction_type, level) -> weights (b,), as ``weighting.min_snr`` or a ``functools.partial`` of it.
    timestep_sampling: (key, schedule) -> timestep, as ``timestep_sampling.lognormal`` or a partial of it.
    spectrum: (k,) the variances e_i of the data, for the ``gaussian_baseline``.
    Returns the scalar loss and a report, for each bin of log SNR: ``loss_LOW_to_HIGH``, the unweighted loss of the
    examples in the bin, and ``gaussian_LOW_to_HIGH``, the baseline (31) of the same, each as a pair of mean and count.
    """
    timestep, eps = draw_timesteps_and_noise(keys, x0, schedule, timestep_sampling)
    level = schedule.level(timestep)
    xt = process.diffuse(x0, eps, level)
    predicted, variance_fraction = prediction.split_variance(predict(xt, timestep), xt)
    error = predicted - prediction.target(prediction_type, x0, eps, level)
    losses = jnp.mean(error**2, axis=tuple(range(1, x0.ndim)))
    total = jnp.mean(weighting(prediction_type, level) * losses)
    report: dict[str, Array | tuple[Array, Array]] = {**_bin_means("loss", losses, level)}
    if spectrum is not None:
        report |= _bin_means("gaussian", gaussian_loss(spectrum, level, prediction_type), level)
    if variance_fraction is not None:
        x0_hat = prediction.solve(prediction_type, jax.lax.stop_gradient(predicted), xt, level).x0
        bound = jnp.mean(variational_bound(x0_hat, variance_fraction, x0, xt, timestep, schedule))
        total = total + bound * schedule.timesteps / 1000
        report["bits"] = bound * schedule.timesteps
    return total, report


def _bin_means(name: str, values: Array, level: Level) -> dict[str, tuple[Array, Array]]:
    """Mean and count of the values in each bin of log SNR. values: (b,).   level: rates (b,)."""
    bin_index = jnp.searchsorted(jnp.asarray(EDGES), level.logsnr)
    members = bin_index[None] == jnp.arange(len(BINS))[:, None]
    count = members.sum(axis=1)
    mean = jnp.where(members, values[None], 0).sum(axis=1) / jnp.maximum(count, 1)
    return {f"{name}_{BINS[i]}": (mean[i], count[i]) for i in range(len(BINS))}


def variational_bound(
    x0_hat: Array, variance_fraction: Array, x0: Array, xt: Array, timestep: Array, schedule: Schedule
) -> Array:
    """The term of (30) for each example, in bits a dimension.

    x0_hat: the predicted x0, which determines the mean.   variance_fraction: see ``Denoised``.
    x0, xt, x0_hat, variance_fraction: (b, *dims).   timestep: (b,) whole.   Returns (b,).
    """
    timesteps = np.arange(schedule.timesteps)
    ends = schedule.rates(timesteps - 1), schedule.rates(timesteps)
    xt_coef, x0_coef, small = process.posterior(*ends)
    large = process.added_variance(*ends)
    small[0] = small[1]  # at t = 0 the posterior's variance would be 0 [iddpm sec. 3.1]

    def lookup(table: np.ndarray) -> Array:
        return broadcast_like(jnp.asarray(table, jnp.float32)[timestep.astype(jnp.int32)], x0)

    log_small, log_large = lookup(np.log(small)), lookup(np.log(large))
    log_variance = log_small + variance_fraction * (log_large - log_small)
    shift = lookup(x0_coef) * (x0 - x0_hat)  # of the means, which have the same term of xt
    kl = 0.5 * (log_variance - log_small - 1 + jnp.exp(log_small - log_variance) + shift**2 * jnp.exp(-log_variance))
    mean, std = lookup(xt_coef) * xt + lookup(x0_coef) * x0_hat, jnp.exp(log_variance / 2)
    # The probability of a pixel's value is that of the interval that rounds to it; at the two ends, of all beyond.
    upper = jnp.where(x0 > 0.999, 1.0, ndtr((x0 + 1 / 255 - mean) / std))
    lower = jnp.where(x0 < -0.999, 0.0, ndtr((x0 - 1 / 255 - mean) / std))
    negative_log_likelihood = -jnp.log(jnp.maximum(upper - lower, 1e-12))
    terms = jnp.where(broadcast_like(timestep, x0) == 0, negative_log_likelihood, kl)
    return jnp.mean(terms, axis=tuple(range(1, x0.ndim))) / jnp.log(2.0)
