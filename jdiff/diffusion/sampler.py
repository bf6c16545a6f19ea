"""The one loop that runs any tableau, from noise to image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jdiff import rng
from jdiff.diffusion.tableau import Tableau
from jdiff.levels import over


def start(keys: Array, shape: tuple[int, ...]) -> Array:
    """Where sampling begins: standard normal noise from each image's own key. Returns (b, *shape)."""
    return rng.normal(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def sample(
    denoise: Callable,
    tableau: Tableau,
    xt: Array,
    *,
    keys: Array,
    memory: Array | None = None,
    history: Array | None = None,
    trajectory: bool = False,
) -> tuple[Array, Array | None]:
    """Run every row of a tableau, equation (9) of ``solvers``, under one ``lax.scan``.

    Rows that are idle in every image are passed over, and noise is drawn only where a row asks for it, both by a scalar
    condition: what is not used costs nothing. An image's noise is its own, by its key and the number of the row.

    denoise: (xt, row) -> ``Answer``, the fields of row being (b,), without the weights; where there is a memory,
        (xt, row, memory) -> (``Answer``, memory).
    tableau: one for all images, or one for each.   xt: (b, *dims) the noise to start from.   keys: (b,) one per image.
    memory: what denoise remembers from row to row, at the start.
    history: (depth, b, *dims) the d of (9) before the first row, latest first; nothing is known if not given.
    Returns x0 (b, *dims) and, on request, the denoiser's x0 at every row, (rows, b, *dims).
    """
    b = xt.shape[0]
    depth = tableau.weights.shape[1]
    if history is None:
        history = jnp.zeros((depth, *xt.shape), xt.dtype)

    def run(number: Array, row: Tableau, state):
        xt, history, memory = state
        told = jax.tree.map(lambda column: jnp.broadcast_to(column, (b,)), replace(row, weights=0.0))
        answer, memory = (denoise(xt, told), None) if memory is None else denoise(xt, told, memory)
        found = over(row.of_x0, xt) * answer.x0 + over(row.of_eps, xt) * answer.eps
        history = jnp.concatenate([found[None], history[:-1]])
        xs = over(row.of_xt, xt) * xt
        for j in range(depth):
            xs = xs + over(row.weights[j], xt) * history[j]

        def noisy(xs: Array) -> Array:
            z = rng.normal(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), xs.shape[1:])
            size = over(row.of_noise, xt)
            if answer.fraction is not None:
                size = size * jnp.exp(answer.fraction * over(row.noise_range, xt))
            return xs + size * z

        xs = jax.lax.cond(jnp.any(row.of_noise != 0), noisy, lambda xs: xs, xs)
        return (xs, history, memory), (answer.x0 if trajectory else None)

    def step(state, numbered):
        number, row = numbered

        def idle(state):
            return state, (jnp.zeros_like(xt) if trajectory else None)

        return jax.lax.cond(jnp.any(row.active), lambda state: run(number, row, state), idle, state)

    numbers = jnp.arange(1, tableau.rows + 1)
    tableau = jax.tree.map(jnp.asarray, tableau)
    (x0, _, _), path = jax.lax.scan(step, (xt, history, memory), (numbers, tableau))
    return x0, path
