"""Running averages of parameters, which samples are drawn from, several of one run.

One of a constant decay d [ddpm app. B] forgets a step after some 1 / (1 - d) more. One of a power function of time has
the same shape however long training was [edm2 sec. 3.1]: after t steps, step i weighs

    w_i = (i^(g+1) - (i-1)^(g+1)) / t^(g+1),    kept up by a decay of (1 - 1/t)^(g+1)                            (40)

and it is named by its width, the standard deviation of i / t,

    width^2 = (g+1) / ((g+2)^2 (g+3)).                                                                           (41)

Any other width is made afterwards of snapshots of some: of all sums of the profiles that were kept, the nearest to the
one that is wanted, in least squares [edm2 sec. 3.2], and here of those whose shares add up to 1. The products of two,
of t and g and of s and h, are

    (g+1) (h+1) min(s, t)^(g+h+1) / ((g+h+1) t^(g+1) s^(h+1)).                                                   (42)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

WIDTH = "width="  # what the names of averages begin with that have one
NO_EMA = "none"  # in place of a name: the parameters themselves
WIDEST = 12**-0.5  # of (41), where every step weighs the same


@dataclass(frozen=True)
class EmaConfig:
    """The averages that a run keeps. decays: below 1, each reached step by step.   widths: up to ``WIDEST``.

    called: the names of ``decays``, where these are only known when a compiled program runs.
    """

    decays: tuple[float | Array, ...] = ()
    widths: tuple[float, ...] = ()
    called: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        decays = self.called or tuple(f"{decay:g}" for decay in self.decays)
        return (*decays, *(name_of(width) for width in self.widths))

    def begin(self, params) -> dict:
        """EmaConfig of no steps yet, by name; each starts at the parameters."""
        return {name: jax.tree.map(jnp.copy, params) for name in self.names}

    def update(self, averages: dict, params, step: Array) -> dict:
        """The averages with one more step. step: how many they are of.

        A decay is at most (1 + step) / (10 + step): a short memory at first lets an average forget where it began.
        """
        moved = [1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step)) for decay in self.decays]
        moved += [-jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / (step + 1.0))) for width in self.widths]
        return {
            name: jax.tree.map(lambda old, new, by=by: old + by * (new - old), averages[name], params)
            for name, by in zip(self.names, moved, strict=True)
        }


def name_of(width: float) -> str:
    """The name of an average of a width."""
    return f"{WIDTH}{width:g}"


def width_of(name: str) -> float | None:
    """The width that a name says; None where it says none that an average can have."""
    try:
        width = float(name.removeprefix(WIDTH))
    except ValueError:
        return None
    return width if name.startswith(WIDTH) and 0 < width < WIDEST else None


def exponent(width: float) -> float:
    """g of (41)."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(max(roots[np.abs(roots.imag) < 1e-9].real))


def combination(kept: Sequence[tuple[int, float]], step: int, width: float) -> tuple[np.ndarray, float]:
    """How to add averages up to one of another width.

    kept: (step, width) of each average.   step, width: of the one that is wanted.
    Returns (n,) float64, and how far the profile that they make is from the one wanted, of its norm.
    """
    steps = np.array([*(at for at, _ in kept), step], np.float64) / step
    exponents = np.array([*(exponent(of) for _, of in kept), exponent(width)])
    t, s = steps[:, None], steps[None]
    g, h = exponents[:, None], exponents[None]
    products = (g + 1) * (h + 1) / (g + h + 1) * (np.minimum(t, s) / t) ** (g + 1) * (np.minimum(t, s) / s) ** (h + 1)
    products /= np.minimum(t, s)
    among, wanted, norm = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    bound = np.pad(among, (0, 1), constant_values=1.0)  # all shares add up to 1, so that no parameter shrinks
    bound[-1, -1] = 0
    found = np.linalg.lstsq(bound, np.append(wanted, 1.0), rcond=1e-12)[0][:-1]
    left = norm - 2 * found @ wanted + found @ among @ found
    return found, float(np.sqrt(max(left, 0) / norm))
