"""``python -m benchmarks choices``: what docs/diffusion.md advises, measured where it is cheap to.

How far each solver and grid ends from where the flow of a known mixture ends; what a run that draws shapes draws right
with each variance and guidance; and how well a spiral is learnt with each schedule, prediction type and weighting.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps
from benchmarks.claims import Claim, report
from jdiff import build, rng, runs
from jdiff.cli import shipped_configs
from jdiff.data.spiral import spiral
from jdiff.diffusion import exact, sampler, schedules
from jdiff.diffusion.schedules import SPACINGS
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.verbs import spiral as learning

STEPS = (5, 10, 20, 50)
SEEDS = 2
CHOICES = (
    *({"prediction_type": name} for name in ("v", "x0", "eps", "flow")),
    *({"schedule": name} for name in ("linear", "sigmoid", "logsnr")),
    {"schedule": "linear", "zero_terminal_snr": True},
    *({"prediction_type": "eps", "weighting": name} for name in ("min_snr", "snr")),
    *({"weighting": name} for name in ("min_snr", "snr", "sigmoid", "p2")),
    {"timestep_sampling": "linear"},
)


def measure(*, quick: bool, runs: str) -> int:
    """Print the tables; quickly, only the first. Returns the exit status."""
    path = steps.run_of_shapes(runs)
    more = [] if quick else [_drawn(path) if path else [], _learnt()]
    return report("choices", chain(_ends(), *more))


def _ends() -> Iterator[Claim]:
    """Mean distance from where the flow ends, of 500 points on a fuzzy spiral, over the steps."""
    points = jnp.asarray(spiral(200))
    denoise = exact.denoiser(exact.mixture(points, jnp.full(200, 0.03), jnp.full(200, 1 / 200)))
    keys = rng.image_keys(jnp.arange(500))
    start = sampler.initial_noise(keys, (2,))

    def ends(schedule: str, **said) -> np.ndarray:
        tableau = Settings(**said, eta=0.0).tableau(schedules.make(schedule, continuous=True))
        return np.asarray(jax.jit(lambda xt: sampler.sample(denoise, tableau, xt, keys=keys)[0])(start))

    for schedule in ("linear", "cosine"):
        right = ends(schedule, solver="unipc_3", steps=1000, spacing="logsnr")
        for solver, spacing in product((n for n, s in SOLVERS.items() if not s.stochastic and n != "euler"), SPACINGS):
            off = [
                np.linalg.norm(ends(schedule, solver=solver, steps=n, spacing=spacing) - right, axis=-1).mean()
                for n in STEPS
            ]
            note = "of 5; " + ", ".join(f"{error:.4f} of {n}" for n, error in zip(STEPS[1:], off[1:]))
            yield Claim(f"{schedule}, {solver}, {spacing}: distance from the flow's end", float(off[0]), note=note)


GUIDED = (
    *({"guidance_scale": scale} for scale in (1.0, 2.0, 4.0, 8.0)),
    {"guidance_scale": 8.0, "guidance_rescale": 0.7},
    {"guidance_scale": 8.0, "apg_parallel": 0.0, "apg_norm": 0.1},
    {"guidance_scale": 8.0, "threshold_percentile": 99.0},
    {"guidance_scale": 8.0, "guidance_from": -5.0, "guidance_to": 1.0},
)


def _drawn(path: Path) -> Iterator[Claim]:
    """The share of whole prompts right, by DDPM's variance and by guidance, of the same prompts and seeds."""
    model, (captions, scenes, pictures) = runs.load(path), steps.asked(path, 128)
    model = replace(model, denoising_mse=model.measure_denoising_mse(pictures, captions))
    ddpm = [
        {"solver": "ddpm", "steps": count, "variance": variance}
        for count in (5, 10)
        for variance in ("small", "large", "analytic")
    ]
    for said in (*ddpm, *({"solver": "dpmpp_2m", "steps": 20, **guided} for guided in GUIDED)):
        settings = replace(model.settings, **{"eta": 0.0, **said})
        drawn = model.sample(captions, settings=settings, seed=0)
        right = np.mean(steps.whole(scenes, drawn))
        name = ", ".join(f"{key} {value}" for key, value in said.items())
        yield Claim(f"{path.name}, {name}: whole prompt right", float(right), note=f"of {len(scenes)}")


def _learnt() -> Iterator[Claim]:
    """Mean distances of samples and data after 5,000 steps, by one choice at a time."""
    get_config = runpy.run_path(str(shipped_configs()["spiral"]))["get_config"]
    for choice in CHOICES:
        found = []
        for seed in range(SEEDS):
            config = get_config()
            config.diffusion.update(choice)
            config.train.update(steps=5000, seed=seed)
            setup = build.spiral(config)
            drawn = learning.samples(learning.network(setup, learning.learnt(setup)), setup)
            found.append([np.mean(learning.measured(drawn[way], setup.points())) for way in ("DDPM", "DDIM")])
        ddpm, ddim = np.array(found).T
        note = f"DDPM ({ddpm.min():.4f} to {ddpm.max():.4f}); "
        note += f"DDIM {ddim.mean():.4f} ({ddim.min():.4f} to {ddim.max():.4f})"
        said = ", ".join(f"{key} {value}" for key, value in choice.items())
        yield Claim(f"spiral, {said}: mean distance to and from the data", float(ddpm.mean()), note=note)
