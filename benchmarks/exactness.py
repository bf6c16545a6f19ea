"""Every formula of sampling with a perfect network, against the papers' loops in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Claim
from jdiff import rng
from jdiff.diffusion import exact, prediction, sampler, schedules
from jdiff.diffusion.schedules import SCHEDULES, SPACINGS, Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.tableau import grid, stack_tableaux
from reference import papers
from reference.orders import MEAN, STD

STEPS = 10
FRACTION = 0.3  # what the perfect network says of a variance, where it is asked
STARTS = (-1.7, 0.1, 1.3)
METHODS = (
    *({"solver": name} for name in SOLVERS),
    *({"solver": "ddim", "eta": eta} for eta in (0.5, 1.0)),
    *({"solver": "ddpm", "variance": variance} for variance in ("large", "learned", "analytic")),
)
OPTIONS = ({}, {"shift": 2.0}, {"zero_terminal_snr": True})


@dataclass
class Found:
    """errors: of each cell, relative to the largest value where that is above 1.   refused: and not, that ought to."""

    errors: dict[str, float] = field(default_factory=dict)
    refused: int = 0
    surprises: list[str] = field(default_factory=list)


def claims(quick: bool) -> Iterator[Claim]:
    """All claims of this page; quickly, of some cells. Orders of convergence are tests."""
    yield from _cells(quick)
    yield from _posterior()


def _cells(quick: bool) -> Iterator[Claim]:
    kinds = list(product(SCHEDULES, (False, True), OPTIONS, prediction.PREDICTION_TYPES))[:: 29 if quick else 1]
    for bits in (32, 64):
        found = Found()
        with jax.enable_x64(bits == 64):
            for name, continuous, options, prediction_type in kinds:
                schedule = schedules.make(name, continuous=continuous, **options)
                _measure(found, schedule, prediction_type, f"{name}, {continuous=}, {options}, {prediction_type}")
        errors = np.array(list(found.errors.values()))
        worst = max(found.errors, key=found.errors.get)
        text = f"float{bits}: worst of {len(errors)} cells against the papers' loops"
        if bits == 64:
            yield Claim(text, float(errors.max()), 1e-5, at_most=True, note=f"({worst})")
            text = "cells refused: eps and score asked of pure noise"
            yield Claim(text, found.refused, note=f"of {len(errors) + found.refused}")
            note = "; ".join(found.surprises[:3])
            yield Claim(
                "cells refused that are not on that list, or the reverse", len(found.surprises), 0, True, note=note
            )
        else:
            share = float(np.mean(errors < 1e-3))
            yield Claim(text, float(errors.max()), note=f"({worst}); {share:.2%} of them below 1e-3")


def _measure(found: Found, schedule: Schedule, prediction_type: str, named: str) -> None:
    """All methods and spacings of one schedule and type, as one batch of one program."""
    unknown = papers.gaussian_denoising_mse(STD)
    cells, levels = [], {name: grid(schedule, spacing(schedule, STEPS)).level for name, spacing in SPACINGS.items()}
    for spacing, method in product(SPACINGS, METHODS):
        cell = f"{named}, {spacing}, {method}"
        blind = levels[spacing].alpha[0] == 0 and prediction_type in prediction.BLIND_AT_ZERO_SNR
        try:
            tableau = Settings(**method, steps=STEPS, spacing=spacing).tableau(
                schedule,
                prediction_type,
                learned_variance=True,
                denoising_mse=lambda level: unknown(level.alpha, level.sigma),
            )
        except ValueError as refusal:
            found.refused += 1
            if not blind:
                found.surprises.append(f"{cell}: {refusal}")
            continue
        if blind:
            found.surprises.append(f"{cell}: taken")
        cells.append((cell, spacing, method, tableau))
    if not cells:
        return
    xt = np.tile(STARTS, len(cells))[:, None]
    rows = max(tableau.rows for *_, tableau in cells)
    dtype = jnp.result_type(float)
    together = stack_tableaux([tableau for *_, tableau in cells for _ in STARTS], rows, dtype=dtype)
    keys = jax.random.split(jax.random.key(0), len(xt))
    drawn = np.asarray(_run(schedule, prediction_type, together, jnp.asarray(xt, dtype), keys), float)
    noise = np.stack([_noise(keys, row) for row in range(1, rows + 1)]).astype(float)
    for i, (cell, spacing, method, _) in enumerate(cells):
        own = slice(len(STARTS) * i, len(STARTS) * (i + 1))
        level = levels[spacing]
        options = {key: value for key, value in method.items() if key != "solver"}
        if "variance" in options:
            options |= {"denoising_mse": unknown, "fraction": FRACTION}
        right = papers.sample_path(
            method["solver"],
            level.alpha,
            level.sigma,
            xt[own],
            papers.gaussian_answers(MEAN, STD),
            lambda row, own=own: noise[row, own],
            **options,
        )
        found.errors[cell] = float(np.abs(drawn[own] - right).max() / max(1, np.abs(right).max()))


@jax.jit
def _noise(keys: jax.Array, row: int) -> jax.Array:
    return rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, row), (1,))


def _run(schedule: Schedule, prediction_type: str, tableau, xt, keys):
    gaussian = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
    denoise = prediction.denoiser(exact.network(gaussian, schedule, prediction_type), prediction_type)

    def told(xt, row, memory):
        return denoise(xt, row)._replace(fraction=jnp.full_like(xt, FRACTION)), memory

    @jax.jit
    def run(tableau, xt, keys):
        which = jnp.zeros(tableau.rows, int)
        return sampler.sample_in_turns([told], which, tableau, xt, keys=keys, memory=jnp.zeros_like(xt))

    return run(tableau, xt, keys)


def _posterior() -> Iterator[Claim]:
    """DDIM of eta 1 over every timestep of DDPM's schedule, beside Bayes' rule."""
    schedule = schedules.linear()
    rows = Settings(solver="ddim", eta=1.0, steps=1000).tableau(schedule)
    alpha_bar = np.append(schedule.alpha_bar[::-1], 1.0)
    off = 0.0
    for i in range(999):  # the last row ends at the clean image, where nothing is left to draw
        bayes = partial(papers.gaussian_posterior, alpha_bar[i], alpha_bar[i + 1])
        _, variance = bayes(0.0, 0.0)
        right = (bayes(1.0, 0.0)[0], bayes(0.0, 1.0)[0], np.sqrt(variance))
        xt_coef = rows.eps_coef[i] / rows.level.sigma[i]
        x0_coef = rows.x0_coef[i] - xt_coef * rows.level.alpha[i]
        off = max(off, np.abs(np.array([xt_coef, x0_coef, rows.noise_coef[i]]) - right).max())
    yield Claim(
        "DDIM of eta 1 at full stride against DDPM's posterior, any coefficient", float(off), 1e-10, at_most=True
    )
