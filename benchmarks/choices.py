"""``python -m benchmarks choices``: what docs/how-to/choose-a-sampler.md advises, measured where that is cheap.

The error of each solver and spacing against the probability flow of a known mixture; the prompt accuracy of a run of
shapes with each variance and guidance; and the error on a spiral with each schedule, prediction type and weighting.
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
from jdiff import figures, rng
from jdiff.commands.flags import shipped_configs
from jdiff.data.spiral import spiral_points
from jdiff.diffusion import exact, sampler, schedules
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.spacing import SPACINGS
from jdiff.inference.calibrate import measure_denoising_mse
from jdiff.runs import directory
from jdiff.tasks import make_task
from jdiff.tasks.points import mean_distances

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
GUIDANCES = (
    *({"guidance_scale": scale} for scale in (1.0, 2.0, 4.0, 8.0)),
    {"guidance_scale": 8.0, "guidance_rescale": 0.7},
    {"guidance_scale": 8.0, "apg_parallel": 0.0, "apg_norm": 0.1},
    {"guidance_scale": 8.0, "threshold_percentile": 99.0},
    {"guidance_scale": 8.0, "guidance_from": -5.0, "guidance_to": 1.0},
)


def measure(*, quick: bool, runs: str) -> int:
    """Print the tables; quickly, only the first. Returns the exit status."""
    run = steps.find_shapes_run(runs)
    slow_claims = [] if quick else [_prompt_accuracy(run) if run else [], _training_choices()]
    return report("choices", chain(_solver_errors(), *slow_claims), quick=quick)


def _solver_errors() -> Iterator[Claim]:
    """Mean distance from the end of the probability flow, of 500 points on a fuzzy spiral, by solver and steps."""
    points = jnp.asarray(spiral_points(200))
    denoise = exact.denoiser(exact.mixture(points, jnp.full(200, 0.03), jnp.full(200, 1 / 200)))
    keys = rng.image_keys(jnp.arange(500))
    start = sampler.initial_noise(keys, (2,))
    run_tableau = jax.jit(lambda tableau: sampler.sample(denoise, tableau, start, keys=keys)[0])

    def sample(schedule: str, **settings) -> np.ndarray:
        return np.asarray(run_tableau(Settings(**settings, eta=0.0).tableau(schedules.make(schedule, continuous=True))))

    solvers = [name for name, solver in SOLVERS.items() if not solver.stochastic and name != "euler"]
    for schedule in ("linear", "cosine"):
        flow_end = sample(schedule, solver="unipc_3", steps=1000, spacing="logsnr")
        for solver, spacing in product(solvers, SPACINGS):
            errors = [
                np.linalg.norm(sample(schedule, solver=solver, steps=n, spacing=spacing) - flow_end, axis=-1).mean()
                for n in STEPS
            ]
            note = "with 5 steps; " + ", ".join(f"{error:.4f} with {n}" for n, error in zip(STEPS[1:], errors[1:]))
            text = f"{schedule}, {solver}, {spacing}: distance from the end of the flow"
            yield Claim(text, float(errors[0]), note=note)


def _prompt_accuracy(run: Path) -> Iterator[Claim]:
    """Prompt accuracy by DDPM's variance and by guidance, of the same prompts and seeds."""
    model, (captions, scenes, images) = directory.load(run), steps.captioned_test_images(run, 128)
    model = replace(model, denoising_mse=measure_denoising_mse(model, images, captions))
    variances = [
        {"solver": "ddpm", "steps": count, "variance": variance}
        for count in (5, 10)
        for variance in ("small", "large", "analytic")
    ]
    for changes in (*variances, *({"solver": "dpmpp_2m", "steps": 20, **guidance} for guidance in GUIDANCES)):
        settings = replace(model.settings, **{"eta": 0.0, **changes})
        samples = model.sample(captions, settings=settings, seed=0)
        accuracy = np.mean(steps.shows_prompt(scenes, samples))
        name = ", ".join(f"{key} {value}" for key, value in changes.items())
        yield Claim(f"{run.name}, {name}: prompt accuracy", float(accuracy), note=f"({len(scenes)} prompts)")


def _training_choices() -> Iterator[Claim]:
    """Mean distance between samples and data after 5,000 steps on a spiral, with one choice changed at a time."""
    get_config = runpy.run_path(str(shipped_configs()["spiral"]))["get_config"]
    for choice in CHOICES:
        distances = []
        for seed in range(SEEDS):
            config = get_config()
            config.diffusion.update(choice)
            config.train.update(steps=5000, seed=seed)
            task = make_task(config)
            samples = figures.spiral_samples(task.model(task.train()), task)
            distances.append([np.mean(mean_distances(samples[name], task.points())) for name in ("DDPM", "DDIM")])
        ddpm, ddim = np.array(distances).T
        note = f"DDPM ({ddpm.min():.4f} to {ddpm.max():.4f}); "
        note += f"DDIM {ddim.mean():.4f} ({ddim.min():.4f} to {ddim.max():.4f})"
        name = ", ".join(f"{key} {value}" for key, value in choice.items())
        yield Claim(f"spiral, {name}: mean distance to and from the data", float(ddpm.mean()), note=note)
