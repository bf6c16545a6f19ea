"""The sampling loops, which run any tableau from noise to image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jdiff import rng
from jdiff.diffusion.tableau import Tableau
from jdiff.levels import broadcast_like

CHUNK_ROWS = 10  # that are scanned before the outer loop asks whether any image has rows left


def initial_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """The start of sampling: standard normal noise from each image's own key. Returns (b, *shape)."""
    return _noise(keys, 0, shape)


def _noise(keys: Array, number: int | Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise from each image's key and a number: 0 for the start, i + 1 for row i."""
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
) -> tuple[Array, tuple[Array, Array] | None]:
    """Run every row of a tableau, equation (9) of ``solvers``, under one ``lax.scan``.

    denoise: (xt, row) -> ``Denoised``, the fields of row being (b,), without history_weights; with a memory,
        (xt, row, memory) -> (``Denoised``, memory).
    tableau: one for all images, or one for each.   xt: (b, *dims) initial noise.   keys: (b,) one per image.
    memory: the initial state that denoise carries from row to row, as ``guidance.guided`` does.
    history: (depth, b, *dims) the d of (9) before the first row, latest first; zeros by default.
    Returns x0 (b, *dims) and, on request, xt and the denoiser's x0 at every row, each (rows, b, *dims); for an inactive
        row both are the finished image.
    """
    tableau = jax.tree.map(jnp.asarray, tableau)

    def step(state, i: Array):
        xt = state[0]
        state, x0 = _run_row(denoise, tableau, keys, i, state)
        return state, ((xt, x0) if trajectory else None)

    state, path = jax.lax.scan(step, _initial_state(tableau, xt, memory, history), jnp.arange(tableau.num_rows))
    return state[0], path


class Chunk(NamedTuple):
    """Where sampling is between two chunks. row: () int, the next row.   x0: (b, *dims), the denoiser's, at the last.

    state: what the next row starts from.
    """

    row: Array
    state: tuple
    x0: Array


def sample_in_chunks(
    denoisers: Sequence[Callable], denoiser_index: Array, tableau: Tableau, xt: Array, *, keys: Array, memory: Array
) -> Array:
    """As ``sample``, for a tableau with inactive rows at its end, and rows that differ in their denoiser.

    Rows are scanned in chunks of up to ``CHUNK_ROWS`` that have one denoiser; an outer loop ends with the last chunk in
    which any image has rows left, so inactive rows cost nothing.

    denoisers: (xt, row, memory) -> (``Denoised``, memory).   denoiser_index: (rows,) int, each row's denoiser.
    Returns x0 (b, *dims).
    """
    run = partial(run_chunk, denoisers, denoiser_index, tableau, keys=keys)
    return jax.lax.while_loop(
        lambda chunk: chunk.row < num_active_rows(tableau), run, first_chunk(tableau, xt, memory)
    ).state[0]


def num_active_rows(tableau: Tableau) -> Array:
    """How many rows are active for any image."""
    return jnp.sum(jnp.any(tableau.active.reshape(tableau.num_rows, -1), axis=1))


def first_chunk(tableau: Tableau, xt: Array, memory: Array) -> Chunk:
    """The start of sampling, before the first chunk."""
    return Chunk(jnp.zeros((), jnp.int32), _initial_state(tableau, xt, memory, None), xt)


def run_chunk(
    denoisers: Sequence[Callable], denoiser_index: Array, tableau: Tableau, chunk: Chunk, *, keys: Array
) -> Chunk:
    """Scan the next rows that have one denoiser, ``CHUNK_ROWS`` at most. As ``sample_in_chunks``."""
    rows = chunk.row + jnp.arange(CHUNK_ROWS)
    index = denoiser_index[jnp.minimum(rows, tableau.num_rows - 1)]
    runs = jnp.cumprod((rows < num_active_rows(tableau)) & (index == index[0])).astype(bool)

    def scan(denoise: Callable) -> Callable:
        def step(carry: tuple, row: tuple[Array, Array]) -> tuple[tuple, None]:
            i, is_run = row
            run = partial(_run_row, denoise, tableau, keys, i)
            return jax.lax.cond(is_run, lambda carry: run(carry[0]), lambda carry: carry, carry), None

        return lambda carry: jax.lax.scan(step, carry, (rows, runs))[0]

    state, x0 = jax.lax.switch(index[0], [scan(denoise) for denoise in denoisers], (chunk.state, chunk.x0))
    return Chunk(chunk.row + jnp.sum(runs, dtype=jnp.int32), state, x0)


def _initial_state(tableau: Tableau, xt: Array, memory: Array | None, history: Array | None) -> tuple:
    if history is None:
        history = jnp.zeros((tableau.history_weights.shape[1], *xt.shape), xt.dtype)
    return xt, history, memory


def _run_row(denoise: Callable, tableau: Tableau, keys: Array, i: Array, state: tuple) -> tuple[tuple, Array]:
    """Row i, equation (9). Noise is only drawn if the row adds any.

    Returns the state after the row, and the denoiser's x0.
    """
    xt, history, memory = state
    row = jax.tree.map(lambda column: column[i], tableau)
    row_per_image = replace(row, history_weights=0.0)
    row_per_image = jax.tree.map(lambda column: jnp.broadcast_to(column, xt.shape[:1]), row_per_image)
    estimate, memory = (denoise(xt, row_per_image), None) if memory is None else denoise(xt, row_per_image, memory)
    d = broadcast_like(row.x0_coef, xt) * estimate.x0 + broadcast_like(row.eps_coef, xt) * estimate.eps
    history = jnp.concatenate([d[None], history[:-1]])
    xs = broadcast_like(row.xt_coef, xt) * xt
    for j in range(len(history)):
        xs = xs + broadcast_like(row.history_weights[j], xt) * history[j]

    def add_noise(xs: Array) -> Array:
        z = _noise(keys, i + 1, xs.shape[1:])
        std = broadcast_like(row.noise_coef, xt)
        if estimate.variance_fraction is not None:
            std = std * jnp.exp(estimate.variance_fraction * broadcast_like(row.noise_range, xt))
        return xs + std * z

    xs = jax.lax.cond(jnp.any(row.noise_coef != 0), add_noise, lambda xs: xs, xs)
    return (xs, history, memory), jnp.where(broadcast_like(row.active, xt) != 0, estimate.x0, xt)
