"""Spacings: which of a schedule's timesteps a sampler visits, from the noisiest to the cleanest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jdiff.diffusion.schedules import Discrete, Schedule


def leading(schedule: Schedule, steps: int) -> np.ndarray:
    """Even strides up from the first timestep, as Stable Diffusion was released; sampling starts below the last."""
    if isinstance(schedule, Discrete):
        return (np.arange(steps) * (schedule.timesteps // steps))[::-1]
    return (schedule.first + np.arange(steps) * (schedule.timesteps / steps))[::-1]


def trailing(schedule: Schedule, steps: int) -> np.ndarray:
    """Even strides down from the last timestep, so sampling starts where training ended [zsnr table 2]."""
    timesteps = schedule.timesteps - np.arange(steps) * (schedule.timesteps / steps)
    return np.round(timesteps).astype(int) - 1 if isinstance(schedule, Discrete) else timesteps


def linspace(schedule: Schedule, steps: int) -> np.ndarray:
    """Even strides from the last timestep to the first, both included."""
    timesteps = np.linspace(schedule.last, schedule.first, steps)
    return np.round(timesteps).astype(int) if isinstance(schedule, Discrete) else timesteps


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> np.ndarray:
    """Even in the rho-th root of sigma / alpha, from the noisiest level to the cleanest [edm eq. 5]."""

    def root_of(logsnr):
        return np.exp(-logsnr / 2 / rho)

    return _even_in(schedule, steps, root_of, inverse=lambda root: -2 * rho * np.log(root))


def logsnr_uniform(schedule: Schedule, steps: int) -> np.ndarray:
    """Even in the log SNR, from the noisiest level to the cleanest [dpmsolver sec. 3.4]."""
    return _even_in(schedule, steps, lambda logsnr: logsnr, inverse=lambda logsnr: logsnr)


def _even_in(schedule: Schedule, steps: int, coordinate: Callable, *, inverse: Callable) -> np.ndarray:
    """Timesteps, whole or not, evenly spaced in a coordinate, which is a function of the log SNR.

    Pure noise has an infinite log SNR. Where a schedule ends with it, it is the first timestep, and the even spacing
    starts one timestep below.
    """
    noisiest = schedule.last
    pure_noise = [noisiest] if schedule.rates(np.array(noisiest)).alpha == 0 else []
    ends = coordinate(schedule.rates(np.array([noisiest - len(pure_noise), schedule.first])).logsnr)
    timesteps = schedule.timestep(inverse(np.linspace(ends[0], ends[1], steps - len(pure_noise))))
    return np.clip(np.concatenate([pure_noise, timesteps]), schedule.first, schedule.last)


SPACINGS = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "logsnr": logsnr_uniform,
}
