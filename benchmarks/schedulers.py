"""``python -m benchmarks schedulers``: diffusers' schedulers with a perfect network, compared with float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy.stats import norm

from benchmarks.claims import Claim, report
from jdiff.diffusion import exact
from jdiff.diffusion.schedules import linear
from jdiff.diffusion.solvers import SOLVERS
from jdiff.diffusion.tableau import level_grid
from reference import papers

MEAN, STD, COUNT = 0.3, 0.25, 20_000
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# Name: scheduler, its options, the options of its step, and jdiff's solver with its options.
SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, {}, "ddim", {}),
    "DDIM, eta 1": ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}, "ddim", {"eta": 1.0}),
    "DDPM, small": ("DDPMScheduler", {"clip_sample": False}, {}, "ddpm", {}),
    "DDPM, large": (
        "DDPMScheduler",
        {"clip_sample": False, "variance_type": "fixed_large"},
        {},
        "ddpm",
        {"variance": "large"},
    ),
    "Euler": ("EulerDiscreteScheduler", {}, {}, "euler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, {}, "euler_ancestral", {}),
    "Heun": ("HeunDiscreteScheduler", {}, {}, "heun", {}),
    "LMS": ("LMSDiscreteScheduler", {}, {}, "plms", {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}, {}, "dpmpp_2m", {}),
    "DPM-Solver++ 3M": (
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "zero", "solver_order": 3},
        {},
        "dpmpp_3m",
        {},
    ),
    "UniPC": ("UniPCMultistepScheduler", {}, {}, "unipc_2", {}),
}
STEPS, SPACINGS = (10, 50, 150), ("leading", "trailing", "linspace")


def perfect_network() -> Callable:
    """A network for torch that predicts the noise of data N(0.3, 0.25^2) exactly, on DDPM's linear schedule."""
    data = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
    predict = jax.jit(exact.perfect_network(data, linear(1000), "eps"))

    def network(xt: torch.Tensor, timestep: float) -> torch.Tensor:
        x = jnp.asarray(xt.numpy(), jnp.float32)
        return torch.tensor(np.asarray(predict(x, jnp.full(len(x), float(timestep)))))

    return network


def diffusers_samples(name: str, steps: int, spacing: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a scheduler with the perfect network, (COUNT,), and the timesteps that it visited."""
    scheduler_name, options, step_options, _, _ = SCHEDULERS[name]
    scheduler = getattr(diffusers, scheduler_name)(**LINEAR, timestep_spacing=spacing, **options)
    scheduler.set_timesteps(steps)
    generator, network = torch.Generator().manual_seed(0), perfect_network()
    # Even quantiles instead of random draws, so that the deviation of the initial noise has no sampling error.
    start = norm.ppf((np.arange(COUNT) + 0.5) / COUNT)[:, None].astype(np.float32)
    x = torch.tensor(start) * scheduler.init_noise_sigma
    if "generator" in scheduler.step.__code__.co_varnames:
        step_options = {**step_options, "generator": generator}
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **step_options).prev_sample
    timesteps = scheduler.timesteps.numpy()
    return x.numpy()[:, 0], timesteps[np.append(True, np.diff(timesteps) != 0)]


def rows() -> Iterator[Claim]:
    """The deviation of each scheduler's samples, and that of the same method and timesteps in float64."""
    for name, (_, _, _, solver, options) in SCHEDULERS.items():
        for steps in STEPS:
            for spacing in SPACINGS:
                try:
                    samples, timesteps = diffusers_samples(name, steps, spacing)
                except (ValueError, NotImplementedError) as error:
                    print(f"{name}, {spacing}, {steps}: not supported by diffusers, {error}")
                    continue
                tableau = SOLVERS[solver].make_tableau(level_grid(linear(1000), timesteps), **options)
                answers = papers.gaussian_answers(MEAN, STD)
                _, variance = papers.moments_of_rows(tableau, MEAN, STD, answers, (0.0, 1.0))
                exact_std = np.sqrt(variance)
                # Four standard errors of a deviation where there is noise, and float32's rounding of their tables.
                sampling_error = 4 / np.sqrt(2 * COUNT) if SOLVERS[solver].stochastic or options else 0.0
                agrees = abs(samples.std() - exact_std) < (sampling_error + 2e-3) * exact_std
                note = f"; float64 has {exact_std:.4f}: {'the same' if agrees else 'DIFFERENT'}"
                yield Claim(f"{name}, {spacing}, {steps} steps: deviation", float(samples.std()), note=note)


def measure(*, quick: bool, runs: str) -> int:
    """Print the table. Returns the exit status."""
    return report("schedulers", rows(), quick=quick)
