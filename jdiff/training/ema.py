"""EMAs: running averages of the parameters, of which a run may keep several; samples are drawn with one of them.

One of constant decay d [ddpm app. B] forgets a step after some 1 / (1 - d) further steps. One with a power function of
time as its profile has the same shape however long training was [edm2 sec. 3.1]: after t steps, step i has the weight

    w_i = (i^(g+1) - (i-1)^(g+1)) / t^(g+1),    updated with the decay (1 - 1/t)^(g+1)                           (40)

It is named by its width, the standard deviation of i / t,

    width^2 = (g+1) / ((g+2)^2 (g+3)).                                                                           (41)

Post-hoc EMA: an average of any other width is a weighted sum of stored snapshots, fitted to the wanted profile by least
squares [edm2 sec. 3.2]; here the weights are constrained to sum to 1. The inner product of two profiles, one of t and g
and the other of s and h, is

    (g+1) (h+1) min(s, t)^(g+h+1) / ((g+h+1) t^(g+1) s^(h+1)).                                                   (42)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

WIDTH_PREFIX = "width="  # of the names of averages with a power function profile
NO_EMA = "none"  # in place of an average's name: the parameters themselves
MAX_WIDTH = 12**-0.5  # of (41), where every step has the same weight


@dataclass(frozen=True)
class EmaConfig:
    """The averages that a run keeps.

    decays: constant decays, below 1, each limited at the first steps.   widths: of (41), below ``MAX_WIDTH``.
    decay_names: the names of ``decays`` where these are traced, and so have no value yet.
    """

    decays: tuple[ArrayLike, ...] = ()
    widths: tuple[float, ...] = ()
    decay_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        decay_names = self.decay_names or tuple(f"{decay:g}" for decay in self.decays)
        return (*decay_names, *(width_name(width) for width in self.widths))

    def init(self, params) -> dict:
        """The averages before the first step, by name: copies of the parameters."""
        return {name: jax.tree.map(jnp.copy, params) for name in self.names}

    def update(self, averages: dict, params, step: Array) -> dict:
        """The averages after one more step. step: number of steps before it.

        A decay is at most (1 + step) / (10 + step), so that an average soon forgets the initial parameters.
        """
        rates = [1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step)) for decay in self.decays]
        rates += [-jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / (step + 1.0))) for width in self.widths]
        return {
            name: jax.tree.map(lambda old, new, rate=rate: old + rate * (new - old), averages[name], params)
            for name, rate in zip(self.names, rates, strict=True)
        }


def width_name(width: float) -> str:
    """The name of the average of a width, such as "width=0.1"."""
    return f"{WIDTH_PREFIX}{width:g}"


def parse_width(name: str) -> float | None:
    """The width in an average's name; None where it has none, or one that no average can have."""
    try:
        width = float(name.removeprefix(WIDTH_PREFIX))
    except ValueError:
        return None
    return width if name.startswith(WIDTH_PREFIX) and 0 < width < MAX_WIDTH else None


def exponent(width: float) -> float:
    """g of (41)."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(roots[np.abs(roots.imag) < 1e-9].real))


def fit_profile(snapshots: Sequence[tuple[int, float]], step: int, width: float) -> tuple[np.ndarray, float]:
    """Weights with which snapshots sum up to the average of another width.

    snapshots: (step, width) of each.   step, width: of the average to fit.
    Returns weights (n,) float64, and the error of the fitted profile, relative to the norm of the target profile.
    """
    steps = np.array([*(snapshot_step for snapshot_step, _ in snapshots), step], np.float64) / step
    exponents = np.array([*(exponent(snapshot_width) for _, snapshot_width in snapshots), exponent(width)])
    t, s = steps[:, None], steps[None]
    g, h = exponents[:, None], exponents[None]
    products = (g + 1) * (h + 1) / (g + h + 1) * (np.minimum(t, s) / t) ** (g + 1) * (np.minimum(t, s) / s) ** (h + 1)
    products /= np.minimum(t, s)
    gram, target, norm = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    system = np.pad(gram, (0, 1), constant_values=1.0)  # with the constraint that weights sum to 1
    system[-1, -1] = 0
    weights = np.linalg.lstsq(system, np.append(target, 1.0), rcond=1e-12)[0][:-1]
    squared_error = norm - 2 * weights @ target + weights @ gram @ weights
    return weights, float(np.sqrt(max(squared_error, 0) / norm))
