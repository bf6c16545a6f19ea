"""Properties of the autoencoder and of the ResNet tower, on small ones; tests/parity compares their numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.models.autoencoder import Autoencoder
from jdiff.models.layers import standardize
from jdiff.models.resnet import ResNetTower

SMALL = Autoencoder((8, 8, 16), blocks=1, groups=4, latent_channels=3, scale=0.5)
apply = jax.jit(
    lambda network, params, images, method=None: network.apply(params, images, method=method), static_argnums=(0, 3)
)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)


def test_latents_are_a_factor_smaller_and_decode_to_images():
    params = jax.jit(SMALL.init)(jax.random.key(0), IMAGES)
    mean, deviation = apply(SMALL, params, IMAGES, "encode")
    assert SMALL.factor == 4
    assert mean.shape == deviation.shape == (2, 4, 4, 3)
    assert (deviation > 0).all()
    assert apply(SMALL, params, mean, "decode").shape == IMAGES.shape


def test_reconstructions_do_not_depend_on_the_latent_scale():
    """The encoder multiplies latents by the scale and the decoder divides by it."""
    params = jax.jit(SMALL.init)(jax.random.key(0), IMAGES)
    np.testing.assert_allclose(apply(SMALL.clone(scale=2.0), params, IMAGES), apply(SMALL, params, IMAGES), atol=1e-5)
    half, double = (apply(SMALL.clone(scale=s), params, IMAGES, "encode") for s in (0.5, 1.0))
    for a, b in zip(half, double):
        np.testing.assert_allclose(2 * a, b, rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_have_zero_gradient():
    tower = ResNetTower(32, (1, 1, 1, 1), 8, 4, 16)
    images = jnp.concatenate([IMAGES, IMAGES], axis=1).repeat(2, axis=2)
    params = jax.jit(tower.init)(jax.random.key(0), images)
    gradient = jax.jit(jax.grad(lambda p: tower.apply(p, images)[1].sum()))(params)["params"]
    assert jnp.all(gradient["norm1"]["mean"] == 0) and jnp.all(gradient["norm1"]["variance"] == 0)
    assert jnp.any(gradient["norm1"]["scale"] != 0)
    np.testing.assert_allclose(jnp.linalg.norm(apply(tower, params, images)[1], axis=-1), 1, rtol=1e-5)


def test_standardize_maps_mean_to_zero_and_deviation_to_one():
    """A pixel equal to the mean becomes 0; one standard deviation above it becomes 1."""
    mean, std = (0.5, 0.25, 0.75), (0.5, 0.1, 0.2)
    pixels = jnp.asarray([mean, np.add(mean, std)])[:, None, None]
    np.testing.assert_allclose(standardize(2 * pixels - 1, mean, std)[:, 0, 0], [[0, 0, 0], [1, 1, 1]], atol=1e-6)
    np.testing.assert_array_equal(standardize(IMAGES, (0.5,) * 3, (0.5,) * 3), IMAGES)
