"""``python -m benchmarks schedulers``: diffusers' schedulers handed a perfect network, beside float64."""

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
from jdiff.diffusion.tableau import grid
from reference import papers

MEAN, STD, COUNT = 0.3, 0.25, 20_000
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
# Name: scheduler, what it is told, what its step is told, and our solver with its options.
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


def perfect() -> Callable:
    """A network that says the noise of data N(0.3, 0.25^2) exactly, for DDPM's linear schedule, to torch."""
    data = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
    predict = jax.jit(exact.network(data, linear(1000), "eps"))

    def network(xt: torch.Tensor, timestep: float) -> torch.Tensor:
        x = jnp.asarray(xt.numpy(), jnp.float32)
        return torch.tensor(np.asarray(predict(x, jnp.full(len(x), float(timestep)))))

    return network


def theirs(name: str, steps: int, spacing: str) -> tuple[np.ndarray, np.ndarray]:
    """What a scheduler makes of noise with the perfect network, (COUNT,), and the timesteps that it visited."""
    scheduler_name, options, of_step, _, _ = SCHEDULERS[name]
    scheduler = getattr(diffusers, scheduler_name)(**LINEAR, timestep_spacing=spacing, **options)
    scheduler.set_timesteps(steps)
    generator, network = torch.Generator().manual_seed(0), perfect()
    # Even quantiles in place of draws: the start's deviation is then no matter of luck.
    start = norm.ppf((np.arange(COUNT) + 0.5) / COUNT)[:, None].astype(np.float32)
    x = torch.tensor(start) * scheduler.init_noise_sigma
    if "generator" in scheduler.step.__code__.co_varnames:
        of_step = {**of_step, "generator": generator}
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **of_step).prev_sample
    visited = scheduler.timesteps.numpy()
    return x.numpy()[:, 0], visited[np.append(True, np.diff(visited) != 0)]


def rows() -> Iterator[Claim]:
    """Mean and deviation of each, beside those of the same method on the same timesteps in float64."""
    for name, (_, _, _, solver, options) in SCHEDULERS.items():
        for steps in STEPS:
            for spacing in SPACINGS:
                try:
                    found, visited = theirs(name, steps, spacing)
                except (ValueError, NotImplementedError) as refusal:
                    print(f"{name}, {spacing}, {steps}: refused, {refusal}")
                    continue
                tableau = SOLVERS[solver].rows(grid(linear(1000), visited), **options)
                answers = papers.gaussian_answers(MEAN, STD)
                _, variance = papers.moments_of_rows(tableau, MEAN, STD, answers, (0.0, 1.0))
                right = np.sqrt(variance)
                # Four standard errors of a deviation where there is noise, and float32's rounding of their tables.
                luck = 4 / np.sqrt(2 * COUNT) if SOLVERS[solver].stochastic or options else 0.0
                same = abs(found.std() - right) < (luck + 2e-3) * right
                verdict = f"; float64 has {right:.4f}: {'the same' if same else 'ANOTHER'}"
                yield Claim(f"{name}, {spacing}, {steps} steps: deviation", float(found.std()), note=verdict)


def measure(*, quick: bool, runs: str) -> int:
    """Print the table. Returns the exit status."""
    return report("schedulers", rows())
