"""Layers of the networks against float64 derivations."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models import layers
from jdiff.models.attention import Attention, dot_product
from jdiff.models.convolution import Conv
from reference import papers

GENERATOR = np.random.default_rng(0)


def random(*shape, scale=1.0):
    return jnp.asarray(scale * GENERATOR.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_group_norm_in_one_pass_equals_two(offset):
    """One pass loses digits if the mean is large compared with the deviation: two of seven at a ratio of 10."""
    x = random(2, 4, 6, 8) + offset
    scale, bias = random(8), random(8)
    y = layers.GroupNorm(4, 1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)
    truth = papers.group_norm(*(np.float64(a) for a in (x,)), 4, np.float64(scale), np.float64(bias), 1e-5)
    np.testing.assert_allclose(y, truth, atol=2e-5 if offset == 0 else 5e-4)


def test_modulated_group_norm_scales_and_shifts_its_output():
    x, scale, bias, extra_scale, extra_shift = random(2, 4, 6, 8), random(8), random(8), random(2, 8), random(2, 8)
    y = layers.GroupNorm(4).apply({"params": {"scale": scale, "bias": bias}}, x, (extra_scale, extra_shift))
    plain = papers.group_norm(np.float64(x), 4, np.float64(scale), np.float64(bias), 1e-5)
    truth = plain * (1 + np.float64(extra_scale)[:, None, None]) + np.float64(extra_shift)[:, None, None]
    np.testing.assert_allclose(y, truth, atol=5e-5)


def test_sinusoids_are_cosines_first():
    """cos then sin of t 10000^(-i/half), i from 0: Stable Diffusion's flip_sin_to_cos and freq_shift 0."""
    t, width = 37.5, 8
    angles = [t * 10000 ** (-i / 4) for i in range(4)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    np.testing.assert_allclose(layers.sinusoids(jnp.array([t]), width)[0], expected, atol=2e-5)


def test_activations_at_known_points():
    """Phi(1) = 0.8413447; sigmoid(1.702) = 0.8457958; tanh GELU of 1 = 0.8411920."""
    values = {name: float(activation(jnp.float32(1))) for name, activation in layers.ACTIVATIONS.items()}
    assert values == pytest.approx({"gelu": 0.8413447, "quick_gelu": 0.8457958, "gelu_tanh": 0.8411920}, abs=1e-6)


def test_depth_to_space_inverts_space_to_depth():
    x = random(2, 4, 6, 3)
    patches = layers.space_to_depth(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[0, 1, 2].reshape(2, 2, 3), x[0, 2:4, 4:6])
    np.testing.assert_array_equal(layers.depth_to_space(patches, 2), x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_float64_formula(causal, masked):
    query, key, value = (random(2, 5, 3, 4) for _ in range(3))
    mask = jnp.array([[True] * 5, [True, True, False, False, False]]) if masked else None
    output = dot_product(query, key, value, mask=mask, causal=causal)
    for b in range(2):
        for h in range(3):
            rows = (np.float64(a[b, :, h]) for a in (query, key, value))
            truth = papers.attention(*rows, None if mask is None else np.asarray(mask[b]), causal)
            np.testing.assert_allclose(output[b, :, h], truth, atol=1e-5)


def test_masked_context_does_not_change_attention():
    module = Attention(heads=2)
    x, context = random(1, 3, 8), random(1, 4, 6)
    mask = jnp.array([[True, True, False, False]])
    params = module.init(jax.random.key(0), x, context, mask)
    other = context.at[:, 2:].set(99.0)
    np.testing.assert_array_equal(module.apply(params, x, context, mask), module.apply(params, x, other, mask))


def test_dense_equals_a_plain_product():
    x, module = random(2, 3, 4), layers.Dense(5)
    params = module.init(jax.random.key(0), x)["params"]
    truth = np.float64(x) @ np.float64(params["kernel"]) + np.float64(params["bias"])
    np.testing.assert_allclose(module.apply({"params": params}, x), truth, atol=1e-6)


def test_group_norm_takes_moments_in_float32():
    """For bfloat16 images with a mean much larger than their deviation, only the output is rounded."""
    x = (3 + 0.1 * random(2, 16, 16, 8)).astype(jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    y, truth = layers.GroupNorm(4).apply(params, x), papers.group_norm(np.float64(x), 4, np.ones(8), np.zeros(8), 1e-5)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(y), truth, rtol=2**-8, atol=1e-4)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sin(Conv(5, (3, 3))(jnp.sin(Conv(5, (3, 3))(x))))


@pytest.mark.parametrize(("remat", "images"), [("products", 3), ("blocks", 1)])
def test_remat_products_saves_convolution_outputs(remat, images):
    """Image-sized residuals of a block of two convolutions: its input and both outputs, or its input only."""
    block, x = layers.remat_block(Convolutions, remat)(), jnp.ones((2, 8, 8, 5))
    params = block.init(jax.random.key(0), x)
    residuals = jax.eval_shape(lambda x: jax.vjp(block.apply, params, x)[1], x)
    assert sum(leaf.shape == x.shape for leaf in jax.tree.leaves(residuals)) == images


@pytest.mark.parametrize(
    ("sides", "kernel", "strides", "padding"),
    [
        ((8, 8), 3, 1, ((1, 1), (1, 1))),
        ((8, 9), 3, 2, ((1, 1), (1, 1))),
        ((9, 8), 3, 2, ((0, 1), (0, 1))),
        ((8, 8), 4, 4, "VALID"),
        ((9, 7), 1, 1, "SAME"),
        ((11, 10), (3, 2), (3, 2), ((2, 1), (0, 1))),
    ],
    ids=str,
)
def test_convolution_gradients_equal_those_of_flax(sides, kernel, strides, padding):
    """Gradients written for CPUs against those JAX derives: bit-identical outside a loop, to rounding inside one."""
    kernel, strides = (x if isinstance(x, tuple) else (x, x) for x in (kernel, strides))
    custom, plain = (kind(4, kernel, strides, padding) for kind in (Conv, nn.Conv))
    x = jax.random.normal(jax.random.key(0), (2, *sides, 3))
    params = custom.init(jax.random.key(1), x)

    def loss(params, x, network):
        y = network.apply(params, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    truth = gradients(params, x, plain)
    jax.tree.map(np.testing.assert_array_equal, gradients(params, x, custom), truth)
    in_loop = jax.lax.map(lambda x: gradients(params, x, custom), jnp.stack([x, x]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-5), in_loop, truth)
