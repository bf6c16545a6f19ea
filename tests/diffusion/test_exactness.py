"""Every sampling method with a perfect network, against the papers' loops in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.diffusion import exact, prediction, sampler, schedules
from jdiff.diffusion.schedules import SCHEDULES, Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.spacing import SPACINGS
from jdiff.diffusion.tableau import level_grid, stack_tableaux
from reference import papers
from reference.orders import MEAN, STD

STEPS = 10
FRACTION = 0.3  # the variance_fraction of the perfect network, for a learned variance
STARTS = (-1.7, 0.1, 1.3)
METHODS = (
    *({"solver": name} for name in SOLVERS),
    *({"solver": "ddim", "eta": eta} for eta in (0.5, 1.0)),
    *({"solver": "ddpm", "variance": variance} for variance in ("large", "learned", "analytic")),
)
OPTIONS = ({}, {"shift": 2.0}, {"zero_terminal_snr": True})


@dataclass
class CellResults:
    """errors: of each cell, relative to the largest value where that is above 1.   num_rejected: cells that raise.

    mistakes: cells that are rejected and should not be, or the reverse.
    """

    errors: dict[str, float] = field(default_factory=dict)
    num_rejected: int = 0
    mistakes: list[str] = field(default_factory=list)


@pytest.mark.slow
def test_every_cell_of_the_matrix_is_its_papers_loop():
    """Solver x variance x schedule x prediction type x spacing, 10 steps: within 1e-5 of float64, but for those that
    eps and score do not determine at pure noise, which are rejected."""
    results = CellResults()
    with jax.enable_x64(True):
        for name, continuous, options, prediction_type in product(
            SCHEDULES, (False, True), OPTIONS, prediction.PREDICTION_TYPES
        ):
            schedule = schedules.make(name, continuous=continuous, **options)
            _measure(results, schedule, prediction_type, f"{name}, {continuous=}, {options}, {prediction_type}")
    assert len(results.errors) > 11_000 and results.num_rejected > 1000
    assert not results.mistakes
    assert max(results.errors.values()) < 1e-5, max(results.errors, key=results.errors.get)


def _measure(results: CellResults, schedule: Schedule, prediction_type: str, label: str) -> None:
    """All methods and spacings of one schedule and type, as one batch of one program."""
    denoising_mse, cells = papers.gaussian_denoising_mse(STD), []
    levels = {name: level_grid(schedule, spacing(schedule, STEPS)).level for name, spacing in SPACINGS.items()}
    for spacing, method in product(SPACINGS, METHODS):
        cell = f"{label}, {spacing}, {method}"
        blind = levels[spacing].alpha[0] == 0 and prediction_type in prediction.BLIND_AT_ZERO_SNR
        try:
            tableau = Settings(**method, steps=STEPS, spacing=spacing).tableau(
                schedule,
                prediction_type,
                learned_variance=True,
                denoising_mse=lambda level: denoising_mse(level.alpha, level.sigma),
            )
        except ValueError as error:
            results.num_rejected += 1
            if not blind:
                results.mistakes.append(f"{cell}: {error}")
            continue
        if blind:
            results.mistakes.append(f"{cell}: accepted")
        cells.append((cell, spacing, method, tableau))
    if not cells:
        return
    xt = np.tile(STARTS, len(cells))[:, None]
    rows = max(tableau.num_rows for *_, tableau in cells)
    dtype = jnp.result_type(float)
    batch = stack_tableaux([tableau for *_, tableau in cells for _ in STARTS], rows, dtype=dtype)
    keys = jax.random.split(jax.random.key(0), len(xt))
    samples = np.asarray(_run(schedule, prediction_type, batch, jnp.asarray(xt, dtype), keys), float)
    noise = np.stack([_noise(keys, row) for row in range(1, rows + 1)]).astype(float)
    for i, (cell, spacing, method, _) in enumerate(cells):
        indices = slice(len(STARTS) * i, len(STARTS) * (i + 1))
        level = levels[spacing]
        options = {key: value for key, value in method.items() if key != "solver"}
        if "variance" in options:
            options |= {"denoising_mse": denoising_mse, "fraction": FRACTION}
        right = papers.sample_path(
            method["solver"],
            level.alpha,
            level.sigma,
            xt[indices],
            papers.gaussian_answers(MEAN, STD),
            lambda row, indices=indices: noise[row, indices],
            **options,
        )
        results.errors[cell] = float(np.abs(samples[indices] - right).max() / max(1, np.abs(right).max()))


@jax.jit
def _noise(keys: jax.Array, row: int) -> jax.Array:
    return rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, row), (1,))


def _run(schedule: Schedule, prediction_type: str, tableau, xt, keys):
    gaussian = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
    denoise = prediction.denoiser(exact.perfect_network(gaussian, schedule, prediction_type), prediction_type)

    def denoise_with_variance(xt, row, memory):
        return denoise(xt, row)._replace(variance_fraction=jnp.full_like(xt, FRACTION)), memory

    @jax.jit
    def run(tableau, xt, keys):
        denoiser_index, memory = jnp.zeros(tableau.num_rows, int), jnp.zeros_like(xt)
        return sampler.sample_in_chunks([denoise_with_variance], denoiser_index, tableau, xt, keys=keys, memory=memory)

    return run(tableau, xt, keys)
