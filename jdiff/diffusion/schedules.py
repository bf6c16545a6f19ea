"""Noise schedules: the signal and noise rates at each timestep.

Discrete, of T timesteps 0..T-1, as a table:

    alpha_bar(t) = prod_{s <= t} (1 - beta(s))                                  [ddpm eq. 4]     (1)
    cosine: alpha_bar = f(t + 1) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2)  [iddpm eq. 17]   (2)

Betas are those of 1000 timesteps; for another T each step keeps (1 - beta)^(1000/T), so that every T ends as noisy.

Continuous, at a time u = timestep / T in (0, 1], as a log SNR:

    linear, scaled_linear: logsnr = -log(exp(B) - 1), B(u) = the integral of 1000 beta   [sde eq. 33]   (13)
    cosine:   logsnr = -2 log tan(u pi/2), between two ends                              [vdmpp eq. 5]  (14)
    sigmoid:  1 - alpha_bar = (S(a + u (b - a)) - S(a)) / (S(b) - S(a)), S the logistic  [noising alg. 1] (15)
    logsnr:   a straight line                                                            [vdm sec. 4.1] (16)

Either kind can be shifted to larger images, whose neighbouring pixels average noise away, and brought to end at pure
noise:

    shifted:  logsnr - 2 log(ratio of sides)                                    [vdmpp eq. 6]    (17)
    zero terminal SNR: alpha = (alpha - alpha_T) alpha_0 / (alpha_0 - alpha_T)  [zsnr alg. 1]    (18)

Tables are computed once, in float64 on the host, where 1 - alpha_bar keeps its digits, and reach
the device as rates (alpha, sigma), never as their squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jdiff.levels import AnyArray, Level


@dataclass(frozen=True)
class Discrete:
    """A schedule of whole timesteps. alpha_bar: (T,) float64, falling, of timesteps 0..T-1."""

    alpha_bar: np.ndarray

    @property
    def timesteps(self) -> int:
        """T, the number of steps of the forward process."""
        return len(self.alpha_bar)

    @property
    def first(self) -> float:
        """The cleanest timestep."""
        return 0.0

    @property
    def last(self) -> float:
        """The noisiest timestep."""
        return self.timesteps - 1.0

    def rates(self, timestep: np.ndarray) -> Level[np.ndarray]:
        """Levels in float64 on the host; timestep -1 is the clean image.

        Between whole timesteps, which some spacings visit, (alpha, sigma) is interpolated linearly and normalized to
        alpha^2 + sigma^2 = 1.
        """
        return self._interpolate(self.table, np.asarray(timestep, np.float64), np)

    def level(self, timestep: Array) -> Level[Array]:
        """Levels of timesteps on the device. timestep: (b,) in 0..T-1. Returns rates of shape (b,)."""
        table = jax.tree.map(lambda rate: jnp.asarray(rate, jnp.result_type(float)), self.table)
        return self._interpolate(table, timestep, jnp)

    def timestep(self, logsnr: np.ndarray) -> np.ndarray:
        """The inverse of ``rates``: the timestep, whole or not, of a log SNR; clipped to -1..T-1."""
        level, table = _rates(np.asarray(logsnr, np.float64), np), self.table
        angles = np.arctan2(table.sigma, table.alpha)
        i = np.clip(np.searchsorted(angles, np.arctan2(level.sigma, level.alpha)) - 1, 0, self.timesteps - 1)
        turn = level.sigma * np.diff(table.alpha)[i] - level.alpha * np.diff(table.sigma)[i]
        fraction = (level.alpha * table.sigma[i] - level.sigma * table.alpha[i]) / turn
        return i - 1 + np.clip(fraction, 0, 1)

    def nearest_timestep(self, logsnr: Array) -> Array:
        """The whole timestep of nearest log SNR, on the device; beyond the ends, the first or last."""
        table = jax.tree.map(lambda rate: jnp.asarray(rate[1:], jnp.result_type(float)), self.table).logsnr
        edges = (table[1:] + table[:-1]) / 2
        return jnp.searchsorted(-edges, -logsnr, side="right").astype(table.dtype)

    @property
    def table(self) -> Level[np.ndarray] | Level[Array]:
        """Rates of timesteps -1..T-1."""
        alpha_bar = np.insert(self.alpha_bar, 0, 1.0)
        return Level(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def _interpolate(self, table: Level, timestep: AnyArray, xp) -> Level:
        whole_timestep = xp.floor(timestep)
        i = whole_timestep.astype(int) + 1
        fraction, j = timestep - whole_timestep, xp.minimum(i + 1, self.timesteps)
        alpha, sigma = (rate[i] + fraction * (rate[j] - rate[i]) for rate in (table.alpha, table.sigma))
        norm = xp.where(fraction == 0, 1.0, xp.hypot(alpha, sigma))
        return Level(alpha / norm, sigma / norm)

    def quantile(self, u: Array) -> Array:
        """The timestep at a quantile u, in [0, 1), of all; uniform quantiles make uniform timesteps."""
        return jnp.minimum(jnp.floor(self.timesteps * u), self.last)

    def with_traced_table(self, table: Level) -> Discrete:
        """The same schedule with its alpha/sigma table as a traced input, so that schedules share one program."""
        return _TracedDiscrete(self.alpha_bar, table)

    def shifted(self, ratio: float) -> Discrete:
        """(17): as noisy for images whose sides are ``ratio`` times as long."""
        return Discrete(self.alpha_bar / (self.alpha_bar + ratio**2 * (1 - self.alpha_bar)))

    def zero_terminal(self) -> Discrete:
        """(18): the last timestep is pure noise."""
        alpha = np.sqrt(self.alpha_bar)
        return Discrete(((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)


@dataclass(frozen=True)
class _TracedDiscrete(Discrete):
    """See ``Discrete.with_traced_table``: what runs on the device reads the traced table, the rest alpha_bar."""

    traced_table: Level

    @property
    def table(self) -> Level:
        return self.traced_table


@dataclass(frozen=True)
class Continuous:
    """A schedule of a continuous time u in (0, 1], which networks receive as timestep = T u in [T/1000, T].

    logsnr: (u, xp) -> log SNR, xp being numpy or jax.numpy.   time: its inverse, (log SNR, xp) -> u.
    """

    timesteps: int
    logsnr: Callable
    time: Callable

    @property
    def first(self) -> float:
        """The cleanest timestep that is trained: at time 0 there is no noise to predict."""
        return self.timesteps / 1000

    @property
    def last(self) -> float:
        """The noisiest timestep."""
        return float(self.timesteps)

    def rates(self, timestep: np.ndarray) -> Level[np.ndarray]:
        """Levels in float64 on the host; timestep -1 is the clean image."""
        timestep = np.asarray(timestep, np.float64)
        with np.errstate(divide="ignore"):
            level = _rates(self.logsnr(np.maximum(timestep, 0) / self.timesteps, np), np)
        clean = timestep < 0
        return Level(np.where(clean, 1.0, level.alpha), np.where(clean, 0.0, level.sigma))

    def timestep(self, logsnr: np.ndarray) -> np.ndarray:
        """The inverse of ``rates``, clipped to 0..T."""
        with np.errstate(over="ignore", divide="ignore"):
            return np.clip(self.time(np.asarray(logsnr, np.float64), np), 0, 1) * self.timesteps

    def nearest_timestep(self, logsnr: Array) -> Array:
        """The timestep of a log SNR, on the device; beyond the ends, the first or last."""
        return jnp.clip(self.time(logsnr, jnp) * self.timesteps, self.first, self.last)

    def level(self, timestep: Array) -> Level[Array]:
        """Levels of timesteps on the device. timestep: (b,). Returns rates of shape (b,)."""
        return _rates(self.logsnr(timestep / self.timesteps, jnp), jnp)

    def quantile(self, u: Array) -> Array:
        """The timestep at a quantile u, in [0, 1), of all."""
        return self.first + (self.last - self.first) * u

    def shifted(self, ratio: float) -> Continuous:
        """(17): as noisy for images whose sides are ``ratio`` times as long."""
        shift = 2 * np.log(ratio)
        return replace(
            self, logsnr=lambda u, xp: self.logsnr(u, xp) - shift, time=lambda logsnr, xp: self.time(logsnr + shift, xp)
        )

    def zero_terminal(self) -> Continuous:
        """(18): time 1 is pure noise."""
        with np.errstate(divide="ignore"):
            ends = _rates(self.logsnr(np.array([0.0, 1.0]), np), np)
        start, end = ends.alpha
        start_gap = ends.sigma[0] ** 2 / (1 + start)  # 1 - alpha, without cancellation

        def logsnr(u, xp):
            level = _rates(self.logsnr(u, xp), xp)
            gap = level.sigma**2 / (1 + level.alpha)
            new_gap = start_gap + start * (gap - start_gap) / (start - end)
            alpha = xp.where(u >= 1, 0.0, xp.maximum(1 - new_gap, 0.0))  # near 1, float32 may round below 0
            return 2 * xp.log(alpha) - xp.log(new_gap * (1 + alpha))

        def time(logsnr, xp):
            alpha = xp.minimum(_rates(logsnr, xp).alpha * (start - end) / start + end, 1.0)
            return xp.where(alpha <= end, 1.0, self.time(2 * xp.log(alpha) - xp.log1p(-(alpha**2)), xp))

        return replace(self, logsnr=logsnr, time=time)


Schedule = Discrete | Continuous


def _rates(logsnr, xp) -> Level:
    """alpha and sigma of a log SNR, each computed without cancellation."""
    return Level(xp.exp(-xp.logaddexp(0.0, -logsnr) / 2), xp.exp(-xp.logaddexp(0.0, logsnr) / 2))


def from_betas(beta: np.ndarray) -> Discrete:
    """(1): the schedule whose single steps add variance ``beta``. beta: (T,) float64 in (0, 1)."""
    return Discrete(np.cumprod(1 - beta))


def linear(timesteps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """DDPM's schedule: beta grows linearly from start to end [ddpm sec. 4]."""
    return from_betas(_per_step(np.linspace(beta_start, beta_end, timesteps)))


def scaled_linear(timesteps: int = 1000, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> Discrete:
    """Stable Diffusion's schedule: the square root of beta grows linearly [ldm]."""
    return from_betas(_per_step(np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2))


def _per_step(beta: np.ndarray) -> np.ndarray:
    """Betas of 1000 timesteps, converted to as many timesteps as there are."""
    return beta if len(beta) == 1000 else -np.expm1(1000 / len(beta) * np.log1p(-beta))


def cosine(timesteps: int = 1000, *, offset: float = 0.008, beta_max: float = 0.999) -> Discrete:
    """(2): noise grows slowly at both ends; each beta is at most ``beta_max``, so no level is pure noise."""
    edge = np.arange(timesteps + 1) / timesteps
    signal = np.cos((edge + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - signal[1:] / signal[:-1], beta_max))


def sigmoid(timesteps: int = 1000, *, start: float = -3.0, end: float = 3.0) -> Discrete:
    """(15) at times (t + 1) / T: most timesteps have a medium log SNR."""
    return _discretize(continuous_sigmoid(timesteps, start=start, end=end))


def logsnr(timesteps: int = 1000, *, logsnr_max: float = 10.0, logsnr_min: float = -10.0) -> Discrete:
    """(16) at times (t + 1) / T: the log SNR falls by the same amount in every timestep."""
    return _discretize(continuous_logsnr(timesteps, logsnr_max=logsnr_max, logsnr_min=logsnr_min))


def _discretize(schedule: Continuous) -> Discrete:
    return Discrete(schedule.rates(np.arange(1, schedule.timesteps + 1)).alpha ** 2)


def continuous_linear(timesteps: int = 1000, *, beta_min: float = 0.1, beta_max: float = 20.0) -> Continuous:
    """(13) of DDPM's betas times 1000: the limit of infinitely many timesteps."""
    rise = beta_max - beta_min

    def logsnr(u, xp):
        return -xp.log(xp.expm1(u * (beta_min + u * rise / 2)))

    def time(logsnr, xp):
        total = xp.logaddexp(0, -logsnr)
        return 2 * total / (beta_min + xp.sqrt(beta_min**2 + 2 * rise * total))

    return Continuous(timesteps, logsnr, time)


def continuous_scaled_linear(timesteps: int = 1000, *, beta_min: float = 0.85, beta_max: float = 12.0) -> Continuous:
    """(13) of Stable Diffusion's betas times 1000."""
    low, rise = beta_min**0.5, beta_max**0.5 - beta_min**0.5

    def logsnr(u, xp):
        root = low + rise * u
        return -xp.log(xp.expm1(u * (root**2 + root * low + low**2) / 3))

    def time(logsnr, xp):
        return (xp.cbrt(low**3 + 3 * rise * xp.logaddexp(0, -logsnr)) - low) / rise

    return Continuous(timesteps, logsnr, time)


def continuous_cosine(timesteps: int = 1000, *, logsnr_max: float = 15.0, logsnr_min: float = -15.0) -> Continuous:
    """(14): alpha and sigma are the cosine and sine of an angle that grows linearly between the two ends."""
    low, high = np.arctan(np.exp(-logsnr_max / 2)), np.arctan(np.exp(-logsnr_min / 2))

    def logsnr(u, xp):
        return -2 * xp.log(xp.tan(low + u * (high - low)))

    def time(logsnr, xp):
        return (xp.arctan(xp.exp(-logsnr / 2)) - low) / (high - low)

    return Continuous(timesteps, logsnr, time)


def continuous_sigmoid(timesteps: int = 1000, *, start: float = -3.0, end: float = 3.0) -> Continuous:
    """(15), with alpha_bar at least 1e-9, as published."""
    low, high = (1 / (1 + np.exp(-edge)) for edge in (start, end))

    def logistic_rise(value, move, xp):
        """S(x + move) - S(x) for value = S(x), as a product, without cancellation where the two are close."""
        return value * (1 - value) * xp.expm1(move) / (1 + value * xp.expm1(move))

    def logsnr(u, xp):
        noise = logistic_rise(low, (end - start) * u, xp)
        signal = logistic_rise(low + noise, (end - start) * (1 - u), xp)
        return xp.log(xp.maximum(signal / (high - low), 1e-9)) - xp.log(noise / (high - low))

    def time(logsnr, xp):
        logistic = low + (high - low) * xp.exp(-xp.logaddexp(0, logsnr))
        return (xp.log(logistic) - xp.log1p(-logistic) - start) / (end - start)

    return Continuous(timesteps, logsnr, time)


def continuous_logsnr(timesteps: int = 1000, *, logsnr_max: float = 10.0, logsnr_min: float = -10.0) -> Continuous:
    """(16); the defaults are about the ends of DDPM's schedule."""
    fall = logsnr_min - logsnr_max
    return Continuous(timesteps, lambda u, xp: logsnr_max + fall * u, lambda logsnr, xp: (logsnr - logsnr_max) / fall)


# The discrete and the continuous form of each; None where a schedule has only the other.
SCHEDULES: dict[str, tuple[Callable[..., Discrete] | None, Callable[..., Continuous] | None]] = {
    "linear": (linear, continuous_linear),
    "scaled_linear": (scaled_linear, continuous_scaled_linear),
    "cosine": (cosine, continuous_cosine),
    "sigmoid": (sigmoid, continuous_sigmoid),
    "logsnr": (logsnr, continuous_logsnr),
}


def make(
    name: str,
    timesteps: int = 1000,
    *,
    continuous: bool = False,
    shift: float = 1.0,
    zero_terminal_snr: bool = False,
    **parameters: float,
) -> Schedule:
    """A schedule by its name in ``SCHEDULES``, then shifted by (17) and brought to zero terminal SNR by (18).

    parameters: of the schedule's function, as beta_end of ``linear`` or logsnr_max of ``continuous_cosine``.
    Raises ``ValueError`` where the schedule has no form of the kind that ``continuous`` asks for.
    """
    schedule_of = SCHEDULES[name][continuous]
    if schedule_of is None:
        raise ValueError(
            f"schedule {name!r} is only {'discrete' if continuous else 'continuous'}, but continuous is {continuous}; "
            f"set config.diffusion.continuous = {not continuous}"
        )
    schedule = schedule_of(timesteps, **parameters)
    schedule = schedule if shift == 1 else schedule.shifted(shift)
    return schedule.zero_terminal() if zero_terminal_snr else schedule
