"""Spacings: which of a schedule's timesteps a sampler visits, from the noisiest to the cleanest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jdiff.diffusion.schedules import Discrete, Schedule


def leading(schedule: Schedule, steps: int) -> np.ndarray:
    """Even strides up from the first timestep, as Stable Diffusion ships; they do not start at the last."""
    if isinstance(schedule, Discrete):
        return (np.arange(steps) * (schedule.timesteps // steps))[::-1]
    return (schedule.first + np.arange(steps) * (schedule.timesteps / steps))[::-1]


def trailing(schedule: Schedule, steps: int) -> np.ndarray:
    """Even strides down from the last timestep, so sampling starts where training ended [zsnr table 2]."""
    timesteps = schedule.timesteps - np.arange(steps) * (schedule.timesteps / steps)
    return np.round(timesteps).astype(int) - 1 if isinstance(schedule, Discrete) else timesteps


def linspace(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly from the last timestep to the first, both included."""
    timesteps = np.linspace(schedule.last, schedule.first, steps)
    return np.round(timesteps).astype(int) if isinstance(schedule, Discrete) else timesteps


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> np.ndarray:
    """Even in the rho-th root of sigma / alpha, from the noisiest level to the cleanest [edm eq. 5]."""
    return _between(schedule, steps, of=lambda at: np.exp(-at / 2 / rho), to=lambda root: -2 * rho * np.log(root))


def logsnr_uniform(schedule: Schedule, steps: int) -> np.ndarray:
    """Even in the log SNR, from the noisiest level to the cleanest [dpmsolver sec. 3.4]."""
    return _between(schedule, steps, of=lambda at: at, to=lambda at: at)


def _between(schedule: Schedule, steps: int, *, of: Callable, to: Callable) -> np.ndarray:
    """Timesteps, whole or not, evenly spaced in a function ``of`` the log SNR, whose inverse is ``to``.

    A pure noise that a schedule may end with has no log SNR; it is taken as it is, and the rest begins one below.
    """
    noisiest = schedule.last
    pure = [noisiest] if schedule.rates(np.array(noisiest)).alpha == 0 else []
    ends = schedule.rates(np.array([noisiest - len(pure), schedule.first])).logsnr
    between = schedule.timestep(to(np.linspace(of(ends[0]), of(ends[1]), steps - len(pure))))
    return np.clip(np.concatenate([pure, between]), schedule.first, schedule.last)


SPACINGS = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "logsnr": logsnr_uniform,
}
