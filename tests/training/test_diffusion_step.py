"""The U-Net's training step: caption dropout to the empty caption of sampling, and a frozen text tower."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdiff.diffusion.schedules import cosine
from jdiff.models.clip import TextTower
from jdiff.models.unet import UNet
from jdiff.training import steps
from jdiff.training.ema import EmaConfig
from jdiff.training.state import TrainState

TEXT = TextTower(20, 8, 16, 1, 2, 16, "gelu", causal=False)
UNET = UNet((8,), (True,), (1,), blocks=1, groups=4, out_channels=3, pooled=True)
EMA = EmaConfig((0.9,), (0.1,))
EMPTY = np.array([1, 2] + [0] * 6, np.int32)


def state(optimizer):
    context = jnp.zeros((1, 8, 16)), jnp.ones((1, 8), bool), jnp.zeros((1, 16))
    params = {"unet": UNET.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1), *context)["params"]}
    params = jax.tree.map(lambda p: p + 0.1, params)  # no zero initialization, so that the caption has an effect
    frozen = {"text": TEXT.init(jax.random.key(1), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool))["params"]}
    return TrainState(jnp.int32(0), params, optimizer.init(params), EMA.init(params), frozen)


def batch(word):
    tokens = np.array([[1, word, 2] + [0] * 5] * 8, np.int32)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens, "mask": tokens > 0, "index": np.arange(8, dtype=np.int32)}


def step(dropout, **changes):
    optimizer = optax.sgd(0.1)
    make = {
        "schedule": cosine(1000),
        "prediction_type": "v",
        "weighting": "simple",
        "timestep_sampling": "uniform",
        "empty": steps.Captioning(EMPTY, EMPTY > 0, dropout),
        "ema": EMA,
        "seed": 0,
    }
    return jax.jit(steps.diffusion_step(UNET, TEXT, None, optimizer, **make | changes)), state(optimizer)


def loss(dropout, word):
    run, start = step(dropout)
    return float(run(start, batch(word))[1]["loss"].compute())


def test_dropped_captions_are_the_empty_caption():
    assert loss(0.0, 5) != loss(0.0, 6)
    assert loss(1.0, 5) == loss(1.0, 6)
    bare = batch(5)
    bare["tokens"] = np.tile(EMPTY, (8, 1))
    bare["mask"] = bare["tokens"] > 0
    run, start = step(0.0)
    np.testing.assert_allclose(run(start, bare)[1]["loss"].compute(), loss(1.0, 5), rtol=1e-6)


def test_text_tower_stays_frozen_and_ema_is_updated():
    run, start = step(0.1)
    state, _ = run(start, batch(5))
    jax.tree.map(np.testing.assert_array_equal, start.frozen, state.frozen)
    assert int(state.step) == 1
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start.ema, state.ema)
    assert max(jax.tree.leaves(differences)) > 0


def test_unet_overfits_one_image():
    """Two hundred steps on one image reduce the loss to less than a quarter."""
    optimizer = optax.adam(2e-3)
    make = {"schedule": cosine(1000), "prediction_type": "x0", "weighting": "min_snr", "timestep_sampling": "uniform"}
    make |= {"seed": 0}
    empty = steps.Captioning(EMPTY, EMPTY > 0, 0.1)
    run = jax.jit(steps.diffusion_step(UNET, TEXT, None, optimizer, empty=empty, **make))
    train_state = state(optimizer).replace(ema={})
    data = batch(5)
    data["image"] = np.repeat(data["image"][:1], 8, axis=0)
    losses = []
    for _ in range(200):
        train_state, report = run(train_state, data)
        losses.append(float(report["loss"].compute()))
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])
