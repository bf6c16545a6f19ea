"""``python -m benchmarks mutants``: wrong formulas, and which test of the mathematics kills each.

Each mutant is one formula of ``jdiff/`` written wrongly, as others have published it or as one easily would; it runs
and stays finite. The tests of ``tests/diffusion`` run on a copy of the sources that has it, until one fails. A mutant
counts as killed where that failure is an assertion about finite values, not an exception.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from benchmarks.claims import Claim, settle

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """name: what is wrong.   file: in jdiff/.   right, wrong: the text, which is there once, and what it becomes.

    tests: the file of tests/diffusion to begin with.   seen: who wrote it so, of the systems in docs/diffusion.md.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: str
    seen: str = ""


S, T = "diffusion/solvers.py", "diffusion/tableau.py"
# The level so many timesteps below one of the grid, of DDPM's schedule, which a grid does not know.
BELOW = """
def BELOW(grid, i, stride):
    from jdiff.diffusion.schedules import linear

    return linear().rates(np.maximum(grid.timestep[i] - stride, -1.0))
"""
MUTANTS = (
    # The forward process and its schedules.
    Mutant(
        "noise mixed in by 1 - alpha",
        "diffusion/process.py",
        "return level.alpha * x0 + level.sigma * eps",
        "return level.alpha * x0 + (1 - level.alpha) * eps",
        "process",
    ),
    Mutant(
        "posterior's shares by sigma, not its square",
        "diffusion/process.py",
        "noise_share = level_s.sigma**2 / level_t.sigma**2",
        "noise_share = level_s.sigma / level_t.sigma",
        "process",
    ),
    Mutant(
        "a stride's variance as a difference of deviations",
        "diffusion/process.py",
        "return level_t.sigma**2 - (level_t.alpha / level_s.alpha) ** 2 * level_s.sigma**2",
        "return (level_t.sigma - level_t.alpha / level_s.alpha * level_s.sigma) ** 2",
        "process",
        "imagen-pytorch's repainting",
    ),
    Mutant(
        "posterior's mean scales xt by alpha-bar",
        "diffusion/process.py",
        "return ratio * noise_share,",
        "return ratio**2 * noise_share,",
        "process",
    ),
    Mutant(
        "log SNR of amplitudes",
        "levels.py",
        "return 2 * (np.log(self.alpha) - np.log(self.sigma))",
        "return np.log(self.alpha) - np.log(self.sigma)",
        "schedules",
    ),
    Mutant(
        "scaled-linear betas not squared back",
        "diffusion/schedules.py",
        "np.linspace(beta_start**0.5, beta_end**0.5, timesteps) ** 2",
        "np.linspace(beta_start, beta_end, timesteps)",
        "schedules",
    ),
    Mutant(
        "betas of 1000 timesteps for any number",
        "diffusion/schedules.py",
        "return beta if len(beta) == 1000 else -np.expm1(1000 / len(beta) * np.log1p(-beta))",
        "return beta",
        "schedules",
    ),
    Mutant(
        "cosine without its offset",
        "diffusion/schedules.py",
        "np.cos((edge + offset) / (1 + offset) * np.pi / 2) ** 2",
        "np.cos(edge * np.pi / 2) ** 2",
        "schedules",
    ),
    Mutant(
        "zero terminal SNR by rescaling alpha-bar",
        "diffusion/schedules.py",
        "return Discrete(((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)",
        "alpha = alpha**2; return Discrete((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1]))",
        "schedules",
    ),
    Mutant(
        "shift of larger images by the ratio, not its square",
        "diffusion/schedules.py",
        "ratio**2 * (1 - self.alpha_bar)",
        "ratio * (1 - self.alpha_bar)",
        "schedules",
    ),
    Mutant(
        "trailing timesteps cut off, not rounded",
        "diffusion/spacing.py",
        "return np.round(timesteps).astype(int) - 1 if",
        "return np.floor(timesteps).astype(int) - 1 if",
        "schedules",
    ),
    Mutant(
        "Karras' grid even in sigma / alpha itself",
        "diffusion/spacing.py",
        "steps: int, *, rho: float = 7.0",
        "steps: int, *, rho: float = 1.0",
        "schedules",
    ),
    Mutant(
        "a step of DDIM ends a fixed stride below, not at the list's next timestep",
        S,
        "level, cleaner = grid.level_at(i), grid.level_at(i + 1)\n    noise = eta",
        "level, cleaner = grid.level_at(i), BELOW(grid, i, 1000 // len(grid.timestep))\n    noise = eta",
        "sampler",
        "diffusers, maxdiffusion",
    ),
    Mutant(
        "DDPM steps to t - 1, whatever the stride",
        S,
        "xt_coef, x0_coef, small = process.posterior(cleaner, level)",
        "xt_coef, x0_coef, small = process.posterior(BELOW(grid, i, 1), level)",
        "sampler",
        "maxdiffusion, FlaxDiff",
    ),
    # What a network is asked for, and what its errors count.
    Mutant(
        "v of the wrong sign",
        "diffusion/prediction.py",
        '"v": lambda level: (-level.sigma, level.alpha)',
        '"v": lambda level: (level.sigma, -level.alpha)',
        "prediction",
    ),
    Mutant(
        "v with its rates exchanged",
        "diffusion/prediction.py",
        '"v": lambda level: (-level.sigma, level.alpha)',
        '"v": lambda level: (-level.alpha, level.sigma)',
        "prediction",
    ),
    Mutant(
        "score by the variance of the noise",
        "diffusion/prediction.py",
        '"score": lambda level: (0.0, -1 / level.sigma)',
        '"score": lambda level: (0.0, -1 / level.sigma**2)',
        "prediction",
    ),
    Mutant(
        "flow from noise to data",
        "diffusion/prediction.py",
        '"flow": lambda level: (-1.0, 1.0)',
        '"flow": lambda level: (1.0, -1.0)',
        "prediction",
    ),
    Mutant(
        "clipped x0 beside the eps of before",
        "diffusion/prediction.py",
        "eps=jnp.where(mask, eps, estimate.eps)",
        "eps=estimate.eps",
        "prediction",
        "diffusers, by default",
    ),
    Mutant(
        "percentile of 0.995 for 99.5",
        "diffusion/prediction.py",
        "rank = jnp.ravel(percentile) / 100 *",
        "rank = jnp.ravel(percentile) / 10000 *",
        "prediction",
        "maxdiffusion's DPM-Solver++",
    ),
    Mutant(
        "min-SNR of v as that of eps",
        "diffusion/weighting.py",
        "return _weight_in_eps(prediction_type, level) * limit",
        'return _weight_in_eps("eps", level) * limit',
        "prediction",
        "EasyDeL",
    ),
    Mutant(
        "P2 of an error of x0",
        "diffusion/weighting.py",
        "return _weight_in_eps(prediction_type, level) * (level.sigma**2 / (k",
        "return (level.sigma**2 / (k",
        "prediction",
    ),
    Mutant(
        "a learned variance's channels read from -1 to 1",
        "diffusion/prediction.py",
        "(output[..., c:] + 1) / 2)",
        "output[..., c:])",
        "sampler",
    ),
    # The loss.
    Mutant(
        "one noise for all examples",
        "diffusion/loss.py",
        "return jax.vmap(draw_example)(keys)",
        "return jax.vmap(lambda _: draw_example(keys[0]))(keys)",
        "loss",
        "kvfrans' pmap step, broadcast_like devices",
    ),
    Mutant(
        "weights and errors averaged apart",
        "diffusion/loss.py",
        "total = jnp.mean(weighting(prediction_type, level) * losses)",
        "total = jnp.mean(weighting(prediction_type, level)) * jnp.mean(losses)",
        "loss",
    ),
    Mutant(
        "the bound teaches the mean too",
        "diffusion/loss.py",
        "jax.lax.stop_gradient(predicted)",
        "predicted",
        "loss",
    ),
    Mutant(
        "the divergence the other way round",
        "diffusion/loss.py",
        "0.5 * (log_variance - log_small - 1 + jnp.exp(log_small - log_variance) + shift**2 * jnp.exp(-log_variance))",
        "0.5 * (log_small - log_variance - 1 + jnp.exp(log_variance - log_small) + shift**2 * jnp.exp(-log_small))",
        "loss",
    ),
    Mutant(
        "a pixel's values twice as wide",
        "diffusion/loss.py",
        "ndtr((x0 + 1 / 255 - mean) / std)",
        "ndtr((x0 + 2 / 255 - mean) / std)",
        "loss",
    ),
    # Solvers.
    Mutant(
        "DDIM shrinks the direction and adds no noise",
        S,
        "eps_coef=direction, noise_coef=noise)",
        "eps_coef=direction)",
        "sampler",
        "maxdiffusion's DDIM",
    ),
    Mutant(
        "DDIM adds noise and does not shrink the direction",
        S,
        "direction = np.sqrt(np.maximum(cleaner.sigma**2 - noise**2, 0))",
        "direction = cleaner.sigma",
        "sampler",
        "FlaxDiff's DDIM",
    ),
    Mutant(
        "deviations subtracted, not variances",
        S,
        "direction = np.sqrt(np.maximum(cleaner.sigma**2 - noise**2, 0))",
        "direction = cleaner.sigma - noise",
        "sampler",
    ),
    Mutant(
        "eta on the variance",
        S,
        "noise = eta * np.sqrt(process.posterior(cleaner, level)[2])",
        "noise = eta * process.posterior(cleaner, level)[2]",
        "sampler",
    ),
    Mutant(
        "the same noise in every step",
        "diffusion/sampler.py",
        "_noise(keys, i + 1, xs.shape[1:])",
        "_noise(keys, 1, xs.shape[1:])",
        "sampler",
        "maxdiffusion's DDPM without a key",
    ),
    Mutant(
        "small and large variance exchanged",
        S,
        'noise = large if variance == "large" else small',
        'noise = small if variance == "large" else large',
        "sampler",
    ),
    Mutant(
        "a learned variance between its bounds, not between their logarithms",
        "diffusion/sampler.py",
        "std = std * jnp.exp(estimate.variance_fraction * broadcast_like(row.noise_range, xt))",
        "std = std * (1 + estimate.variance_fraction * jnp.expm1(broadcast_like(row.noise_range, xt)))",
        "sampler",
        "maxdiffusion's DDPM",
    ),
    Mutant(
        "an analytic variance without the square of x0's share",
        S,
        "noise = small + x0_coef**2 * float(",
        "noise = small + x0_coef * float(",
        "sampler",
    ),
    Mutant(
        "noise in DDPM's last step",
        S,
        "if cleaner.sigma > 0:\n            noise = large",
        "if True:\n            noise = large",
        "sampler",
    ),
    Mutant(
        "a variance-exploding step on a variance-preserving schedule",
        S,
        "cleaner.alpha / level.alpha, eps_coef=1.0, history_weights=[move]",
        "1.0, eps_coef=1.0, history_weights=[move]",
        "sampler",
        "FlaxDiff's Euler and multistep DPM",
    ),
    Mutant(
        "Heun uses the first answer twice",
        S,
        "history_weights=[move / 2, -move / 2]",
        "history_weights=[0.0, 0.0]",
        "sampler",
        "DiffuseNNX",
    ),
    Mutant(
        "Adams-Bashforth's weights of even strides on any",
        S,
        "_quadrature((sigma[i - lags] - sigma[i]) / move, 1 / (lags + 1))",
        "_quadrature(-lags.astype(float), 1 / (lags + 1))",
        "sampler",
    ),
    Mutant(
        "DPM-Solver++ as if strides were even",
        S,
        "nodes = (lam[i - np.arange(num_x0)] - lam[i]) / move",
        "nodes = -np.arange(float(num_x0))",
        "sampler",
    ),
    Mutant(
        "3M counts the second split_variance difference half",
        S,
        "    return moments\n\n\n@dataclass",
        "    moments[2:] /= 2\n    return moments\n\n\n@dataclass",
        "sampler",
        "DPM-Solver++, diffusers, k-diffusion",
    ),
    Mutant(
        "UniPC without its correction",
        S,
        "if i - 1 >= first and corrected:",
        "if False:",
        "sampler",
    ),
    Mutant(
        "UniPC corrects what it does not take back",
        S,
        "            weights[1:] -= predicted[:-1]\n",
        "",
        "sampler",
    ),
    Mutant(
        "Euler-Maruyama with all of beta in the drift's xt",
        S,
        "1 + b / 2,",
        "1 + b,",
        "sampler",
    ),
    Mutant(
        "the flow's drift with the SDE's noise",
        S,
        "history_weights=[-b / level.sigma]",
        "history_weights=[-b / 2 / level.sigma]",
        "sampler",
    ),
    Mutant(
        "the SDE's noise without its root",
        S,
        "noise_coef=np.sqrt(b)",
        "noise_coef=b",
        "sampler",
    ),
    Mutant(
        "SDE-DPM-Solver++ with the flow's stride",
        S,
        "gain = -np.expm1(-2 * move)",
        "gain = -np.expm1(-move)",
        "sampler",
    ),
    Mutant(
        "SDE-DPM-Solver++'s noise at the level it left",
        S,
        "noise_coef=cleaner.sigma * np.sqrt(gain)",
        "noise_coef=level.sigma * np.sqrt(gain)",
        "sampler",
    ),
    # Guidance.
    Mutant(
        "guidance by the paper's w, which is a scale of one less",
        "diffusion/guidance.py",
        "prediction = unconditional + scale * (conditional - unconditional)",
        "prediction = conditional + scale * (conditional - unconditional)",
        "sampler",
        "confused in threestudio and diffusers",
    ),
    Mutant(
        "guidance away from the prompt",
        "diffusion/guidance.py",
        "prediction = unconditional + scale * (conditional - unconditional)",
        "prediction = conditional + scale * (unconditional - conditional)",
        "sampler",
    ),
    Mutant(
        "guided channels of variance",
        "diffusion/guidance.py",
        "jnp.concatenate([prediction, output[..., xt.shape[-1] :]], axis=-1)",
        "jnp.concatenate([prediction, (other_output + scale * (output - other_output))[..., xt.shape[-1] :]], -1)",
        "sampler",
    ),
    Mutant(
        "rescaled by the batch's deviation",
        "diffusion/guidance.py",
        "same_std = prediction * conditional.std(axes, keepdims=True) / prediction_std",
        "same_std = prediction * conditional.std() / jnp.maximum(prediction.std(), 1e-12)",
        "sampler",
    ),
    Mutant(
        "APG projects on xt",
        "diffusion/guidance.py",
        "x0 = solve(prediction_type, conditional, xt, row.level).x0\n",
        "x0 = xt\n",
        "sampler",
    ),
    Mutant(
        "APG's momentum adds to itself with no sign",
        "diffusion/guidance.py",
        "+ c.momentum * memory",
        "+ jnp.abs(c.momentum) * memory",
        "sampler",
    ),
    Mutant(
        "an interval's outside",
        T,
        "np.where((logsnr >= low) & (logsnr <= high), scale, 1.0)",
        "np.where((logsnr >= low) & (logsnr <= high), 1.0, scale)",
        "sampler",
    ),
    # The exact denoiser itself.
    Mutant(
        "a mixture's weights without their volume",
        "diffusion/exact.py",
        " - 0.5 * xt.shape[-1] * jnp.log(variance)",
        "",
        "sampler",
    ),
)


@dataclass(frozen=True)
class Death:
    """Which test failed on a mutant, if any, and what it said. by_value: whether of values, all finite."""

    test: str = ""
    said: str = ""
    by_value: bool = False


def mutated(mutant: Mutant) -> str:
    """The text of the mutant's file. Raises ``ValueError`` where the right formula is not there just once."""
    text = (ROOT / "jdiff" / mutant.file).read_text()
    if text.count(mutant.right) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: its right formula is in {mutant.file} {text.count(mutant.right)} times"
        )
    return text.replace(mutant.right, mutant.wrong) + (BELOW if "BELOW(" in mutant.wrong else "")


def tested(arguments: list[str], sources: Path, **settings: str) -> list[ElementTree.Element]:
    """Run pytest in a folder of sources; the cases of its report. settings: of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments],
            cwd=sources,
            env=os.environ | settings,
            capture_output=True,
        )
        return list(ElementTree.parse(report).iter("testcase"))


def killed(mutant: Mutant, cache: str) -> Death:
    """Run the tests on a copy of the sources with the mutant, until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("jdiff", "tests", "configs", "benchmarks"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / "jdiff" / mutant.file).write_text(mutated(mutant))
        first = f"tests/diffusion/test_{mutant.tests}.py"
        others = sorted(f"tests/diffusion/{path.name}" for path in (ROOT / "tests/diffusion").glob("test_*.py"))
        ordered = [first, *(other for other in others if other != first)]
        settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for case in tested(["-x", *ordered], copy, **settings, PYTHONPATH=folder, PYTHONDONTWRITEBYTECODE="1"):
            for kind in ("failure", "error"):
                if (found := case.find(kind)) is not None:
                    said = found.get("message", "")
                    values = re.sub(r"Max relative difference.*", "", said)  # infinite where 0 was right
                    finite = not re.search(r"\b(nan|inf)\b", values, re.IGNORECASE)
                    by_value = kind == "failure" and said.startswith(("AssertionError", "assert")) and finite
                    return Death(case.get("name"), said, by_value)
    return Death()


def claims() -> Iterator[Claim]:
    """Every mutant, printed with its death, and the claim that all died by a value."""
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(os.cpu_count()) as pool:
        deaths = []
        for mutant, death in zip(MUTANTS, pool.map(lambda mutant: killed(mutant, cache), MUTANTS)):
            deaths.append(death)
            print(f"{mutant.name}: {death.test or 'SURVIVES'}{'' if death.by_value else ': ' + death.said}", flush=True)
    shown = Table("mutant", "in", "seen", "killed by", title="Wrong formulas, and the tests that kill them")
    for mutant, death in zip(MUTANTS, deaths):
        shown.add_row(mutant.name, mutant.file, mutant.seen, death.test if death.by_value else f"NOT: {death.said}")
    Console(width=180).print(shown)
    right = sum(death.by_value for death in deaths)
    yield Claim("mutants killed by an assertion about a value", right, len(MUTANTS), note=f"of {len(MUTANTS)}")


def measure(*, quick: bool, runs: str) -> int:
    """Kill every mutant, which no quick run does. Returns the exit status."""
    if quick:
        print("mutants: every one is another run of the tests; without --quick")
        return 0
    return settle("mutants", claims())
