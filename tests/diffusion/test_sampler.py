"""Samplers given a perfect denoiser reproduce the data, to the digits that a float64 recursion predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.data.spiral import distances, spiral_points
from jdiff.diffusion import exact, prediction, sampler, solvers
from jdiff.diffusion.guidance import Corrections, guided, two_captions, two_networks
from jdiff.diffusion.schedules import cosine, linear, make
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS, ddim, ddpm
from jdiff.diffusion.spacing import SPACINGS, trailing
from jdiff.diffusion.tableau import level_grid, stack_tableaux, with_guidance
from jdiff.levels import Level
from reference import papers
from reference.orders import MEAN, STD
from tests.diffusion import orders

GAUSSIAN = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
EXACT = exact.denoiser(GAUSSIAN)
GRIDS = [10, 50, 150, 1000]


def steps_of(schedule, count, spacing="trailing"):
    return level_grid(schedule, SPACINGS[spacing](schedule, count))


def draw(tableau, n=40_000, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.jit(lambda keys: sampler.sample(EXACT, tableau, sampler.initial_noise(keys, (1,)), keys=keys)[0])(keys)


@pytest.mark.parametrize("steps", GRIDS)
@pytest.mark.parametrize(
    ("make", "method", "eta"),
    [
        (lambda g: ddim(g), "ddim", 0.0),
        (lambda g: ddim(g, eta=0.5), "ddim", 0.5),
        (lambda g: ddim(g, eta=1.0), "ddim", 1.0),
        (lambda g: ddpm(g), "small", None),
        (lambda g: ddpm(g, variance="large"), "large", None),
    ],
    ids=["ddim", "ddim-half", "ddim-full", "ddpm-small", "ddpm-large"],
)
def test_equations_9_to_11_against_the_moments_of_gaussian_data(make, method, eta, steps):
    """Equations (9), (10), (11): mean and std of 40,000 samples against the exact recursion, at any stride."""
    schedule = linear(1000)
    timesteps = trailing(schedule, steps)
    n = 40_000 if steps < 1000 else 4_000
    samples = np.asarray(draw(make(level_grid(schedule, timesteps)), n))
    mean, variance = papers.strided_moments(schedule.alpha_bar[timesteps], MEAN, STD**2, method=method, eta=eta or 0.0)
    # Four standard errors of a mean and of a std of n draws.
    std = np.sqrt(variance)
    np.testing.assert_allclose(samples.mean(), mean, atol=4 * std / np.sqrt(n))
    np.testing.assert_allclose(samples.std(), std, rtol=4 / np.sqrt(2 * n))


def test_the_recursion_itself_reproduces_published_figures():
    """guided-diffusion's own samplers with this denoiser: DDIM of 50 steps .2266 / .207; DDPM of 10 .125 / .407."""
    alpha_bar = linear(1000).alpha_bar

    def std(steps, **method):
        space = np.round(np.linspace(0, 999, steps)).astype(int)[::-1]  # its "N sections" of 1000
        return np.sqrt(papers.strided_moments(alpha_bar[space], MEAN, STD**2, **method)[1])

    np.testing.assert_allclose(std(50, method="ddim"), 0.2266, atol=0.002)
    np.testing.assert_allclose(std(50, method="ddim", eta=1.0), 0.207, atol=0.002)
    np.testing.assert_allclose([std(10, method="small"), std(10, method="large")], [0.125, 0.407], atol=0.006)


def test_analytic_variance_keeps_the_variance_of_the_data():
    """With Var[x0 | xt] in closed form, ten steps of DDPM reproduce the variance of Gaussian data."""

    def denoising_mse(level):
        return STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)

    samples = np.asarray(draw(ddpm(steps_of(linear(1000), 10), variance="analytic", denoising_mse=denoising_mse)))
    # The last step, to the clean image, is the mean alone: the variance that it omits is known too.
    last = linear(1000).rates(trailing(linear(1000), 10))
    omitted_variance = denoising_mse(Level(last.alpha[-1], last.sigma[-1]))
    np.testing.assert_allclose(samples.var() + omitted_variance, STD**2, rtol=0.03)


def test_learned_variance_is_between_its_bounds():
    """Fractions 0 and 1 are "small" and "large", 0.5 is their geometric mean, and -1 in a channel is fraction 0."""
    grid = steps_of(linear(1000), 10)
    keys = jax.random.split(jax.random.key(0), 64)

    def run(tableau, fraction=None):
        def denoise(xt, row):
            estimate = EXACT(xt, row)
            return estimate if fraction is None else estimate._replace(variance_fraction=jnp.full_like(xt, fraction))

        return sampler.sample(denoise, tableau, sampler.initial_noise(keys, (1,)), keys=keys)[0]

    tableau = ddpm(grid, variance="learned")
    np.testing.assert_allclose(run(tableau, 0.0), run(ddpm(grid)), atol=1e-6)
    np.testing.assert_allclose(run(tableau, 1.0), run(ddpm(grid, variance="large")), atol=1e-5)
    z = noises(keys, 10, (1,))
    expected = papers.sample_path(
        "ddpm",
        grid.level.alpha,
        grid.level.sigma,
        np.asarray(sampler.initial_noise(keys, (1,))),
        papers.gaussian_answers(MEAN, STD),
        lambda i: z[i],
        variance="learned",
        fraction=0.5,
    )
    np.testing.assert_allclose(run(tableau, 0.5), expected, atol=1e-5)
    output = jnp.concatenate([jnp.zeros((2, 3)), jnp.full((2, 3), -1.0)], -1)
    assert prediction.split_variance(output, jnp.zeros((2, 3)))[1].max() == 0


def noises(keys, rows, shape):
    """The noise of each row, drawn as in the sampler."""
    return np.stack(
        [rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, row), shape) for row in range(1, rows + 1)]
    )


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_equations_19_to_27_each_method_as_its_paper_writes_it(name, spacing, steps):
    """Every row against the method's own loop in float64 (``reference.papers``), on the same levels and noise."""
    schedule = linear(1000)
    grid = steps_of(schedule, steps, spacing)
    tableau = SOLVERS[name].make_tableau(grid)
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    samples = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
    z = noises(keys, tableau.num_rows, (1,))
    expected = papers.sample_path(
        name, grid.level.alpha, grid.level.sigma, xt, papers.gaussian_answers(MEAN, STD), lambda i: z[i]
    )
    # Heun's differences of two answers, times a stride of sigma / alpha of a hundred, keep four digits of float32.
    np.testing.assert_allclose(samples, expected, atol=1e-3 * np.abs(expected).max() if name == "heun" else 2e-5)


@pytest.mark.parametrize("variance", ["small", "large", "analytic"])
def test_equation_10_with_every_variance(variance):
    """As the test before, with Var[x0 | xt] in closed form."""
    grid = steps_of(linear(1000), 5)
    denoising_mse = papers.gaussian_denoising_mse(STD)
    tableau = ddpm(grid, variance=variance, denoising_mse=lambda level: denoising_mse(level.alpha, level.sigma))
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    samples = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
    z = noises(keys, tableau.num_rows, (1,))
    level, answers = grid.level, papers.gaussian_answers(MEAN, STD)
    expected = papers.sample_path(
        "ddpm", level.alpha, level.sigma, xt, answers, lambda i: z[i], variance=variance, denoising_mse=denoising_mse
    )
    np.testing.assert_allclose(samples, expected, atol=2e-5)


OPTIONS = ({}, {"continuous": True}, {"zero_terminal_snr": True})
# At pure noise some types do not determine x0, so starting there is refused, as the next test checks.
BLIND = [(OPTIONS[2], name) for name in prediction.BLIND_AT_ZERO_SNR]
SEEING = [
    (options, name) for options in OPTIONS for name in prediction.PREDICTION_TYPES if (options, name) not in BLIND
]


@pytest.mark.parametrize(("options", "prediction_type"), SEEING, ids=str)
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "logsnr"])
def test_networks_of_every_type_and_schedule(name, options, prediction_type):
    """A perfect network, asked by its timestep alone, does what the exact denoiser does."""
    schedule = make(name, **options)
    denoise = prediction.denoiser(exact.perfect_network(GAUSSIAN, schedule, prediction_type), prediction_type)
    grid = steps_of(schedule, 20)
    xt, keys = jnp.linspace(-2, 2, 5)[:, None], jax.random.split(jax.random.key(0), 5)
    samples = sampler.sample(denoise, SOLVERS["dpmpp_2m"].make_tableau(grid), xt, keys=keys)[0]
    expected = papers.sample_path(
        "dpmpp_2m", grid.level.alpha, grid.level.sigma, np.asarray(xt), papers.gaussian_answers(MEAN, STD), None
    )
    np.testing.assert_allclose(samples, expected, atol=5e-5)


@pytest.mark.parametrize(("options", "prediction_type"), BLIND, ids=str)
def test_start_at_pure_noise_is_refused_for_types_that_do_not_determine_x0(options, prediction_type):
    schedule = make("linear", **options)
    with pytest.raises(ValueError, match="pure noise"):
        Settings().tableau(schedule, prediction_type)
    Settings(spacing="leading").tableau(schedule, prediction_type)


def test_variance_that_the_model_does_not_have_is_refused():
    for variance, message in (("learned", "learned_variance"), ("analytic", "jdiff evaluate")):
        with pytest.raises(ValueError, match=message):
            Settings(solver="ddpm", variance=variance).tableau(linear(1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, "eta is 1.5.* 0 to 1"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf.* finite"),
        ({"threshold_percentile": 200}, "threshold_percentile is 200"),
        ({"threshold_percentile": 99, "clip": False}, "threshold_percentile is 99.* clip"),
        ({"spacing": "leading", "steps": 1, "final_step_to_zero": False}, "steps is 1.* final_step_to_zero"),
        ({"apg_norm": -1.0}, "apg_norm is -1"),
        ({"guidance_from": 2.0, "guidance_to": -2.0}, "guidance_from is 2.* guidance_to.* -2"),
        ({"steps": 1001}, "steps is 1001.* 1 to 1000"),
        ({"solver": "dpmp_2m"}, "solver is 'dpmp_2m'.* ddpm, ddim"),
        ({"spacing": "even"}, "spacing is 'even'.* leading, trailing"),
        ({"variance": "tiny"}, "variance is 'tiny'.* small, large"),
    ],
    ids=str,
)
def test_contradictory_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options).tableau(linear(1000))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_has_a_length(name, spacing):
    """A grid that ends above the clean image, as Stable Diffusion's, starts no step at that end."""
    for offset in (0, 1):
        tableau = Settings(
            solver=name, spacing=spacing, steps=10, steps_offset=offset, final_step_to_zero=False
        ).tableau(linear(1000))
        assert tableau.timestep.min() > 0
        assert all(np.isfinite(column).all() for column in jax.tree.leaves(tableau))


def test_steps_offset_only_shifts_leading_timesteps():
    last = {name: Settings(spacing=name, steps=10, steps_offset=1).tableau(linear(1000)).timestep for name in SPACINGS}
    for name, timesteps in last.items():
        shift = timesteps - Settings(spacing=name, steps=10).tableau(linear(1000)).timestep
        np.testing.assert_array_equal(shift, 1.0 if name == "leading" else 0.0)


@pytest.mark.parametrize("name", orders.DETERMINISTIC)
def test_order_of_convergence_from_exact_starting_values(name):
    """The error of an image after a part of the ODE falls with the declared power of the stride."""
    order, orders_measured = SOLVERS[name].order, orders.of_images(name)
    assert orders_measured[-1] > order - 0.15, orders_measured
    if name not in ("unipc_2", "unipc_3"):  # the corrector may improve on the declared order
        assert orders_measured[-1] < order + 0.5, orders_measured


@pytest.mark.parametrize("name", orders.STOCHASTIC)
def test_weak_order_of_convergence(name):
    """The error of the final moments, computed without sampling, falls with the declared power of the stride."""
    np.testing.assert_allclose(orders.of_distributions(name)[-1], SOLVERS[name].order, atol=0.15)


@pytest.mark.parametrize("name", orders.STOCHASTIC)
def test_samples_have_the_moments_of_their_tableau(name):
    """Equation (9), with noise of unit variance that is independent in every row."""
    tableau = SOLVERS[name].make_tableau(steps_of(linear(1000), 10, "karras"))
    mean, variance = papers.moments_of_rows(tableau, MEAN, STD, papers.gaussian_answers(MEAN, STD), (0.0, 1.0))
    samples = np.asarray(draw(tableau))
    np.testing.assert_allclose(samples.mean(), mean, atol=4 * np.sqrt(variance / 40_000))
    np.testing.assert_allclose(samples.std(), np.sqrt(variance), rtol=4 / np.sqrt(80_000))


def test_ddim_of_eta_1_is_ddpm_of_small_variance():
    grid = steps_of(cosine(1000), 20)
    keys = jax.random.split(jax.random.key(0), 64)
    noise = sampler.initial_noise(keys, (1,))
    a, b = (sampler.sample(EXACT, tableau, noise, keys=keys)[0] for tableau in (ddim(grid, eta=1.0), ddpm(grid)))
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_method_starts_at_pure_noise(name):
    """At zero SNR, where the coordinates of most methods are infinite, the first step is DDIM's."""
    schedule = make("linear", zero_terminal_snr=True)
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    for spacing in SPACINGS:
        grid = steps_of(schedule, 20, spacing)
        tableau = SOLVERS[name].make_tableau(grid)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tableau))
        samples = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
        z = noises(keys, tableau.num_rows, (1,))
        expected = papers.sample_path(
            name, grid.level.alpha, grid.level.sigma, xt, papers.gaussian_answers(MEAN, STD), lambda i, z=z: z[i]
        )
        np.testing.assert_allclose(samples, expected, atol=1e-3 * np.abs(expected).max() if name == "heun" else 5e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_image_does_not_depend_on_its_batch(name):
    tableau = SOLVERS[name].make_tableau(steps_of(linear(1000), 10))
    keys = rng.image_keys(jnp.arange(8))

    @jax.jit
    def run(keys):
        return sampler.sample(EXACT, tableau, sampler.initial_noise(keys, (1,)), keys=keys)[0]

    images = run(keys)
    np.testing.assert_array_equal(images[2:4], run(keys[jnp.array([5, 6, 2, 3, 0, 1, 1, 0])])[2:4])
    np.testing.assert_allclose(images[3:4], run(keys[3:4]), atol=1e-6)
    assert len(np.unique(np.asarray(images))) == 8


def test_one_program_samples_with_every_method_in_one_batch():
    """Each image of a batch with all twelve methods, each with its own number of steps, is bit-identical to the same
    program with that method alone, and close to a scan of its tableau; rows switch between two denoisers."""
    schedule = linear(1000)
    tableaux = [solver.make_tableau(steps_of(schedule, 3 + 2 * i)) for i, solver in enumerate(SOLVERS.values())]
    n, rows = len(tableaux), 64
    keys = rng.image_keys(jnp.arange(n))
    start = sampler.initial_noise(keys, (16,))
    wide = exact.denoiser(exact.mixture(jnp.full((2, 16), 0.3), jnp.array([0.2, 0.4]), jnp.array([0.5, 0.5])))
    denoiser_index = ((jnp.arange(rows) >= 3) & (jnp.arange(rows) < 9)).astype(int)

    def first(xt, row, memory):
        return wide(xt, row), memory

    def second(xt, row, memory):
        return wide(xt, row)._replace(x0=wide(xt, row).x0 / 2), memory

    @jax.jit
    def run(tableau, xt, keys):
        memory = jnp.zeros_like(xt)
        return sampler.sample_in_chunks([first, second], denoiser_index, tableau, xt, keys=keys, memory=memory)

    def run_scan(tableau, xt, keys):
        def denoise(xt, row, i):  # a memory that counts the rows
            estimate = jax.lax.cond(denoiser_index[i] == 1, second, first, xt, row, None)[0]
            return estimate, i + 1

        return sampler.sample(denoise, tableau, xt, keys=keys, memory=jnp.array(0))[0]

    images = run(stack_tableaux(tableaux, rows), start, keys)
    for i in range(n):
        row = slice(i, i + 1)
        same_method = run(stack_tableaux([tableaux[i]] * n, rows), jnp.tile(start[row], (n, 1)), keys[jnp.full(n, i)])
        np.testing.assert_array_equal(same_method[i], images[i])
        scan_image = run_scan(jax.tree.map(np.float32, tableaux[i]), start[row], keys[row])
        np.testing.assert_allclose(scan_image[0], images[i], atol=1e-5)
    assert run._cache_size() == 1


def test_trajectory_has_the_denoised_x0_of_every_row():
    tableau = ddim(steps_of(linear(1000), 10))
    keys = jax.random.split(jax.random.key(0), 4)
    noise = sampler.initial_noise(keys, (1,))
    x0, (noisy, predicted) = sampler.sample(EXACT, tableau, noise, keys=keys, trajectory=True)
    assert noisy.shape == predicted.shape == (10, 4, 1)
    np.testing.assert_array_equal(noisy[0], noise)
    np.testing.assert_allclose(predicted[0], MEAN, atol=0.05)  # at pure noise the best estimate is the mean
    np.testing.assert_allclose(predicted[-1], x0, atol=1e-6)  # the last row ends at the clean image


def guide(corrections, scale, prediction_type="x0", memory=None):
    """The guided output of two fixed outputs, the two outputs (conditional, unconditional), and the memory."""
    xt = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8)), jnp.float32)
    outputs = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8)), jnp.float32)

    def predict(xt, timestep, caption):
        return outputs[caption]

    prompt, negative = jnp.zeros(4, int), jnp.ones(4, int)
    tableau = ddim(steps_of(linear(1000), 2))
    level = Level(jnp.full(4, tableau.level.alpha[1]), jnp.full(4, tableau.level.sigma[1]))
    row = jax.tree.map(lambda c: jnp.full(4, c[1]), tableau)
    row = type(row)(**{**vars(row), "level": level, "guidance_scale": jnp.asarray(scale, jnp.float32)})
    guided_predict = guided(two_captions(predict, prompt, negative), prediction_type, corrections)
    output, memory = guided_predict(xt, row, jnp.zeros_like(xt) if memory is None else memory)
    return np.asarray(output), np.float64(outputs), memory


def test_equation_8_guidance():
    """Equation (8): scale 0 is unconditional, 1 conditional, and the output is linear in the scale."""
    scale = np.array([0.0, 1.0, 3.0, 8.0])
    output, (conditional, unconditional), _ = guide(Corrections(), scale)
    expected = unconditional + scale[:, None] * (conditional - unconditional)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(output[1], np.float32(conditional))


def test_autoguidance_extrapolates_from_the_weaker_network():
    """The network is conditional and the weaker one unconditional in equation (8), for the same xt and timestep."""
    row = jax.tree.map(lambda c: jnp.full(1, c[0]), with_guidance(ddim(steps_of(linear(1000), 2)), 3.0))
    predict_pair = two_networks(lambda xt, timestep: 2 * xt + timestep[:, None], lambda xt, timestep: xt)
    output, _ = guided(predict_pair, "eps", Corrections())(jnp.ones((1, 4)), row, jnp.zeros((1, 4)))
    np.testing.assert_allclose(output, 1 + 3 * (2 + 999 - 1), rtol=1e-6)


def test_channels_of_a_learned_variance_are_not_guided():
    """They are those of the conditional output."""
    xt = jnp.zeros((1, 2, 2, 3))
    outputs = [jnp.asarray(np.random.default_rng(i).standard_normal((1, 2, 2, 6)), jnp.float32) for i in range(2)]
    row = jax.tree.map(lambda c: jnp.full(1, c[0]), with_guidance(ddim(steps_of(linear(1000), 2)), 4.0))
    output, _ = guided(lambda xt, timestep: outputs, "eps", Corrections())(xt, row, xt)
    plain = outputs[1] + 4 * (outputs[0] - outputs[1])
    np.testing.assert_allclose(output[..., :3], plain[..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(output[..., 3:], outputs[0][..., 3:])


def test_equation_28_rescale():
    rescale = np.array([0.0, 0.5, 1.0, 1.0])
    output, (conditional, unconditional), _ = guide(Corrections(rescale=jnp.asarray(rescale)), [4.0, 4.0, 4.0, 1.0])
    plain = unconditional + 4 * (conditional - unconditional)
    ratio = conditional.std() / plain.std()
    expected = [plain, plain * (0.5 + 0.5 * ratio), plain * ratio, conditional]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_equation_29_apg():
    """By hand for x0: a bounded norm, without the parallel part, and with momentum -0.5."""
    corrections = Corrections(
        parallel=jnp.array([1.0, 0.0, 1.0, 1.0]),
        norm=jnp.array([0.1, jnp.inf, jnp.inf, jnp.inf]),
        momentum=jnp.array([0.0, 0.0, -0.5, 0.0]),
    )
    output, (cond, uncond), memory = guide(corrections, [4.0] * 4)
    d = cond - uncond
    parallel = d @ cond / (cond @ cond) * cond
    expected = [cond + 3 * d * 0.1 / np.sqrt((d**2).mean()), cond + 3 * (d - parallel), cond + 3 * d, cond + 3 * d]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    _, _, new_memory = guide(corrections, [4.0, 4.0, 1.0, 4.0], memory=memory)
    np.testing.assert_array_equal(new_memory[2], memory[2])  # an unguided row leaves the memory unchanged
    second_output, _, _ = guide(corrections, [4.0] * 4, memory=memory)
    np.testing.assert_allclose(second_output[2], cond + 3 * (d - 0.5 * d), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(second_output[3], output[3])


@pytest.mark.parametrize("prediction_type", prediction.PREDICTION_TYPES)
def test_apg_with_a_large_norm_is_equation_8_in_every_type(prediction_type):
    """APG with the whole parallel part and a bound that is never reached is plain guidance."""
    apg, _, _ = guide(Corrections(norm=jnp.full(4, 1e6)), [3.0] * 4, prediction_type)
    plain, _, _ = guide(Corrections(), [3.0] * 4, prediction_type)
    np.testing.assert_allclose(apg, plain, rtol=1e-4, atol=1e-4)


def test_guidance_in_an_interval_is_a_column_of_the_tableau():
    tableau = with_guidance(ddim(steps_of(linear(1000), 50)), 5.0, low=-2.0, high=2.0)
    logsnr = tableau.level.logsnr
    np.testing.assert_array_equal(tableau.guidance_scale == 5, (logsnr >= -2) & (logsnr <= 2))
    assert set(np.unique(tableau.guidance_scale)) == {1.0, 5.0}


def test_equation_12_is_the_mean_over_all_images():
    """Two Gaussians of different std and weight, by numerical integration of Bayes' rule over x0."""
    means, stds, weights = np.array([-0.6, 0.5]), np.array([0.1, 0.4]), np.array([0.3, 0.7])
    x0 = np.linspace(-4, 4, 20_001)[:, None]
    prior = (weights / stds * np.exp(-((x0 - means) ** 2) / 2 / stds**2)).sum(1)
    xt, alpha, sigma = np.linspace(-1, 1, 5), 0.8, 0.6
    belief = prior[:, None] * np.exp(-((xt - alpha * x0) ** 2) / 2 / sigma**2)
    expected = (belief * x0).sum(0) / belief.sum(0)
    mixture = exact.mixture(jnp.asarray(means)[:, None], jnp.asarray(stds), jnp.asarray(weights))
    x0_mean, eps = mixture(jnp.asarray(xt)[:, None], Level(jnp.full(5, alpha), jnp.full(5, sigma)))
    np.testing.assert_allclose(x0_mean[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(eps[:, 0], (xt - alpha * expected) / sigma, atol=1e-5)


def test_exact_denoiser_of_a_data_set_samples_its_points():
    """Equation (12) for points: every sample ends at one of them, and all are reached."""
    points = jnp.array([[-0.8, 0.1], [0.5, 0.6], [0.2, -0.9]])
    keys = jax.random.split(jax.random.key(0), 300)
    denoise = exact.denoiser(exact.data_set(points))
    samples, _ = sampler.sample(
        denoise, solvers.dpmpp_2m(steps_of(linear(1000), 30)), sampler.initial_noise(keys, (2,)), keys=keys
    )
    distance = np.linalg.norm(np.asarray(samples)[:, None] - np.asarray(points)[None], axis=-1)
    assert distance.min(1).max() < 1e-3
    assert (np.bincount(distance.argmin(1), minlength=3) > 50).all()


def test_ddpm_without_its_noise_collapses_to_one_place():
    """On a spiral's exact denoiser: the mean of each DDPM step, without its noise, forgets the initial noise."""
    points = spiral_points(300)
    denoise = exact.denoiser(exact.data_set(jnp.asarray(points)))
    keys = rng.image_keys(jnp.arange(300))
    rows = ddpm(steps_of(cosine(1000), 200))
    noiseless = dataclasses.replace(rows, noise_coef=np.zeros_like(rows.noise_coef))
    ends = {}
    for name, tableau in (("ddpm", rows), ("noiseless", noiseless), ("ddim", ddim(steps_of(cosine(1000), 200)))):
        ends[name] = np.asarray(sampler.sample(denoise, tableau, sampler.initial_noise(keys, (2,)), keys=keys)[0])
        assert distances(ends[name], points).max() < 0.02
    assert np.ptp(ends["noiseless"], axis=0).max() < 0.2
    for name in ("ddpm", "ddim"):
        assert distances(points, ends[name]).mean() < 0.05
    assert distances(points, ends["noiseless"]).mean() > 0.5
