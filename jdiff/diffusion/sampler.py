"""The one loop that runs any tableau, from noise to image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jdiff import rng
from jdiff.diffusion.solvers import Tableau


def start(keys: Array, shape: tuple[int, ...]) -> Array:
    """Where sampling begins: standard normal noise from each image's own key. Returns (b, *shape)."""
    return rng.normal(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def sample(
    denoise: Callable, tableau: Tableau, xt: Array, *, keys: Array, trajectory: bool = False
) -> tuple[Array, Array | None]:
    """Run every row of a tableau, equation (9) of ``solvers``, under one ``lax.scan``.

    denoise: (xt, timestep (b,), level of (b,)) -> (x0, eps).
    xt: (b, *dims) the noise to start from.   keys: (b,) one per image: an image's noise is its own.
    Returns x0 (b, *dims) and, on request, the denoiser's x0 at every row, (rows, b, *dims).
    """
    b = xt.shape[0]

    def step(xt: Array, row: tuple[Array, Tableau]) -> tuple[Array, Array | None]:
        number, at = row
        timestep, level = jax.tree.map(lambda value: jnp.broadcast_to(value, (b,)), (at.timestep, at.level))
        x0, eps = denoise(xt, timestep, level)
        z = rng.normal(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), xt.shape[1:])
        xs = at.of_xt * xt + at.of_x0 * x0 + at.of_eps * eps + at.of_noise * z
        return xs, (x0 if trajectory else None)

    rows = tableau.timestep.shape[0]
    return jax.lax.scan(step, xt, (jnp.arange(1, rows + 1), tableau))
