"""Properties of the towers and of the U-Net, on small ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.models.clip import DualEncoder, TextTower, VisionTower, patch_positions
from jdiff.models.unet import UNet

GENERATOR = np.random.default_rng(0)
TOKENS = jnp.array([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0]])
MASK = TOKENS != 0
TEXT = {
    "bidirectional": TextTower(10, 6, 32, 2, 2, 16, "gelu", causal=False),
    "causal": TextTower(10, 6, 32, 2, 2, 16, "quick_gelu"),
}
UNETS = {
    "pixels": UNet((8, 16), (False, True), (1, 2), blocks=1, groups=4, out_channels=3, pooled=True),
    "patches": UNet((8, 16), (True, True), (1, 2), blocks=1, groups=4, out_channels=3, patch_size=2),
    "scale_shift_norm": UNet(
        (8, 16), (False, False), (1, 1), blocks=2, groups=4, out_channels=3, pooled=True, scale_shift_norm=True
    ),
    "one level": UNet((8,), (True,), (2,), blocks=1, groups=4, out_channels=3),
}


def perturb(params):
    """Add noise to all parameters, so that no zero-initialized layer hides an effect (NumPy compiles nothing)."""
    generator = np.random.default_rng(7)
    return jax.tree.map(
        lambda p: p + np.float32(0.1) * generator.standard_normal(p.shape, np.float32), jax.device_get(params)
    )


@pytest.mark.parametrize("name", TEXT)
def test_padding_does_not_change_a_caption(name):
    tower = TEXT[name]
    params, apply = perturb(jax.jit(tower.init)(jax.random.key(0), TOKENS, MASK)), jax.jit(tower.apply)
    hidden, embedding = apply(params, TOKENS, MASK)
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, rtol=1e-5)
    other_hidden, other = apply(params, jnp.where(MASK, TOKENS, 9), MASK)
    np.testing.assert_allclose(embedding, other, atol=1e-6)
    np.testing.assert_allclose(hidden[MASK], other_hidden[MASK], atol=1e-6)
    short_hidden, short = apply(params, TOKENS[1:, :3], MASK[1:, :3])
    np.testing.assert_allclose(embedding[1:], short, atol=1e-6)
    np.testing.assert_allclose(hidden[1:, :3], short_hidden, atol=1e-5)


def test_a_causal_tower_cannot_look_ahead():
    for name, looks_ahead in (("causal", False), ("bidirectional", True)):
        tower = TEXT[name]
        params, apply = perturb(jax.jit(tower.init)(jax.random.key(0), TOKENS, MASK)), jax.jit(tower.apply)
        other_tokens = TOKENS.at[0, 2].set(8)
        a, b = (apply(params, tokens, MASK)[0] for tokens in (TOKENS, other_tokens))
        assert (jnp.abs(a[0, 1] - b[0, 1]).max() > 1e-3) == looks_ahead


@pytest.mark.parametrize("name", TEXT)
def test_clip_skip_returns_hidden_states_of_an_earlier_layer(name):
    """The states are those of a tower with fewer layers; the embedding is that of all layers."""
    tower = TEXT[name]
    params = perturb(jax.jit(tower.init)(jax.random.key(0), TOKENS, MASK))
    hidden, embedding = tower.clone(clip_skip=1).apply(params, TOKENS, MASK)
    np.testing.assert_array_equal(hidden, tower.clone(layers=1).apply(params, TOKENS, MASK)[0])
    np.testing.assert_array_equal(embedding, tower.apply(params, TOKENS, MASK)[1])


@pytest.mark.parametrize("name", TEXT)
def test_a_text_tower_is_initialized_with_unit_tokens_and_sinusoids(name):
    params = TEXT[name].clone(vocab_size=1000).init(jax.random.key(0), TOKENS, MASK)["params"]
    np.testing.assert_allclose(params["tokens"]["embedding"].std(), 1, rtol=0.02)
    angles = np.outer(np.arange(6), 10_000.0 ** -(np.arange(16) / 16))
    np.testing.assert_allclose(params["positions"], np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-5)


def test_patch_positions_encode_row_and_column():
    """Patches of a row share one half, those of a column the other; all differ, and the class token has zeros."""
    positions = patch_positions(3, 8)
    assert positions.shape == (10, 8)
    np.testing.assert_array_equal(positions[0], 0)
    grid = positions[1:].reshape(3, 3, 8)
    np.testing.assert_array_equal(grid[:, :, :4], jnp.broadcast_to(grid[:, :1, :4], (3, 3, 4)))
    np.testing.assert_array_equal(grid[:, :, 4:], jnp.broadcast_to(grid[:1, :, 4:], (3, 3, 4)))
    assert len(np.unique(grid.reshape(9, 8), axis=0)) == 9


def test_logit_scale_is_initialized_to_one_over_point_07():
    encoder = DualEncoder(TEXT["causal"], VisionTower(16, 8, 32, 1, 2, 16))
    inputs = TOKENS, MASK, jnp.zeros((2, 16, 16, 3))
    params = jax.jit(encoder.init)(jax.random.key(0), *inputs)
    np.testing.assert_allclose(jax.jit(encoder.apply)(params, *inputs)[2], 1 / 0.07, rtol=1e-5)


def unet_inputs(n=2):
    xt = jnp.asarray(GENERATOR.standard_normal((n, 8, 8, 3)), jnp.float32)
    context = jnp.asarray(GENERATOR.standard_normal((n, 6, 12)), jnp.float32)
    pooled = jnp.asarray(GENERATOR.standard_normal((n, 16)), jnp.float32)
    mask = jnp.arange(6)[None] < jnp.array([4, 2])[:, None]
    return xt, jnp.linspace(0.0, 999.0, n), context, mask, pooled


@pytest.mark.parametrize("name", UNETS)
def test_unet_depends_on_every_input(name):
    """The output is an image, initially zero, and depends on image, timestep, caption and pooled caption."""
    unet, inputs = UNETS[name], unet_inputs()
    params, apply = jax.jit(unet.init)(jax.random.key(0), *inputs), jax.jit(unet.apply)
    np.testing.assert_array_equal(apply(params, *inputs), 0)
    params = perturb(params)
    output = apply(params, *inputs)
    assert output.shape == (2, 8, 8, 3)
    assert output.dtype == jnp.float32
    for i in (0, 1, 2, 4):
        other_inputs = [*inputs]
        other_inputs[i] = other_inputs[i] + 1.0
        differs = jnp.abs(apply(params, *other_inputs) - output).max() > 1e-4
        assert differs == (i != 4 or unet.pooled), i


@pytest.mark.parametrize("name", UNETS)
def test_padding_and_neighbours_do_not_change_an_image(name):
    unet, (xt, timestep, context, mask, pooled) = UNETS[name], unet_inputs()
    params = perturb(jax.jit(unet.init)(jax.random.key(0), xt, timestep, context, mask, pooled))
    apply = jax.jit(unet.apply)
    output = apply(params, xt, timestep, context, mask, pooled)
    padded = jnp.where(mask[..., None], context, 50.0)
    np.testing.assert_array_equal(output, apply(params, xt, timestep, padded, mask, pooled))
    single = apply(params, xt[1:], timestep[1:], context[1:, :2], mask[1:, :2], pooled[1:])
    np.testing.assert_allclose(output[1:], single, atol=2e-5)


def scalar_loss(params, network, *inputs):
    """A scalar that depends on all outputs of a network."""
    outputs = jax.tree.leaves(network.apply(params, *inputs))
    return sum(jnp.mean(x * jnp.cos(jnp.arange(x.size)).reshape(x.shape)) for x in outputs)


@pytest.mark.parametrize("name", ["text", "vision", "unet"])
def test_remat_saves_memory_and_changes_no_result(name):
    """Remat keeps parameter names, and value and gradient up to rounding. "products" saves memory, "blocks" more."""
    image = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1)
    network, inputs = {
        "text": (TEXT["bidirectional"], (TOKENS, MASK)),
        "vision": (VisionTower(8, 4, 16, 2, 2, 8), (image,)),
        "unet": (UNETS["one level"], (image, jnp.full(2, 3.0), jnp.ones((2, 6, 32)))),
    }[name]
    params = perturb(jax.jit(network.init)(jax.random.key(0), *inputs))
    value, gradient = jax.jit(jax.value_and_grad(scalar_loss), static_argnums=1)(params, network, *inputs)
    remat_value, remat_gradient = jax.jit(jax.value_and_grad(scalar_loss), static_argnums=1)(
        params, network.clone(remat="blocks"), *inputs
    )
    np.testing.assert_allclose(remat_value, value, rtol=1e-4, atol=1e-6)
    scale = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, remat_gradient)

    def residual_bytes(remat):
        """Bytes saved by the forward pass for the backward pass."""

        def pull(params):
            return jax.vjp(lambda params: scalar_loss(params, network.clone(remat=remat), *inputs), params)[1]

        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(pull, params)))

    assert residual_bytes("blocks") < residual_bytes("products") < residual_bytes("none")


@pytest.mark.parametrize("name", ["text", "vision", "unet"])
def test_mixed_precision_keeps_parameters_and_outputs_in_float32(name):
    """With dtype bfloat16 the outputs differ from float32's by a few bfloat16 roundings."""
    network, inputs = {
        "text": (TEXT["bidirectional"], (TOKENS, MASK)),
        "vision": (VisionTower(8, 4, 16, 2, 2, 8), (jax.random.uniform(jax.random.key(1), (2, 8, 8, 3)),)),
        "unet": (
            UNETS["one level"],
            (jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.full(2, 9.0), jnp.ones((2, 6, 32)), MASK),
        ),
    }[name]
    half = network.clone(dtype="bfloat16")
    params = perturb(jax.jit(half.init)(jax.random.key(0), *inputs))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output, half_output = (jax.tree.leaves(jax.jit(n.apply)(params, *inputs))[-1] for n in (network, half))
    assert half_output.dtype == jnp.float32
    assert 1e-6 < jnp.linalg.norm(half_output - output) / jnp.linalg.norm(output) < 0.03
