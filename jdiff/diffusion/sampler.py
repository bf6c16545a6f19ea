"""The loops that run any tableau, from noise to image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jdiff import rng
from jdiff.diffusion.tableau import Tableau
from jdiff.levels import broadcast_like


def initial_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """Where sampling begins: standard normal noise from each image's own key. Returns (b, *shape)."""
    return _noise(keys, 0, shape)


def _noise(keys: Array, number: int | Array, shape: tuple[int, ...]) -> Array:
    """An image's own noise, by its key and a number: 0 is the start, i + 1 is of row i."""
    return rng.normal(jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), shape)


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

    denoise: (xt, row) -> ``Denoised``, the fields of row being (b,), without the weights; where there is a memory,
        (xt, row, memory) -> (``Denoised``, memory).
    tableau: one for all images, or one for each.   xt: (b, *dims) the noise to start from.   keys: (b,) one per image.
    memory: what denoise remembers from row to row, at the start.
    history: (depth, b, *dims) the d of (9) before the first row, latest first; nothing is known if not given.
    Returns x0 (b, *dims) and, on request, the denoiser's x0 at every row, (rows, b, *dims), where a row is idle the
    image as it is.
    """
    tableau = jax.tree.map(jnp.asarray, tableau)

    def step(state, number: Array):
        state, x0 = _row(denoise, tableau, keys, number, state)
        return state, (x0 if trajectory else None)

    state, path = jax.lax.scan(step, _begin(tableau, xt, memory, history), jnp.arange(tableau.rows))
    return state[0], path


def sample_in_turns(
    denoisers: Sequence[Callable], which: Array, tableau: Tableau, xt: Array, *, keys: Array, memory: Array
) -> Array:
    """As ``sample``, of a tableau with rows to spare, and where not every row has the same denoiser.

    Each run of rows with one denoiser is a loop of its own, and the last ends with the last row that any image uses:
    a scan that skipped the others by a condition would stop for each of them on a GPU, where the host reads it, and
    what lies inside of a condition is not moved out of the loop.

    denoisers: (xt, row, memory) -> (``Denoised``, memory).   which: (rows,) the number of each row's denoiser.
    Returns x0 (b, *dims).
    """
    used = jnp.sum(jnp.any(tableau.active.reshape(tableau.rows, -1), axis=1))

    def turns(state):
        for kind, denoise in enumerate(denoisers):
            state = jax.lax.while_loop(
                lambda state, kind=kind: (state[0] < used) & (which[state[0]] == kind),
                lambda state, denoise=denoise: (state[0] + 1, _row(denoise, tableau, keys, state[0], state[1])[0]),
                state,
            )
        return state

    begun = (jnp.zeros((), jnp.int32), _begin(tableau, xt, memory, None))
    return jax.lax.while_loop(lambda state: state[0] < used, turns, begun)[1][0]


def _begin(tableau: Tableau, xt: Array, memory: Array | None, history: Array | None) -> tuple:
    if history is None:
        history = jnp.zeros((tableau.weights.shape[1], *xt.shape), xt.dtype)
    return xt, history, memory


def _row(denoise: Callable, tableau: Tableau, keys: Array, number: Array, state: tuple) -> tuple[tuple, Array]:
    """One row, (9). Noise is drawn where the row asks for any.

    Returns the state after it, and the denoiser's x0.
    """
    xt, history, memory = state
    row = jax.tree.map(lambda column: column[number], tableau)
    row_per_image = jax.tree.map(lambda column: jnp.broadcast_to(column, xt.shape[:1]), replace(row, weights=0.0))
    answer, memory = (denoise(xt, row_per_image), None) if memory is None else denoise(xt, row_per_image, memory)
    found = broadcast_like(row.x0_coef, xt) * answer.x0 + broadcast_like(row.eps_coef, xt) * answer.eps
    history = jnp.concatenate([found[None], history[:-1]])
    xs = broadcast_like(row.xt_coef, xt) * xt
    for j in range(len(history)):
        xs = xs + broadcast_like(row.weights[j], xt) * history[j]

    def noisy(xs: Array) -> Array:
        z = _noise(keys, number + 1, xs.shape[1:])
        size = broadcast_like(row.noise_coef, xt)
        if answer.fraction is not None:
            size = size * jnp.exp(answer.fraction * broadcast_like(row.noise_range, xt))
        return xs + size * z

    xs = jax.lax.cond(jnp.any(row.noise_coef != 0), noisy, lambda xs: xs, xs)
    return (xs, history, memory), jnp.where(broadcast_like(row.active, xt) != 0, answer.x0, xt)
