"""Fused attention by platform: what each kernel supports, and the flash kernel, interpreted, against the formula."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jdiff.models.attention import dot_product
from jdiff.sharding import attention
from jdiff.sharding import mesh as meshes
from jdiff.tasks import task as task_module
from tests.sharding.test_sharding import CONTRASTIVE, DIFFUSION, make


class Device(NamedTuple):
    """The attributes of a device by which a kernel is chosen."""

    platform: str
    compute_capability: str = ""


TPU, HOPPER = Device("tpu"), Device("gpu", "9.0")
MASK = np.arange(128)[None] < np.array([128, 3, 70, 1])[:, None]


def rows(n, heads=2, d=16, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), (4, n, heads, d), dtype)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 1}], ids=str)
@pytest.mark.parametrize(
    ("mask", "causal"), [(MASK, False), (None, True), (None, False)], ids=["masked", "causal", "plain"]
)
def test_flash_kernel_equals_plain_attention(mesh, mask, causal):
    """Value and gradients, on one device and under shard_map, where each device has its own rows and heads."""
    mesh = meshes.make_mesh(**mesh) if mesh else None

    def loss(query, key, value, attend):
        return jnp.mean(attend(query, key, value, mask=mask, causal=causal) * rows(128, seed=3))

    loss_and_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    inputs = [rows(128, seed=i) for i in range(3)]
    flash = attention.kernel(TPU, dot_product, mesh)
    with pltpu.force_tpu_interpret_mode():
        outputs = loss_and_grads(*inputs, flash)
        assert "pallas_call" in str(jax.make_jaxpr(partial(flash, mask=mask, causal=causal))(*inputs))
    expected = loss_and_grads(*inputs, dot_product)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), outputs, expected)


def test_unsupported_shapes_and_devices_use_plain_attention():
    short = [rows(9, seed=i) for i in range(3)]
    expected = dot_product(*short, mask=None, causal=True)
    for device in (HOPPER, TPU):
        np.testing.assert_array_equal(attention.kernel(device, dot_product)(*short, mask=None, causal=True), expected)
    for device in (jax.devices()[0], Device("gpu", "7.5"), Device("gpu", "gfx90a")):
        assert attention.kernel(device, dot_product) is dot_product


@pytest.mark.parametrize(
    ("query", "supported_by_cudnn"),
    [
        (rows(64, d=64, dtype=jnp.bfloat16), True),
        (rows(77, d=64, dtype=jnp.bfloat16), True),
        (rows(64, d=64, dtype=jnp.float32), False),
        (rows(64, d=36, dtype=jnp.bfloat16), False),
        (rows(64, d=160, dtype=jnp.bfloat16), False),
        (rows(1, d=64, dtype=jnp.bfloat16), False),
    ],
    ids=["half", "odd", "float32", "d 36", "d 160", "one query"],
)
def test_cudnn_supports(query, supported_by_cudnn):
    """Half precision and head dims up to 128 in multiples of 8, which every GPU since Ampere differentiates, too."""
    assert attention.cudnn_supports(query) is supported_by_cudnn


@pytest.mark.parametrize(("n", "m"), [(9, 9), (8, 9), (9, 8), (8, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_to_even_lengths_does_not_change_the_output(n, m, masked, monkeypatch):
    inputs = [rows(length, dtype=jnp.bfloat16, seed=i) for i, length in enumerate((n, m, m))]
    mask = MASK[:, :m] if masked else None
    expected = dot_product(*inputs, mask=mask, causal=n == m)
    xla_attention = jax.nn.dot_product_attention

    def require_even_lengths(query, key, value, *, implementation, **options):
        assert implementation == "cudnn" and query.shape[1] % 2 == key.shape[1] % 2 == 0
        return xla_attention(query, key, value, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", require_even_lengths)
    output = attention.kernel(HOPPER, dot_product)(*inputs, mask=mask, causal=n == m)
    assert output.shape == expected.shape
    np.testing.assert_allclose(output.astype(np.float32), expected.astype(np.float32), atol=0.02)


@pytest.mark.parametrize(
    ("n", "m", "d", "supported_by_flash"),
    [(128, 256, 64, True), (256, 128, 256, True), (128, 77, 64, False), (64, 128, 64, False), (128, 128, 160, False)],
)
def test_flash_supports(n, m, d, supported_by_flash):
    assert attention.flash_supports(rows(n, d=d), rows(m, d=d)) is supported_by_flash


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
def test_every_network_uses_the_kernel_of_its_mesh(config, monkeypatch):
    """Without a mesh, as in sampling, that of this process's first device."""
    calls = []

    def kernel(*arguments):
        calls.append(arguments)
        return dot_product

    monkeypatch.setattr(attention, "kernel", kernel)
    task, mesh = make(config), meshes.make_mesh(data=2)
    networks = task.make_networks()
    for argument in (mesh, None):
        assert task.networks(argument) == networks
    assert calls == [(jax.devices()[0], dot_product, mesh), (jax.devices()[0], dot_product, None)]


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
@pytest.mark.parametrize("count", [0, 4])
def test_deterministic_reduction_uses_kernels_without_a_mesh(config, count, monkeypatch):
    """Inside shard_map each device runs alone; without a deterministic reduction the kernels have the mesh."""
    step_objectives = []
    monkeypatch.setattr(attention, "kernel", lambda device, fallback, mesh=None: mesh or fallback)
    monkeypatch.setattr(task_module, "make_step", lambda objectives, *_: step_objectives.extend(objectives))
    changes = {"mesh": {"data": 2}, "train": config["train"] | {"deterministic_reduction": count}}
    task = make(config | changes)
    mesh = task.config.mesh.make()
    task.step(mesh)
    (objective,) = step_objectives
    if config is CONTRASTIVE:
        networks = [objective.network.text, objective.network.vision]
    else:
        networks = [objective.networks["text"], objective.networks["denoiser"]]
    assert all(network.attend is (dot_product if count else mesh) for network in networks)
