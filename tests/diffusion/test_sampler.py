"""Samplers that are handed a perfect denoiser must make the data, to the digits a float64 recursion predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import rng
from jdiff.data.spiral import distances, spiral
from jdiff.diffusion import exact, prediction, sampler, solvers
from jdiff.diffusion.guidance import Corrections, guided, two_captions, two_networks
from jdiff.diffusion.schedules import SPACINGS, cosine, linear, make, trailing
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS, ddim, ddpm
from jdiff.diffusion.tableau import grid, stack_tableaux, with_guidance
from jdiff.levels import Level
from reference import papers
from reference.orders import MEAN, STD
from tests.diffusion import orders

GAUSSIAN = exact.mixture(jnp.array([[MEAN]]), jnp.array([STD]), jnp.array([1.0]))
EXACT = exact.denoiser(GAUSSIAN)
GRIDS = [10, 50, 150, 1000]


def steps_of(schedule, count, spacing="trailing"):
    return grid(schedule, SPACINGS[spacing](schedule, count))


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
    samples = np.asarray(draw(make(grid(schedule, timesteps)), n))
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
    """With what is unknown of x0 in closed form, ten steps of DDPM make Gaussian data of the right width."""

    def denoising_mse(level):
        return STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)

    found = np.asarray(draw(ddpm(steps_of(linear(1000), 10), variance="analytic", denoising_mse=denoising_mse)))
    # The last step, to the clean image, is the mean alone: what it leaves out is known too.
    last = linear(1000).rates(trailing(linear(1000), 10))
    left = denoising_mse(Level(last.alpha[-1], last.sigma[-1]))
    np.testing.assert_allclose(found.var() + left, STD**2, rtol=0.03)


def test_a_learned_variance_lies_between_its_bounds():
    """Fractions 0 and 1 are "small" and "large", a half is their geometric mean, and channels are read as such."""
    chosen = steps_of(linear(1000), 10)
    keys = jax.random.split(jax.random.key(0), 64)

    def found(tableau, fraction=None):
        def denoise(xt, row):
            answer = EXACT(xt, row)
            return answer if fraction is None else answer._replace(fraction=jnp.full_like(xt, fraction))

        return sampler.sample(denoise, tableau, sampler.initial_noise(keys, (1,)), keys=keys)[0]

    learned = ddpm(chosen, variance="learned")
    np.testing.assert_allclose(found(learned, 0.0), found(ddpm(chosen)), atol=1e-6)
    np.testing.assert_allclose(found(learned, 1.0), found(ddpm(chosen, variance="large")), atol=1e-5)
    z = noises(keys, 10, (1,))
    right = papers.sample_path(
        "ddpm",
        chosen.level.alpha,
        chosen.level.sigma,
        np.asarray(sampler.initial_noise(keys, (1,))),
        papers.gaussian_answers(MEAN, STD),
        lambda i: z[i],
        variance="learned",
        fraction=0.5,
    )
    np.testing.assert_allclose(found(learned, 0.5), right, atol=1e-5)
    output = jnp.concatenate([jnp.zeros((2, 3)), jnp.full((2, 3), -1.0)], -1)
    assert prediction.split_variance(output, jnp.zeros((2, 3)))[1].max() == 0


def noises(keys, rows, shape):
    """The noise of each row, as the sampler draws it."""
    return np.stack(
        [rng.normal(jax.vmap(jax.random.fold_in, (0, None))(keys, row), shape) for row in range(1, rows + 1)]
    )


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_equations_19_to_27_each_method_as_its_paper_writes_it(name, spacing, steps):
    """Every row against the method's own loop in float64 (``reference.papers``), on the same levels and noise."""
    schedule = linear(1000)
    chosen = steps_of(schedule, steps, spacing)
    tableau = SOLVERS[name].rows(chosen)
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    found = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
    z = noises(keys, tableau.rows, (1,))
    right = papers.sample_path(
        name, chosen.level.alpha, chosen.level.sigma, xt, papers.gaussian_answers(MEAN, STD), lambda i: z[i]
    )
    # Heun's differences of two answers, times a stride of sigma / alpha of a hundred, keep four digits of float32.
    np.testing.assert_allclose(found, right, atol=1e-3 * np.abs(right).max() if name == "heun" else 2e-5)


@pytest.mark.parametrize("variance", ["small", "large", "analytic"])
def test_equation_10_with_every_variance(variance):
    """As the test before, with what is unknown of x0 in closed form."""
    chosen = steps_of(linear(1000), 5)
    unknown = papers.gaussian_denoising_mse(STD)
    tableau = ddpm(chosen, variance=variance, denoising_mse=lambda level: unknown(level.alpha, level.sigma))
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    found = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
    z = noises(keys, tableau.rows, (1,))
    level, answers = chosen.level, papers.gaussian_answers(MEAN, STD)
    right = papers.sample_path(
        "ddpm", level.alpha, level.sigma, xt, answers, lambda i: z[i], variance=variance, denoising_mse=unknown
    )
    np.testing.assert_allclose(found, right, atol=2e-5)


OPTIONS = ({}, {"continuous": True}, {"zero_terminal_snr": True})
# Of pure noise some types say nothing, so a start there is refused, as the next test holds.
BLIND = [(OPTIONS[2], name) for name in prediction.BLIND_AT_ZERO_SNR]
SEEING = [
    (options, name) for options in OPTIONS for name in prediction.PREDICTION_TYPES if (options, name) not in BLIND
]


@pytest.mark.parametrize(("options", "prediction_type"), SEEING, ids=str)
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "logsnr"])
def test_networks_of_every_type_and_schedule(name, options, prediction_type):
    """A perfect network, asked by its timestep alone, does what the exact denoiser does."""
    schedule = make(name, **options)
    denoise = prediction.denoiser(exact.network(GAUSSIAN, schedule, prediction_type), prediction_type)
    chosen = steps_of(schedule, 20)
    xt, keys = jnp.linspace(-2, 2, 5)[:, None], jax.random.split(jax.random.key(0), 5)
    found = sampler.sample(denoise, SOLVERS["dpmpp_2m"].rows(chosen), xt, keys=keys)[0]
    right = papers.sample_path(
        "dpmpp_2m", chosen.level.alpha, chosen.level.sigma, np.asarray(xt), papers.gaussian_answers(MEAN, STD), None
    )
    np.testing.assert_allclose(found, right, atol=5e-5)


@pytest.mark.parametrize(("options", "prediction_type"), BLIND, ids=str)
def test_a_start_of_which_the_network_says_nothing_is_refused(options, prediction_type):
    schedule = make("linear", **options)
    with pytest.raises(ValueError, match="pure noise"):
        Settings().tableau(schedule, prediction_type)
    Settings(spacing="leading").tableau(schedule, prediction_type)


def test_a_variance_that_nothing_tells_is_refused():
    for variance, why in (("learned", "not trained to say one"), ("analytic", "not measured")):
        with pytest.raises(ValueError, match=why):
            Settings(solver="ddpm", variance=variance).tableau(linear(1000))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"eta": 1.5}, "eta is 1.5, .* from 0 to 1"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf, but it must be finite"),
        ({"threshold_percentile": 200}, "threshold_percentile is 200"),
        ({"threshold_percentile": 99, "clip": False}, "clip is false"),
        ({"spacing": "leading", "steps": 1, "final_step_to_zero": False}, "the only timestep"),
        ({"apg_norm": -1.0}, "apg_norm is -1"),
        ({"guidance_from": 2.0, "guidance_to": -2.0}, "guidance_from is 2, but it must not be above guidance_to, -2"),
        ({"steps": 1001}, "from 1 to 1000"),
        ({"solver": "dpmp_2m"}, "known are ddpm"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(said, why):
    with pytest.raises(ValueError, match=why):
        Settings(**said).tableau(linear(1000))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_no_step_has_no_length(name, spacing):
    """A grid that ends above the clean image, as Stable Diffusion's, visits that end only as its end."""
    for offset in (0, 1):
        tableau = Settings(
            solver=name, spacing=spacing, steps=10, steps_offset=offset, final_step_to_zero=False
        ).tableau(linear(1000))
        assert tableau.timestep.min() > 0
        assert all(np.isfinite(column).all() for column in jax.tree.leaves(tableau))


def test_an_offset_is_of_leading_timesteps_alone():
    last = {name: Settings(spacing=name, steps=10, steps_offset=1).tableau(linear(1000)).timestep for name in SPACINGS}
    for name, timesteps in last.items():
        moved = timesteps - Settings(spacing=name, steps=10).tableau(linear(1000)).timestep
        np.testing.assert_array_equal(moved, 1.0 if name == "leading" else 0.0)


@pytest.mark.parametrize("name", orders.DETERMINISTIC)
def test_order_of_convergence_from_exact_starting_values(name):
    """The error of an image at the end of a stretch of the flow falls with the declared power of the stride."""
    order, found = SOLVERS[name].order, orders.of_images(name)
    assert found[-1] > order - 0.15, found
    if name not in ("unipc_2", "unipc_3"):  # whose corrections may do better
        assert found[-1] < order + 0.5, found


@pytest.mark.parametrize("name", orders.STOCHASTIC)
def test_weak_order_of_convergence(name):
    """The error of the moments at the end, known without a draw, falls with the declared power of the stride."""
    np.testing.assert_allclose(orders.of_distributions(name)[-1], SOLVERS[name].order, atol=0.15)


@pytest.mark.parametrize("name", orders.STOCHASTIC)
def test_draws_have_the_moments_of_their_rows(name):
    """What the sampler draws is what (9) says of the rows: noise of unit variance, new in every row."""
    tableau = SOLVERS[name].rows(steps_of(linear(1000), 10, "karras"))
    mean, variance = papers.moments_of_rows(tableau, MEAN, STD, papers.gaussian_answers(MEAN, STD), (0.0, 1.0))
    found = np.asarray(draw(tableau))
    np.testing.assert_allclose(found.mean(), mean, atol=4 * np.sqrt(variance / 40_000))
    np.testing.assert_allclose(found.std(), np.sqrt(variance), rtol=4 / np.sqrt(80_000))


def test_ddim_of_eta_1_is_ddpm_of_small_variance():
    chosen = steps_of(cosine(1000), 20)
    keys = jax.random.split(jax.random.key(0), 64)
    noise = sampler.initial_noise(keys, (1,))
    a, b = (sampler.sample(EXACT, tableau, noise, keys=keys)[0] for tableau in (ddim(chosen, eta=1.0), ddpm(chosen)))
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_method_starts_at_pure_noise(name):
    """At zero SNR, where the coordinates of most have no value, the first step is DDIM's, and the rest as published."""
    schedule = make("linear", zero_terminal_snr=True)
    keys = jax.random.split(jax.random.key(0), 5)
    xt = np.linspace(-2, 2, 5)[:, None]
    for spacing in SPACINGS:
        chosen = steps_of(schedule, 20, spacing)
        tableau = SOLVERS[name].rows(chosen)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tableau))
        found = sampler.sample(EXACT, tableau, jnp.asarray(xt, jnp.float32), keys=keys)[0]
        z = noises(keys, tableau.rows, (1,))
        right = papers.sample_path(
            name, chosen.level.alpha, chosen.level.sigma, xt, papers.gaussian_answers(MEAN, STD), lambda i, z=z: z[i]
        )
        np.testing.assert_allclose(found, right, atol=1e-3 * np.abs(right).max() if name == "heun" else 5e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_image_does_not_depend_on_its_batch(name):
    tableau = SOLVERS[name].rows(steps_of(linear(1000), 10))
    keys = rng.image_keys(jnp.arange(8))

    @jax.jit
    def run(keys):
        return sampler.sample(EXACT, tableau, sampler.initial_noise(keys, (1,)), keys=keys)[0]

    whole = run(keys)
    np.testing.assert_array_equal(whole[2:4], run(keys[jnp.array([5, 6, 2, 3, 0, 1, 1, 0])])[2:4])
    np.testing.assert_allclose(whole[3:4], run(keys[3:4]), atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == 8


def test_one_program_draws_every_method_beside_every_other():
    """All twelve, with steps of their own, in one batch of one program, are what each is alone in it, to the bit, and
    what a scan of its own rows makes; in turns of two denoisers, the first and the last of which are not the same."""
    schedule = linear(1000)
    tableaux = [solver.rows(steps_of(schedule, 3 + 2 * i)) for i, solver in enumerate(SOLVERS.values())]
    n, rows = len(tableaux), 64
    keys = rng.image_keys(jnp.arange(n))
    start = sampler.initial_noise(keys, (16,))
    wide = exact.denoiser(exact.mixture(jnp.full((2, 16), 0.3), jnp.array([0.2, 0.4]), jnp.array([0.5, 0.5])))
    which = (jnp.arange(rows) >= 3) & (jnp.arange(rows) < 9)

    def first(xt, row, memory):
        return wide(xt, row), memory

    def second(xt, row, memory):
        return wide(xt, row)._replace(x0=wide(xt, row).x0 / 2), memory

    @jax.jit
    def run(tableau, xt, keys):
        memory = jnp.zeros_like(xt)
        return sampler.sample_in_turns([first, second], which, tableau, xt, keys=keys, memory=memory)

    def in_a_scan(tableau, xt, keys):
        def either(xt, row, number):  # a memory that counts the rows
            answer = jax.lax.cond(which[number], second, first, xt, row, None)[0]
            return answer, number + 1

        return sampler.sample(either, tableau, xt, keys=keys, memory=jnp.array(0))[0]

    together = run(stack_tableaux(tableaux, rows), start, keys)
    for i in range(n):
        one = slice(i, i + 1)
        alone = run(stack_tableaux([tableaux[i]] * n, rows), jnp.tile(start[one], (n, 1)), keys[jnp.full(n, i)])
        np.testing.assert_array_equal(alone[i], together[i])
        own = in_a_scan(jax.tree.map(np.float32, tableaux[i]), start[one], keys[one])
        np.testing.assert_allclose(own[0], together[i], atol=1e-5)
    assert run._cache_size() == 1


def test_trajectory_shows_the_denoisers_view():
    tableau = ddim(steps_of(linear(1000), 10))
    keys = jax.random.split(jax.random.key(0), 4)
    x0, path = sampler.sample(EXACT, tableau, sampler.initial_noise(keys, (1,)), keys=keys, trajectory=True)
    assert path.shape == (10, 4, 1)
    np.testing.assert_allclose(path[0], MEAN, atol=0.05)  # from pure noise the best guess is the mean
    np.testing.assert_allclose(path[-1], x0, atol=1e-6)  # the last row ends at the clean image


def answer_of(corrections, scale, prediction_type="x0", memory=None):
    """What guidance makes of two fixed answers, of which only the first knows the prompt."""
    xt = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8)), jnp.float32)
    outputs = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8)), jnp.float32)

    def predict(xt, timestep, caption):
        return outputs[caption]

    prompt, negative = jnp.zeros(4, int), jnp.ones(4, int)
    tableau = ddim(steps_of(linear(1000), 2))
    level = Level(jnp.full(4, tableau.level.alpha[1]), jnp.full(4, tableau.level.sigma[1]))
    row = jax.tree.map(lambda c: jnp.full(4, c[1]), tableau)
    row = type(row)(**{**vars(row), "level": level, "guidance_scale": jnp.asarray(scale, jnp.float32)})
    ask = guided(two_captions(predict, prompt, negative), prediction_type, corrections)
    found, memory = ask(xt, row, jnp.zeros_like(xt) if memory is None else memory)
    return np.asarray(found), np.float64(outputs), memory


def test_equation_8_guidance():
    """Equation (8): scale 0 is the negative's answer, 1 the prompt's, and between and beyond a straight line."""
    scale = np.array([0.0, 1.0, 3.0, 8.0])
    found, (with_, without), _ = answer_of(Corrections(), scale)
    np.testing.assert_allclose(found, without + scale[:, None] * (with_ - without), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[1], np.float32(with_))


def test_two_networks_answer_the_same_question():
    """The network's answer is what is led, and the weaker one's what it is led away from."""
    row = jax.tree.map(lambda c: jnp.full(1, c[0]), with_guidance(ddim(steps_of(linear(1000), 2)), 3.0))
    both = two_networks(lambda xt, timestep: 2 * xt + timestep[:, None], lambda xt, timestep: xt)
    found, _ = guided(both, "eps", Corrections())(jnp.ones((1, 4)), row, jnp.zeros((1, 4)))
    np.testing.assert_allclose(found, 1 + 3 * (2 + 999 - 1), rtol=1e-6)


def test_channels_that_tell_a_variance_are_not_guided():
    """Of two answers with as many channels more, the rest is that of the prompt."""
    xt = jnp.zeros((1, 2, 2, 3))
    answers = [jnp.asarray(np.random.default_rng(i).standard_normal((1, 2, 2, 6)), jnp.float32) for i in range(2)]
    row = jax.tree.map(lambda c: jnp.full(1, c[0]), with_guidance(ddim(steps_of(linear(1000), 2)), 4.0))
    found, _ = guided(lambda xt, timestep: answers, "eps", Corrections())(xt, row, xt)
    plain = answers[1] + 4 * (answers[0] - answers[1])
    np.testing.assert_allclose(found[..., :3], plain[..., :3], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[..., 3:], answers[0][..., 3:])


def test_equation_28_rescale():
    rescale = np.array([0.0, 0.5, 1.0, 1.0])
    found, (with_, without), _ = answer_of(Corrections(rescale=jnp.asarray(rescale)), [4.0, 4.0, 4.0, 1.0])
    plain = without + 4 * (with_ - without)
    right = [plain, plain * (0.5 + 0.5 * with_.std() / plain.std()), plain * with_.std() / plain.std(), with_]
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


def test_equation_29_apg():
    """By hand for x0: held to a length, its part along the image left out, and half of the step before taken off."""
    corrections = Corrections(
        parallel=jnp.array([1.0, 0.0, 1.0, 1.0]),
        norm=jnp.array([0.1, jnp.inf, jnp.inf, jnp.inf]),
        momentum=jnp.array([0.0, 0.0, -0.5, 0.0]),
    )
    found, (with_, without), memory = answer_of(corrections, [4.0] * 4)
    d = with_ - without
    along = d @ with_ / (with_ @ with_) * with_
    right = [with_ + 3 * d * 0.1 / np.sqrt((d**2).mean()), with_ + 3 * (d - along), with_ + 3 * d, with_ + 3 * d]
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    _, _, kept = answer_of(corrections, [4.0, 4.0, 1.0, 4.0], memory=memory)
    np.testing.assert_array_equal(kept[2], memory[2])  # as of an image that is drawn where nobody is guided
    again, _, _ = answer_of(corrections, [4.0] * 4, memory=memory)
    np.testing.assert_allclose(again[2], with_ + 3 * (d - 0.5 * d), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again[3], found[3])


@pytest.mark.parametrize("prediction_type", prediction.PREDICTION_TYPES)
def test_guidance_that_is_not_held_back_is_equation_8_in_every_type(prediction_type):
    """APG with all of its parallel part and no bound is plain guidance, whatever the network says."""
    almost = Corrections(norm=jnp.full(4, 1e6))
    found, _, _ = answer_of(almost, [3.0] * 4, prediction_type)
    plain, _, _ = answer_of(Corrections(), [3.0] * 4, prediction_type)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-4)


def test_guidance_in_an_interval_is_a_column_of_the_tableau():
    tableau = with_guidance(ddim(steps_of(linear(1000), 50)), 5.0, low=-2.0, high=2.0)
    logsnr = tableau.level.logsnr
    np.testing.assert_array_equal(tableau.guidance_scale == 5, (logsnr >= -2) & (logsnr <= 2))
    assert set(np.unique(tableau.guidance_scale)) == {1.0, 5.0}


def test_equation_12_is_the_mean_over_all_images():
    """Two Gaussians of unlike width and weight, by a sum over x0 of what Bayes' rule gives each."""
    means, stds, weights = np.array([-0.6, 0.5]), np.array([0.1, 0.4]), np.array([0.3, 0.7])
    x0 = np.linspace(-4, 4, 20_001)[:, None]
    prior = (weights / stds * np.exp(-((x0 - means) ** 2) / 2 / stds**2)).sum(1)
    xt, alpha, sigma = np.linspace(-1, 1, 5), 0.8, 0.6
    belief = prior[:, None] * np.exp(-((xt - alpha * x0) ** 2) / 2 / sigma**2)
    right = (belief * x0).sum(0) / belief.sum(0)
    mixture = exact.mixture(jnp.asarray(means)[:, None], jnp.asarray(stds), jnp.asarray(weights))
    found, eps = mixture(jnp.asarray(xt)[:, None], Level(jnp.full(5, alpha), jnp.full(5, sigma)))
    np.testing.assert_allclose(found[:, 0], right, atol=1e-5)
    np.testing.assert_allclose(eps[:, 0], (xt - alpha * right) / sigma, atol=1e-5)


def test_an_exact_data_set_gives_its_points():
    """(12) of points: from near one, the answer is that point; a sampler ends on them."""
    points = jnp.array([[-0.8, 0.1], [0.5, 0.6], [0.2, -0.9]])
    keys = jax.random.split(jax.random.key(0), 300)
    denoise = exact.denoiser(exact.data_set(points))
    found = sampler.sample(
        denoise, solvers.dpmpp_2m(steps_of(linear(1000), 30)), sampler.initial_noise(keys, (2,)), keys=keys
    )
    distance = np.linalg.norm(np.asarray(found[0])[:, None] - np.asarray(points)[None], axis=-1)
    assert distance.min(1).max() < 1e-3
    assert (np.bincount(distance.argmin(1), minlength=3) > 50).all()


def test_the_means_without_their_noise_end_in_one_place():
    """The paradox of the mean, on a spiral's exact denoiser: each step's mean alone forgets where it came from."""
    points = spiral(300)
    denoise = exact.denoiser(exact.data_set(jnp.asarray(points)))
    keys = rng.image_keys(jnp.arange(300))
    rows = ddpm(steps_of(cosine(1000), 200))
    still = dataclasses.replace(rows, noise_coef=np.zeros_like(rows.noise_coef))
    ends = {}
    for name, tableau in (("ddpm", rows), ("still", still), ("ddim", ddim(steps_of(cosine(1000), 200)))):
        ends[name] = np.asarray(sampler.sample(denoise, tableau, sampler.initial_noise(keys, (2,)), keys=keys)[0])
        assert distances(ends[name], points).max() < 0.02
    assert np.ptp(ends["still"], axis=0).max() < 0.2
    for name in ("ddpm", "ddim"):
        assert distances(points, ends[name]).mean() < 0.05
    assert distances(points, ends["still"]).mean() > 0.5
