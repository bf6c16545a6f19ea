"""Fused attention by platform: what each kernel supports, and the flash kernel, interpreted, against the formula."""

import re
from collections import Counter
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas import tpu as pltpu

from benchmarks import gpu_check
from jdiff import build
from jdiff.models.attention import dot_product
from jdiff.sharding import attention
from jdiff.sharding import mesh as meshes
from jdiff.training import parts, steps
from tests.sharding.test_sharding import CONTRASTIVE, DIFFUSION, Words


class Device(NamedTuple):
    """The attributes of a device by which a kernel is chosen."""

    platform: str
    compute_capability: str = ""


TPU, HOPPER = Device("tpu"), Device("gpu", "9.0")
MASK = np.arange(128)[None] < np.array([128, 3, 70, 1])[:, None]


def rows(n, heads=2, d=16, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), (4, n, heads, d), dtype)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 1}], ids=str)
@pytest.mark.parametrize(("mask", "causal"), [(MASK, False), (None, True), (None, False)], ids=str)
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
    ("task", "device", "platform", "calls"),
    [
        ("contrastive", HOPPER, "cuda", {"__cudnn$fmhaSoftmax": 24, "__cudnn$fmhaSoftmaxBackward": 24}),
        ("text_to_image", HOPPER, "cuda", {"__cudnn$fmhaSoftmax": 34, "__cudnn$fmhaSoftmaxBackward": 22}),
        ("text_to_image", TPU, "tpu", {"tpu_custom_call": 3}),
    ],
    ids=["CLIP, GPU", "U-Net, GPU", "U-Net, TPU"],
)
def test_steps_of_full_size_are_lowered_for_an_accelerator(task, device, platform, calls, monkeypatch):
    """CLIP B/16 and a U-Net of 300 M parameters with 77 tokens, lowered to the custom calls of the kernels: 12 layers
    of each tower; 11 of self-attention and 11 of the text, which is not trained. JAX's checks of the GPU pass."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda minimum: float(minimum) <= 9.0)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0"
    )
    kernel = attention.kernel
    monkeypatch.setattr(attention, "kernel", lambda _, fallback, mesh=None: kernel(device, fallback, mesh))
    full = gpu_check.config(task, full=True, batch_size=8)
    setup = build.experiment(full | {"tokenizer": {"context_length": 77}, "mesh": {"data": 1}})
    _, tokenizer = gpu_check.drawn(setup.image_size, setup.context_length)
    program = gpu_check.traced(setup, tokenizer).lower(lowering_platforms=(platform,)).as_text()
    assert Counter(re.findall(r"custom_call @([\w$]+)", program)) == calls


@pytest.mark.parametrize(
    ("n", "m", "d", "supported_by_flash"),
    [(128, 256, 64, True), (256, 128, 256, True), (128, 77, 64, False), (64, 128, 64, False), (128, 128, 160, False)],
)
def test_flash_supports(n, m, d, supported_by_flash):
    assert attention.flash_supports(rows(n, d=d), rows(m, d=d)) is supported_by_flash


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
def test_every_network_uses_the_kernel_of_its_mesh(config, monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "kernel", lambda *arguments: calls.append(arguments) or dot_product)
    setup = build.experiment(config | {"mesh": {"data": 2}})
    network = setup.unet() if config is DIFFUSION else setup.encoder(20)
    assert setup.on_mesh(network) == network
    assert calls == [(jax.devices()[0], dot_product, setup.mesh())]


@pytest.mark.parametrize("config", [CONTRASTIVE, DIFFUSION], ids=["contrastive", "text_to_image"])
def test_deterministic_reduction_uses_kernels_without_a_mesh(config, monkeypatch):
    monkeypatch.setattr(attention, "kernel", lambda device, fallback, mesh=None: mesh or fallback)
    step_arguments = []
    for name in ("contrastive_step", "diffusion_step"):
        monkeypatch.setattr(
            steps, name, lambda *arguments, **_: step_arguments.extend(arguments) or (lambda state, batch: None)
        )
    monkeypatch.setattr(parts, "replicated_step", lambda step, mesh: step)
    changes = {"mesh": {"data": 2}, "train": config["train"] | {"deterministic_reduction": 4}}
    build.experiment(config | changes).step(Words())(None, None)
    networks = [n for n in step_arguments if hasattr(n, "attend")] or [step_arguments[0].text]
    assert networks and all(network.attend is dot_product for network in networks)
