"""Wrong formulas, as others have published them or as one easily would, each bound to the function that it replaces.

A replacement takes the right function first, then that function's arguments; it runs and stays finite. Most perturb the
right function's result; where the fault is inside of it, the function is written out with the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from jdiff.diffusion import guidance, process, schedules, solvers
from jdiff.diffusion.weighting import simple
from jdiff.levels import Level, broadcast_like

# Modules of the functions that are replaced.
EXACT = "jdiff.diffusion.exact"
GUIDANCE = "jdiff.diffusion.guidance"
LEVELS = "jdiff.levels"
LOSS = "jdiff.diffusion.loss"
PREDICTION = "jdiff.diffusion.prediction"
PROCESS = "jdiff.diffusion.process"
SAMPLER = "jdiff.diffusion.sampler"
SCHEDULES = "jdiff.diffusion.schedules"
SOLVERS = "jdiff.diffusion.solvers"
SPACING = "jdiff.diffusion.spacing"
TABLEAU = "jdiff.diffusion.tableau"
WEIGHTING = "jdiff.diffusion.weighting"


@dataclass(frozen=True)
class Mutant:
    """A wrong formula.

    name: the fault.   module, attribute: of the function; a method as "Class.method", a table's entry as "TABLE.key".
    replacement: (right function, *arguments) -> result.   tests: the file of tests/diffusion that is run first.
    source: the system that has the fault, of those in docs/evidence/other-libraries.md.
    """

    name: str
    module: str
    attribute: str
    replacement: Callable
    tests: str
    source: str = ""


# The forward process and its schedules.


def diffuse_with_one_minus_alpha(right, x0, eps, level):
    level = level.broadcast_like(x0)
    return level.alpha * x0 + (1 - level.alpha) * eps


def posterior_with_ratio_of_sigmas(right, level_s, level_t):
    alpha_ratio, beta = level_t.alpha / level_s.alpha, process.added_variance(level_s, level_t)
    sigma_ratio = level_s.sigma / level_t.sigma
    return alpha_ratio * sigma_ratio, level_s.alpha * beta / level_t.sigma**2, beta * sigma_ratio


def posterior_with_alpha_bar(right, level_s, level_t):
    xt_coef, x0_coef, variance = right(level_s, level_t)
    return level_t.alpha / level_s.alpha * xt_coef, x0_coef, variance


def added_variance_of_deviations(right, level_s, level_t):
    return (level_t.sigma - level_t.alpha / level_s.alpha * level_s.sigma) ** 2


def scaled_linear_not_squared(right, timesteps=1000, *, beta_start=0.00085, beta_end=0.012):
    return schedules.linear(timesteps, beta_start=beta_start, beta_end=beta_end)


def zero_terminal_of_alpha_bar(right, self):
    alpha_bar = self.alpha_bar
    return type(self)((alpha_bar - alpha_bar[-1]) * alpha_bar[0] / (alpha_bar[0] - alpha_bar[-1]))


def trailing_rounded_down(right, schedule, steps):
    timesteps = schedule.timesteps - np.arange(steps) * (schedule.timesteps / steps)
    return np.floor(timesteps).astype(int) - 1 if isinstance(schedule, schedules.Discrete) else timesteps


def level_at_stride(grid, i, stride):
    """The level so many timesteps below level i of a grid, on DDPM's schedule, which the grid does not know."""
    return schedules.linear().rates(np.maximum(grid.timestep[i] - stride, -1.0))


def ddim_row_of_fixed_stride(right, grid, i, eta):
    alpha, sigma = grid.level.alpha.copy(), grid.level.sigma.copy()
    target = level_at_stride(grid, i, 1000 // len(grid.timestep))
    alpha[i + 1], sigma[i + 1] = target.alpha, target.sigma
    return right(replace(grid, level=Level(alpha, sigma)), i, eta)


def ddpm_to_the_timestep_before(right, grid, *, variance="small", denoising_mse=None):
    table = right(grid, variance=variance, denoising_mse=denoising_mse)
    posteriors = [process.posterior(level_at_stride(grid, i, 1), grid.level_at(i)) for i in grid.steps]
    xt_coef, x0_coef, small = np.array(posteriors).T
    noise_coef = np.where(table.noise_coef > 0, np.sqrt(small), 0) if variance == "small" else table.noise_coef
    return replace(table, xt_coef=xt_coef, x0_coef=x0_coef, noise_coef=noise_coef)


SCHEDULE_MUTANTS = (
    Mutant("noise mixed in by 1 - alpha", PROCESS, "diffuse", diffuse_with_one_minus_alpha, "process"),
    Mutant(
        "posterior's shares by sigma, not its square", PROCESS, "posterior", posterior_with_ratio_of_sigmas, "process"
    ),
    Mutant(
        "a stride's variance as a difference of deviations",
        PROCESS,
        "added_variance",
        added_variance_of_deviations,
        "process",
        "imagen-pytorch's repainting",
    ),
    Mutant("posterior's mean scales xt by alpha-bar", PROCESS, "posterior", posterior_with_alpha_bar, "process"),
    Mutant("log SNR of amplitudes", LEVELS, "Level.logsnr", lambda right, self: right(self) / 2, "schedules"),
    Mutant("scaled-linear betas not squared back", SCHEDULES, "scaled_linear", scaled_linear_not_squared, "schedules"),
    Mutant("betas of 1000 timesteps for any number", SCHEDULES, "_per_step", lambda right, beta: beta, "schedules"),
    Mutant(
        "cosine without its offset",
        SCHEDULES,
        "cosine",
        lambda right, timesteps=1000, **options: right(timesteps, **options | {"offset": 0.0}),
        "schedules",
    ),
    Mutant(
        "zero terminal SNR by rescaling alpha-bar",
        SCHEDULES,
        "Discrete.zero_terminal",
        zero_terminal_of_alpha_bar,
        "schedules",
    ),
    Mutant(
        "shift of larger images by the ratio, not its square",
        SCHEDULES,
        "Discrete.shifted",
        lambda right, self, ratio: right(self, ratio**0.5),
        "schedules",
    ),
    Mutant("trailing timesteps cut off, not rounded", SPACING, "trailing", trailing_rounded_down, "schedules"),
    Mutant(
        "Karras' grid even in sigma / alpha itself",
        SPACING,
        "karras",
        lambda right, schedule, steps, **options: right(schedule, steps, rho=1.0),
        "schedules",
    ),
    Mutant(
        "a step of DDIM ends a fixed stride below, not at the list's next timestep",
        SOLVERS,
        "_ddim_row",
        ddim_row_of_fixed_stride,
        "sampler",
        "diffusers, maxdiffusion",
    ),
    Mutant(
        "DDPM steps to t - 1, whatever the stride",
        SOLVERS,
        "ddpm",
        ddpm_to_the_timestep_before,
        "sampler",
        "maxdiffusion, FlaxDiff",
    ),
)


# What a network is asked for, and what its errors count.


def clipped_with_old_eps(right, estimate, xt, level, **options):
    return right(estimate, xt, level, **options)._replace(eps=estimate.eps)


def clipped_by_fraction(right, estimate, xt, level, *, percentile=0.0, **options):
    return right(estimate, xt, level, percentile=percentile / 100, **options)


def p2_of_x0(right, prediction_type, level, *, gamma=1.0, k=1.0):
    return (level.sigma**2 / (k * level.sigma**2 + level.alpha**2)) ** gamma


def split_variance_from_minus_one(right, output, xt):
    prediction, fraction = right(output, xt)
    return prediction, None if fraction is None else 2 * fraction - 1


PREDICTION_MUTANTS = (
    Mutant(
        "v of the wrong sign",
        PREDICTION,
        "PREDICTION_TYPES.v",
        lambda right, level: (level.sigma, -level.alpha),
        "prediction",
    ),
    Mutant(
        "v with its rates exchanged",
        PREDICTION,
        "PREDICTION_TYPES.v",
        lambda right, level: (-level.alpha, level.sigma),
        "prediction",
    ),
    Mutant(
        "score by the variance of the noise",
        PREDICTION,
        "PREDICTION_TYPES.score",
        lambda right, level: (0.0, -1 / level.sigma**2),
        "prediction",
    ),
    Mutant("flow from noise to data", PREDICTION, "PREDICTION_TYPES.flow", lambda right, _: (1.0, -1.0), "prediction"),
    Mutant(
        "clipped x0 beside the eps of before",
        PREDICTION,
        "clipped",
        clipped_with_old_eps,
        "prediction",
        "diffusers, by default",
    ),
    Mutant(
        "percentile of 0.995 for 99.5",
        PREDICTION,
        "clipped",
        clipped_by_fraction,
        "prediction",
        "maxdiffusion's DPM-Solver++",
    ),
    Mutant(
        "min-SNR of v as that of eps",
        WEIGHTING,
        "min_snr",
        lambda right, prediction_type, level, **options: right("eps", level, **options),
        "prediction",
        "EasyDeL",
    ),
    Mutant("P2 of an error of x0", WEIGHTING, "p2", p2_of_x0, "prediction"),
    Mutant(
        "a learned variance's channels read from -1 to 1",
        PREDICTION,
        "split_variance",
        split_variance_from_minus_one,
        "sampler",
    ),
)


# The loss.


def draw_one_for_all(right, keys, *arguments):
    draws = right(keys, *arguments)
    return tuple(jnp.broadcast_to(values[:1], values.shape) for values in draws)


def loss_of_mean_weight(right, *arguments, weighting=simple, **options):
    def mean_weight(prediction_type, level):
        weights = weighting(prediction_type, level)
        return jnp.full_like(weights, jnp.mean(weights))

    return right(*arguments, weighting=mean_weight, **options)


def loss_with_gradient_of_the_bound(right, *arguments, **options):
    with patch.object(jax.lax, "stop_gradient", lambda x: x):
        return right(*arguments, **options)


def variational_bound(
    right, x0_hat, variance_fraction, x0, xt, timestep, schedule, *, reverse_kl=False, upper_width=1 / 255
):
    """``loss.variational_bound``, with two places for a fault."""
    whole_timesteps = np.arange(schedule.timesteps)
    ends = schedule.rates(whole_timesteps - 1), schedule.rates(whole_timesteps)
    xt_coef, x0_coef, small = process.posterior(*ends)
    large = process.added_variance(*ends)
    small[0] = small[1]

    def lookup(table):
        return broadcast_like(jnp.asarray(table, jnp.float32)[timestep.astype(jnp.int32)], x0)

    log_small, log_large = lookup(np.log(small)), lookup(np.log(large))
    log_variance = log_small + variance_fraction * (log_large - log_small)
    log_ratio = log_variance - log_small
    difference = lookup(x0_coef) * (x0 - x0_hat)
    if reverse_kl:
        kl = 0.5 * (-log_ratio - 1 + jnp.exp(log_ratio) + difference**2 * jnp.exp(-log_small))
    else:
        kl = 0.5 * (log_ratio - 1 + jnp.exp(-log_ratio) + difference**2 * jnp.exp(-log_variance))
    mean, std = lookup(xt_coef) * xt + lookup(x0_coef) * x0_hat, jnp.exp(log_variance / 2)
    upper = jnp.where(x0 > 0.999, 1.0, ndtr((x0 + upper_width - mean) / std))
    lower = jnp.where(x0 < -0.999, 0.0, ndtr((x0 - 1 / 255 - mean) / std))
    negative_log_likelihood = -jnp.log(jnp.maximum(upper - lower, 1e-12))
    terms = jnp.where(broadcast_like(timestep, x0) == 0, negative_log_likelihood, kl)
    return jnp.mean(terms, axis=tuple(range(1, x0.ndim))) / jnp.log(2.0)


LOSS_MUTANTS = (
    Mutant(
        "one noise for all examples",
        LOSS,
        "draw_timesteps_and_noise",
        draw_one_for_all,
        "loss",
        "kvfrans' pmap step, across devices",
    ),
    Mutant("weights and errors averaged apart", LOSS, "loss", loss_of_mean_weight, "loss"),
    Mutant("the bound teaches the mean too", LOSS, "loss", loss_with_gradient_of_the_bound, "loss"),
    Mutant(
        "the divergence the other way round",
        LOSS,
        "variational_bound",
        partial(variational_bound, reverse_kl=True),
        "loss",
    ),
    Mutant(
        "a pixel's values twice as wide",
        LOSS,
        "variational_bound",
        partial(variational_bound, upper_width=2 / 255),
        "loss",
    ),
)


# Solvers. Rows that are DDIM's, as at pure noise, have an xt_coef of 0.


def ddim_row_without_noise(right, grid, i, eta):
    return replace(right(grid, i, eta), noise_coef=0.0)


def ddim_row_of_full_direction(right, grid, i, eta):
    return replace(right(grid, i, eta), eps_coef=grid.level_at(i + 1).sigma)


def ddim_row_of_deviations(right, grid, i, eta):
    row = right(grid, i, eta)
    return replace(row, eps_coef=grid.level_at(i + 1).sigma - row.noise_coef)


def ddim_row_of_eta_on_variance(right, grid, i, eta):
    noise = eta * process.posterior(grid.level_at(i + 1), grid.level_at(i))[2]
    direction = np.sqrt(np.maximum(grid.level_at(i + 1).sigma ** 2 - noise**2, 0))
    return replace(right(grid, i, eta), eps_coef=direction, noise_coef=noise)


def ddpm_of_the_other_variance(right, grid, *, variance="small", denoising_mse=None):
    variance = {"small": "large", "large": "small"}.get(variance, variance)
    return right(grid, variance=variance, denoising_mse=denoising_mse)


def ddpm_of_analytic_variance_not_squared(right, grid, *, variance="small", denoising_mse=None):
    table = right(grid, variance=variance, denoising_mse=denoising_mse)
    if variance != "analytic":
        return table
    small = right(grid).noise_coef ** 2
    return replace(table, noise_coef=np.sqrt(small + (table.noise_coef**2 - small) / table.x0_coef))


def ddpm_with_noise_in_the_last_step(right, grid, *, variance="small", denoising_mse=None):
    table = right(grid, variance=variance, denoising_mse=denoising_mse)
    if variance == "large":
        n = len(grid.timestep)
        table.noise_coef[-1] = np.sqrt(process.added_variance(grid.level_at(n), grid.level_at(n - 1)))
    return table


def row_between_variances(right, denoise, tableau, keys, i, state):
    """The fraction whose log-interpolation is the linear interpolation of the true fraction."""

    def with_linear_fraction(estimate, row):
        if estimate.variance_fraction is None:
            return estimate
        size = broadcast_like(row.noise_range, estimate.variance_fraction)
        fraction = jnp.log1p(estimate.variance_fraction * jnp.expm1(size)) / jnp.where(size == 0, 1, size)
        return estimate._replace(variance_fraction=fraction)

    def wrong_denoise(xt, row, *memory):
        result = denoise(xt, row, *memory)
        return (with_linear_fraction(result[0], row), result[1]) if memory else with_linear_fraction(result, row)

    return right(wrong_denoise, tableau, keys, i, state)


def heun_of_variance_exploding(right, grid):
    table = right(grid)
    return replace(table, xt_coef=np.where(table.xt_coef == 0, 0.0, 1.0))


def heun_of_one_answer(right, grid):
    table = right(grid)
    is_second = (table.history_weights[:, 1:] != 0).any(axis=1, keepdims=True)
    return replace(table, history_weights=np.where(is_second, 0.0, table.history_weights))


def even_nodes(quadrature, nodes, moments):
    """``solvers._quadrature`` as if strides were even; the corrector's nodes, which start at 1, stay."""
    return quadrature(-np.arange(float(len(nodes))) if nodes[0] == 0 else nodes, moments)


def with_even_strides(right, *arguments, **options):
    with patch.object(solvers, "_quadrature", partial(even_nodes, solvers._quadrature)):
        return right(*arguments, **options)


def moments_of_halved_second_difference(right, move, count, **options):
    moments = right(move, count, **options)
    moments[2:] /= 2
    return moments


def unipc_that_keeps_its_prediction(right, grid, order, *, corrected=False):
    table = right(grid, order, corrected=corrected)
    if corrected:
        predictions = right(grid, order).history_weights
        length = min(predictions.shape[1], table.history_weights.shape[1] - 1)
        for i in range(grid.num_pure_noise + 1, len(grid.timestep)):
            table.history_weights[i, 1 : 1 + length] += table.xt_coef[i] * predictions[i - 1, :length]
    return table


def euler_maruyama_with_all_of_beta(right, grid):
    table = right(grid)
    return replace(table, xt_coef=np.where(table.xt_coef == 0, 0.0, 2 * table.xt_coef - 1))


def euler_maruyama_with_drift_of_the_flow(right, grid):
    table = right(grid)
    return replace(
        table, history_weights=np.where(table.xt_coef[:, None] == 0, table.history_weights, table.history_weights / 2)
    )


def euler_maruyama_with_squared_noise(right, grid):
    table = right(grid)
    return replace(table, noise_coef=np.where(table.xt_coef == 0, table.noise_coef, table.noise_coef**2))


def sde_solver_with_stride_of_the_flow(right, grid):
    table, strides = right(grid), np.diff(grid.level.logsnr / 2)
    ratio = np.expm1(-strides) / np.expm1(-2 * strides)
    return replace(
        table, history_weights=table.history_weights * ratio[:, None], noise_coef=table.noise_coef * np.sqrt(ratio)
    )


def sde_solver_with_noise_of_the_start(right, grid):
    strides = np.diff(grid.level.logsnr / 2)
    return replace(right(grid), noise_coef=grid.level.sigma[:-1] * np.sqrt(-np.expm1(-2 * strides)))


SOLVER_MUTANTS = (
    Mutant(
        "DDIM shrinks the direction and adds no noise",
        SOLVERS,
        "_ddim_row",
        ddim_row_without_noise,
        "sampler",
        "maxdiffusion's DDIM",
    ),
    Mutant(
        "DDIM adds noise and does not shrink the direction",
        SOLVERS,
        "_ddim_row",
        ddim_row_of_full_direction,
        "sampler",
        "FlaxDiff's DDIM",
    ),
    Mutant("deviations subtracted, not variances", SOLVERS, "_ddim_row", ddim_row_of_deviations, "sampler"),
    Mutant("eta on the variance", SOLVERS, "_ddim_row", ddim_row_of_eta_on_variance, "sampler"),
    Mutant(
        "the same noise in every step",
        SAMPLER,
        "_noise",
        lambda right, keys, number, shape: right(keys, jnp.minimum(number, 1), shape),
        "sampler",
        "maxdiffusion's DDPM without a key",
    ),
    Mutant("small and large variance exchanged", SOLVERS, "ddpm", ddpm_of_the_other_variance, "sampler"),
    Mutant(
        "a learned variance between its bounds, not between their logarithms",
        SAMPLER,
        "_run_row",
        row_between_variances,
        "sampler",
        "maxdiffusion's DDPM",
    ),
    Mutant(
        "an analytic variance without the square of x0's share",
        SOLVERS,
        "ddpm",
        ddpm_of_analytic_variance_not_squared,
        "sampler",
    ),
    Mutant("noise in DDPM's last step", SOLVERS, "ddpm", ddpm_with_noise_in_the_last_step, "sampler"),
    Mutant(
        "a variance-exploding step on a variance-preserving schedule",
        SOLVERS,
        "heun",
        heun_of_variance_exploding,
        "sampler",
        "FlaxDiff's Euler and multistep DPM",
    ),
    Mutant("Heun uses the first answer twice", SOLVERS, "heun", heun_of_one_answer, "sampler", "DiffuseNNX"),
    Mutant("Adams-Bashforth's weights of even strides on any", SOLVERS, "plms", with_even_strides, "sampler"),
    Mutant("DPM-Solver++ as if strides were even", SOLVERS, "_exponential", with_even_strides, "sampler"),
    Mutant(
        "3M counts the second divided difference half",
        SOLVERS,
        "_moments",
        moments_of_halved_second_difference,
        "sampler",
        "DPM-Solver++, diffusers, k-diffusion",
    ),
    Mutant(
        "UniPC without its correction",
        SOLVERS,
        "_exponential",
        lambda right, grid, order, **options: right(grid, order),
        "sampler",
    ),
    Mutant(
        "UniPC corrects what it does not take back",
        SOLVERS,
        "_exponential",
        unipc_that_keeps_its_prediction,
        "sampler",
    ),
    Mutant(
        "Euler-Maruyama with all of beta in the drift's xt",
        SOLVERS,
        "euler_maruyama",
        euler_maruyama_with_all_of_beta,
        "sampler",
    ),
    Mutant(
        "the flow's drift with the SDE's noise",
        SOLVERS,
        "euler_maruyama",
        euler_maruyama_with_drift_of_the_flow,
        "sampler",
    ),
    Mutant("the SDE's noise without its root", SOLVERS, "euler_maruyama", euler_maruyama_with_squared_noise, "sampler"),
    Mutant(
        "SDE-DPM-Solver++ with the flow's stride",
        SOLVERS,
        "dpmpp_2m_sde",
        sde_solver_with_stride_of_the_flow,
        "sampler",
    ),
    Mutant(
        "SDE-DPM-Solver++'s noise at the level it left",
        SOLVERS,
        "dpmpp_2m_sde",
        sde_solver_with_noise_of_the_start,
        "sampler",
    ),
)


# Guidance.


def guided_by(scale_of):
    """``guidance.guided`` with another scale. scale_of: guidance scale -> the scale that is used."""

    def guided(right, predict_pair, prediction_type, corrections):
        ask = right(predict_pair, prediction_type, corrections)

        def ask_with_wrong_scale(xt, row, memory):
            return ask(xt, replace(row, guidance_scale=scale_of(row.guidance_scale)), memory)

        return ask_with_wrong_scale

    return guided


def guided_with_variance(right, predict_pair, prediction_type, corrections):
    ask = right(predict_pair, prediction_type, corrections)

    def ask_with_guided_variance(xt, row, memory):
        output, memory = ask(xt, row, memory)
        conditional, unconditional = predict_pair(xt, row.timestep)
        channels = xt.shape[-1]
        extrapolation = unconditional + broadcast_like(row.guidance_scale, xt) * (conditional - unconditional)
        return jnp.concatenate([output[..., :channels], extrapolation[..., channels:]], axis=-1), memory

    return ask_with_guided_variance


def corrected_by_deviation_of_the_batch(right, conditional, *arguments):
    *others, corrections, memory = arguments
    no_rescale = replace(corrections, rescale=jnp.zeros_like(corrections.rescale))
    answer, memory = right(conditional, *others, no_rescale, memory)
    share = corrections.rescale
    rescaled_answer = answer * conditional.std() / jnp.maximum(answer.std(), 1e-12)
    return jnp.where(share != 0, share * rescaled_answer + (1 - share) * answer, answer), memory


def corrected_along_xt(right, *arguments):
    def solve_with_xt(prediction_type, prediction, xt, level):
        return solve(prediction_type, prediction, xt, level)._replace(x0=xt)

    solve = guidance.solve
    with patch.object(guidance, "solve", solve_with_xt):
        return right(*arguments)


def corrected_with_momentum_without_sign(right, *arguments):
    *others, corrections, memory = arguments
    return right(*others, replace(corrections, momentum=jnp.abs(corrections.momentum)), memory)


def with_guidance_outside(right, tableau, scale, *, low=-np.inf, high=np.inf):
    logsnr = tableau.level.logsnr
    return replace(tableau, guidance_scale=np.where((logsnr >= low) & (logsnr <= high), 1.0, scale))


GUIDANCE_MUTANTS = (
    Mutant(
        "guidance by the paper's w, which is a scale of one less",
        GUIDANCE,
        "guided",
        guided_by(lambda scale: scale + 1),
        "sampler",
        "confused in threestudio and diffusers",
    ),
    Mutant("guidance away from the prompt", GUIDANCE, "guided", guided_by(lambda scale: 1 - scale), "sampler"),
    Mutant("guided channels of variance", GUIDANCE, "guided", guided_with_variance, "sampler"),
    Mutant("rescaled by the batch's deviation", GUIDANCE, "_corrected", corrected_by_deviation_of_the_batch, "sampler"),
    Mutant("APG projects on xt", GUIDANCE, "_corrected", corrected_along_xt, "sampler"),
    Mutant(
        "APG's momentum adds to itself with no sign",
        GUIDANCE,
        "_corrected",
        corrected_with_momentum_without_sign,
        "sampler",
    ),
    Mutant("an interval's outside", TABLEAU, "with_guidance", with_guidance_outside, "sampler"),
)


# The exact denoiser itself.


def mixture_without_volume(right, means, stds, weights):
    def exact(xt, level):
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        variance = alpha**2 * stds[None] ** 2 + sigma**2
        offset = xt[:, None] - alpha[..., None] * means[None]
        fit = jnp.log(weights)[None] - 0.5 * (offset**2).sum(-1) / variance
        belief = jax.nn.softmax(fit, axis=-1)[..., None]
        x0 = means[None] + (alpha * stds[None] ** 2 / variance)[..., None] * offset
        eps = (sigma / variance)[..., None] * offset
        return (belief * x0).sum(1), (belief * eps).sum(1)

    return exact


EXACT_MUTANTS = (
    Mutant("a mixture's weights without their volume", EXACT, "mixture", mixture_without_volume, "sampler"),
)
MUTANTS = (
    *SCHEDULE_MUTANTS,
    *PREDICTION_MUTANTS,
    *LOSS_MUTANTS,
    *SOLVER_MUTANTS,
    *GUIDANCE_MUTANTS,
    *EXACT_MUTANTS,
)
