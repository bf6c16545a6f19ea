"""Timestep samplings: the distribution that the timesteps of training examples are drawn from.

Each is a function (key, schedule) -> timestep of one example, a () float in the schedule's range. "uniform", "linear"
and "logit_normal" are distributions of the quantile u in [0, 1) of all timesteps, and follow the schedule; "lognormal"
is one of noise levels, and the same on every schedule.

[sd3]: arXiv 2403.03206.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff.diffusion.schedules import Schedule

TimestepSampling = Callable[[Array, Schedule], Array]


def uniform(key: Array, schedule: Schedule) -> Array:
    """Every timestep as often as any other [ddpm alg. 1]."""
    return schedule.quantile(jax.random.uniform(key))


def linear(key: Array, schedule: Schedule) -> Array:
    """Timestep t with probability proportional to t + 1/2: noisy ones, where a caption decides the layout, more often.

    No loss weight compensates for it, unlike the importance sampling of [iddpm eq. 18].
    """
    return schedule.quantile(jnp.sqrt(jax.random.uniform(key)))


def logit_normal(key: Array, schedule: Schedule, *, mean: float = 0.0, std: float = 1.0) -> Array:
    """The logit of the quantile is normal: the middle of the schedule more often than its ends [sd3 sec. 3.1].

    mean: above 0 for noisier timesteps.   std: smaller for a narrower middle.
    """
    return schedule.quantile(jax.nn.sigmoid(mean + std * jax.random.normal(key)))


def lognormal(key: Array, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2) -> Array:
    """The log of edm_sigma = sigma / alpha is normal, whatever the schedule [edm table 1].

    mean, std: EDM's P_mean and P_std, for data of standard deviation 0.5. Draws beyond the schedule's ends become its
    first or last timestep.
    """
    log_edm_sigma = mean + std * jax.random.normal(key)
    return schedule.nearest_timestep(-2 * log_edm_sigma)


TIMESTEP_SAMPLINGS: dict[str, TimestepSampling] = {
    "uniform": uniform,
    "linear": linear,
    "logit_normal": logit_normal,
    "lognormal": lognormal,
}
