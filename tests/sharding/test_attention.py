"""Attention by platform: what each kernel takes, and the flash kernel beside the formula, as a CPU interprets it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jdiff import build
from jdiff.models.attention import dot_product
from jdiff.sharding import attention
from jdiff.sharding import mesh as meshes
from jdiff.training import parts, steps
from tests.sharding.test_sharding import CONTRASTIVE, DIFFUSION, Words


class Device(NamedTuple):
    """What a kernel is chosen by."""

    platform: str
    compute_capability: str = ""


TPU, HOPPER = Device("tpu"), Device("gpu", "9.0")
SEEN = np.arange(128)[None] < np.array([128, 3, 70, 1])[:, None]


def rows(n, heads=2, d=16, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), (4, n, heads, d), dtype)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 1}], ids=str)
@pytest.mark.parametrize(("mask", "causal"), [(SEEN, False), (None, True), (None, False)], ids=str)
def test_the_flash_kernel_is_attention(mesh, mask, causal):
    """Value and gradients, alone and by the devices of a mesh, each with its own rows and heads."""
    mesh = meshes.make(**mesh) if mesh else None

    def number(query, key, value, attend):
        seen = attend(query, key, value, mask=mask, causal=causal)
        return jnp.mean(seen * rows(128, seed=3))

    graded = jax.jit(jax.value_and_grad(number, argnums=(0, 1, 2)), static_argnums=3)
    given = [rows(128, seed=i) for i in range(3)]
    flash = attention.kernel(TPU, dot_product, mesh)
    with pltpu.force_tpu_interpret_mode():
        found = graded(*given, flash)
        assert "pallas_call" in str(jax.make_jaxpr(lambda *given: flash(*given, mask=mask, causal=causal))(*given))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, graded(*given, dot_product))


def test_what_a_kernel_does_not_take_is_computed_as_anywhere():
    short = [rows(9, seed=i) for i in range(3)]
    right = dot_product(*short, mask=None, causal=True)
    for device in (HOPPER, TPU):
        np.testing.assert_array_equal(attention.kernel(device, dot_product)(*short, mask=None, causal=True), right)
    for device in (jax.devices()[0], Device("gpu", "7.5"), Device("gpu", "gfx90a")):
        assert attention.kernel(device, dot_product) is dot_product


@pytest.mark.parametrize(
    ("query", "takes"),
    [
        (rows(64, d=64, dtype=jnp.bfloat16), True),
        (rows(77, d=64, dtype=jnp.bfloat16), True),
        (rows(64, d=64, dtype=jnp.float32), False),
        (rows(64, d=36, dtype=jnp.bfloat16), False),
        (rows(64, d=160, dtype=jnp.bfloat16), False),
        (rows(1, d=64, dtype=jnp.bfloat16), False),
    ],
    ids=["half", "odd", "float32", "d 36", "d 160", "alone"],
)
def test_what_cudnn_takes(query, takes):
    """Half precision and heads of up to 128 by eights, which every card since Ampere takes, for gradients as well."""
    assert attention.takes_cudnn(query) is takes


@pytest.mark.parametrize(("n", "m"), [(9, 9), (8, 9), (9, 8), (8, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_what_cudnn_is_given_to_make_lengths_even_is_not_seen(n, m, masked, monkeypatch):
    given = [rows(length, dtype=jnp.bfloat16, seed=i) for i, length in enumerate((n, m, m))]
    mask = SEEN[:, :m] if masked else None
    right = dot_product(*given, mask=mask, causal=n == m)
    theirs = jax.nn.dot_product_attention

    def even_alone(query, key, value, *, implementation, **how):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        return theirs(query, key, value, **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", even_alone)
    found = attention.kernel(HOPPER, dot_product)(*given, mask=mask, causal=n == m)
    assert found.shape == right.shape
    np.testing.assert_allclose(found.astype(np.float32), right.astype(np.float32), atol=0.02)


@pytest.mark.parametrize(
    ("n", "m", "d", "takes"),
    [(128, 256, 64, True), (256, 128, 256, True), (128, 77, 64, False), (64, 128, 64, False), (128, 128, 160, False)],
)
def test_what_the_flash_kernel_takes(n, m, d, takes):
    assert attention.takes_flash(rows(n, d=d), rows(m, d=d)) is takes


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
def test_every_network_attends_as_its_mesh_does(config, monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "kernel", lambda *given: asked.append(given) or dot_product)
    setup = build.experiment(config | {"mesh": {"data": 2}})
    network = setup.unet() if config is DIFFUSION else setup.encoder(20)
    assert setup.on_mesh(network) == network
    assert asked == [(jax.devices()[0], dot_product, setup.mesh())]


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
def test_in_a_fixed_order_no_network_is_cut_up_again(config, monkeypatch):
    monkeypatch.setattr(attention, "kernel", lambda device, otherwise, mesh=None: mesh or otherwise)
    made = {}
    for name in ("contrastive_step", "diffusion_step"):
        monkeypatch.setattr(steps, name, lambda *given, **_: made.update(networks=given) or (lambda state, batch: None))
    monkeypatch.setattr(parts, "everywhere_alike", lambda step, mesh: step)
    said = {"mesh": {"data": 2}, "train": config["train"] | {"deterministic_reduction": 4}}
    build.experiment(config | said).step(Words())(None, None)
    networks = [n for n in made["networks"] if hasattr(n, "attend")] or [made["networks"][0].text]
    assert networks and all(network.attend is dot_product for network in networks)
