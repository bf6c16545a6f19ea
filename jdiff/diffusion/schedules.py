"""Noise schedules: how much of the image is left at each timestep.

    alpha_bar(t) = prod_{s <= t} (1 - beta(s))                                  [ddpm eq. 4]     (1)
    cosine: alpha_bar = f(t + 1) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2)  [iddpm eq. 17]   (2)

Tables are made once, in float64 on the host, where 1 - alpha_bar keeps its digits, and reach
the device as rates (alpha, sigma), never as their squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff.levels import Level


@dataclass(frozen=True)
class Schedule:
    """A discrete schedule. alpha_bar: (T,) float64, falling, of timesteps 0..T-1."""

    alpha_bar: np.ndarray

    @property
    def timesteps(self) -> int:
        """T, the number of steps of the forward process."""
        return len(self.alpha_bar)

    def rates(self, timestep: np.ndarray) -> Level:
        """Levels of integer timesteps in float64 on the host; timestep -1 is the clean image."""
        alpha_bar = np.append(self.alpha_bar, 1.0)[timestep]
        return Level(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def level(self, timestep: Array) -> Level:
        """Levels of timesteps on the device. timestep: (b,) int in 0..T-1. Returns rates of shape (b,)."""
        table = self.rates(np.arange(self.timesteps))
        return Level(jnp.asarray(table.alpha, jnp.float32)[timestep], jnp.asarray(table.sigma, jnp.float32)[timestep])


def from_betas(beta: np.ndarray) -> Schedule:
    """(1): the schedule whose single steps add variance ``beta``. beta: (T,) float64 in (0, 1)."""
    return Schedule(np.cumprod(1 - beta))


def linear(timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """DDPM's own schedule: beta grows evenly from start to end [ddpm sec. 4]."""
    return from_betas(np.linspace(beta_start, beta_end, timesteps))


def scaled_linear(timesteps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Stable Diffusion's schedule: the root of beta grows evenly [ldm]."""
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2)


def cosine(timesteps: int = 1000, *, offset: float = 0.008, beta_max: float = 0.999) -> Schedule:
    """(2): noise comes slowly at both ends; each beta is held below ``beta_max``, so no level is pure noise."""
    edge = np.arange(timesteps + 1) / timesteps
    signal = np.cos((edge + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - signal[1:] / signal[:-1], beta_max))


SCHEDULES = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def leading(timesteps: int, steps: int) -> np.ndarray:
    """Every (T // steps)-th timestep from 0, as Stable Diffusion ships; it does not start at T - 1."""
    return (np.arange(steps) * (timesteps // steps))[::-1]


def trailing(timesteps: int, steps: int) -> np.ndarray:
    """Even strides down from T - 1, so sampling starts where training ended [zsnr table 2]."""
    return np.round(timesteps - np.arange(steps) * (timesteps / steps)).astype(int) - 1


def linspace(timesteps: int, steps: int) -> np.ndarray:
    """Evenly from T - 1 to 0, both included."""
    return np.round(np.linspace(timesteps - 1, 0, steps)).astype(int)


SPACINGS = {"leading": leading, "trailing": trailing, "linspace": linspace}
