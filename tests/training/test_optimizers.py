"""Every optimizer of the table: on a quadratic, beside optax, with traced hyperparameters, sharded and saved."""

from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from jdiff.sharding import mesh as meshes
from jdiff.sharding import rules
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.optimizers import OPTIMIZERS, adamw, learning_rate_schedule
from jdiff.training.state import TrainState

SHAPES = {
    "dense": {"kernel": (4, 6), "bias": (6,)},
    "conv_1": {"kernel": (3, 3, 4, 5)},
    "tokens": {"embedding": (7, 4)},
}
LEAF = {"is_leaf": lambda shape: isinstance(shape, tuple)}
RATE, DECAY, NORM = 0.1, 0.3, 1.0


def normal(seed):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: jnp.asarray(generator.normal(size=shape), jnp.float32), SHAPES, **LEAF)


def optimizer(name, **hyperparameters):
    return OPTIMIZERS[name](**{"steps": 200, "warmup_steps": 0, "learning_rate": RATE} | hyperparameters)


def one_step(transform, grads, params):
    return transform.update(grads, transform.init(params), params)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_finds_the_minimum_of_a_quadratic(name):
    """The mean squared distance to a target, 1 at the start, with a cosine to zero and no decay."""
    transform, target = optimizer(name, weight_decay=0.0), normal(0)
    params = jax.tree.map(jnp.zeros_like, target)

    def loss(params):
        return optax.tree.norm(jax.tree.map(jnp.subtract, params, target), squared=True) / optax.tree.size(target)

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = transform.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state, start = transform.init(params), loss(params)
    for _ in range(200):
        params, opt_state = step(params, opt_state)
    assert loss(params) < 0.01 * start


def direct(name):
    """The same optimizer called directly in optax, with a constant learning rate and no weight decay."""
    kernel = MuonDimensionNumbers(reduction_axis=0, output_axis=1)
    conv = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    kernels = {"dense": {"kernel": kernel, "bias": None}, "conv_1": {"kernel": conv}, "tokens": {"embedding": None}}
    return {
        "adamw": lambda: optax.adam(RATE, 0.9, 0.99),
        "adafactor": lambda: optax.adafactor(RATE, multiply_by_parameter_scale=False, momentum=0.9),
        "muon": lambda: optax.contrib.muon(
            RATE, adam_b2=0.99, muon_weight_dimension_numbers=kernels, consistent_rms=0.2
        ),
    }[name]()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_equals_optax(name):
    """Clipped by hand, updated by optax, decayed by hand: rate * decay * parameter, of matrices and kernels only."""
    params, grads = normal(1), normal(2)
    clipped = jax.tree.map(lambda grad: grad * NORM / optax.tree.norm(grads), grads)
    decays = {"kernel": True, "bias": False, "embedding": name != "muon"}
    expected = jax.tree_util.tree_map_with_path(
        lambda path, update, param: update - RATE * DECAY * param * decays[path[-1].key],
        one_step(direct(name), clipped, params),
        params,
    )
    updates = one_step(optimizer(name, weight_decay=DECAY, clip_norm=NORM), grads, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), updates, expected)


def test_muon_moves_a_convolution_as_the_matrix_of_its_patches():
    """An orthogonalized update (rows, columns) has singular values near 1, times 0.2 sqrt(max(rows, columns))."""
    update = one_step(optimizer("muon", weight_decay=0.0), normal(2), normal(1))["conv_1"]["kernel"]
    values = np.linalg.svd(np.asarray(update).reshape(36, 5), compute_uv=False) / (RATE * 0.2 * 6)
    assert values.min() > 0.5 and values.max() < 1.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_float_hyperparameter_may_be_traced(name):
    """One vmapped program of two learning rates, decays and so on makes the two updates of two programs."""
    params, grads = normal(1), normal(2)
    names = {p.name: p.default for p in signature(OPTIMIZERS[name]).parameters.values() if p.annotation == "float"}
    assert {"learning_rate", "final_lr_fraction", "weight_decay", "clip_norm"} <= set(names)
    values = {key: jnp.float32([default, 0.5 * default + 0.05]) for key, default in names.items()}

    def update(hyperparameters):
        return one_step(OPTIMIZERS[name](steps=9, warmup_steps=0, **hyperparameters), grads, params)

    vmapped_updates = jax.jit(jax.vmap(update))(values)
    for i in range(2):
        expected = update({key: float(value[i]) for key, value in values.items()})
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), vmapped_updates, expected
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_state_is_placed_and_saved(name, tmp_path):
    """Moments are sharded as their parameters are; counters and coefficients are replicated; all are restored."""
    params, transform = normal(1), optimizer(name)
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)
    params = {"denoiser": {"time1": params["dense"], "conv_1": params["conv_1"], "tokens": params["tokens"]}}
    state = TrainState(jnp.int32(3), params, transform.init(params), {}, {})
    state = jax.device_put(state, rules.placement(mesh, state))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (4, 6)]
    assert moments and all(leaf.addressable_shards[0].data.shape == (1, 3) for leaf in moments)
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(state)
        store.wait()
        jax.tree.map(np.testing.assert_array_equal, state, store.restore(3, state))


def test_learning_rate_warms_up_and_falls_to_zero():
    schedule = learning_rate_schedule(learning_rate=2.0, warmup_steps=10, steps=110)
    np.testing.assert_allclose([schedule(step) for step in (0, 5, 10, 60, 110)], [0, 1, 2, 1, 0], atol=1e-6)
    for fraction, rates in ((0.25, [1, 2, 1.25, 0.5]), (1.0, [1, 2, 2, 2])):  # or to a fraction of itself
        schedule = learning_rate_schedule(learning_rate=2.0, warmup_steps=10, steps=110, final_lr_fraction=fraction)
        np.testing.assert_allclose([schedule(step) for step in (5, 10, 60, 110)], rates, atol=1e-6)


def test_first_step_of_adamw_in_closed_form():
    """After one step Adam moves every weight by the rate; decay touches matrices only; the norm was clipped before."""
    params = {"matrix": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    grads = {"matrix": jnp.full((2, 2), 50.0), "bias": jnp.full(2, -50.0)}
    updates = one_step(adamw(steps=100, learning_rate=0.1, warmup_steps=0, weight_decay=0.5), grads, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["bias"], 3.1, rtol=1e-5)
    np.testing.assert_allclose(params["matrix"], 3.0 - 0.1 - 0.1 * 0.5 * 3.0, rtol=1e-5)
