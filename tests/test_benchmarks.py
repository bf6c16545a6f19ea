"""The benchmarks run; their figures are not tested here."""

import json
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from benchmarks import claims, flops, gpu_check, path
from jdiff.models.convolution import Conv
from jdiff.sharding import attention


def test_gpu_check_runs_on_whatever_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with jax.debug_nans(False):  # with it, compiled programs report no memory
        assert gpu_check.measure(quick=True, runs="") == 0
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    assert results["environment"]["device"]
    assert all(row["value"] for row in results["claims"] if row["text"].endswith("images a second"))


def test_flops_counts_convolutions_products_and_what_jit_hides():
    """Against a count by hand of a 3 x 3 convolution and a product, under jit."""
    conv = Conv(5, (3, 3), (2, 2), ((1, 1), (1, 1)))
    params = jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    @jax.jit
    def convolve_and_multiply(params, x):
        y = conv.apply(params, x)
        return y.reshape(-1, 5) @ y.reshape(-1, 5).T

    shape = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert flops.products(convolve_and_multiply, params, shape) == 2 * (2 * 4 * 4 * 5) * 9 * 3 + 2 * (32 * 32) * 5


@pytest.mark.parametrize(
    ("value", "bounds", "status"),
    [
        (0.9, {}, 1),
        (0.9, {"at_most": True}, 0),
        (None, {}, 0),
        (0.9, {"at_best": 0.94}, 1),
        (0.9, {"at_best": 0.96}, 0),
    ],
)
def test_report_fails_for_a_claim_out_of_bounds(tmp_path, monkeypatch, value, bounds, status):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    assert claims.report("some", [claims.Claim("x", value, 0.95, **bounds)]) == status


def test_order_accuracy_is_reported_without_a_bound(tmp_path, monkeypatch):
    results = {"pairs": 7, "analogy_accuracy": 1.0, "analogy_chance": 0.1}
    monkeypatch.setattr(path, "_evaluate", lambda run: {**results, "order_accuracy": 0.5})
    order_claims = [claim for claim in path._encoders(tmp_path) if "order accuracy" in claim.text]
    assert [claim.value for claim in order_claims] == [0.5] * len(path.ENCODERS)
    assert not any(claim.holds is False for claim in order_claims)


def test_report_prints_each_claim_before_the_next_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)

    def interrupted_claims():
        yield claims.Claim("first", 0.25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claims.report("some", interrupted_claims())
    assert "first: 0.25" in capsys.readouterr().out


class Device(NamedTuple):
    """The attributes of a device that ``sharding.attention`` chooses a kernel by."""

    platform: str
    compute_capability: str = ""


@pytest.mark.parametrize(
    ("name", "device", "platform", "calls"),
    [
        ("contrastive", Device("gpu", "9.0"), "cuda", {"__cudnn$fmhaSoftmax": 24, "__cudnn$fmhaSoftmaxBackward": 24}),
        ("text_to_image", Device("gpu", "9.0"), "cuda", {"__cudnn$fmhaSoftmax": 34, "__cudnn$fmhaSoftmaxBackward": 22}),
        ("text_to_image", Device("tpu"), "tpu", {"tpu_custom_call": 3}),
    ],
    ids=["CLIP, GPU", "U-Net, GPU", "U-Net, TPU"],
)
def test_gpu_check_steps_of_full_size_are_lowered_for_an_accelerator(name, device, platform, calls, monkeypatch):
    """CLIP B/16 and a U-Net of 300 M parameters with 77 tokens, lowered to the device compiler's input.

    Each CLIP tower has 12 attention layers; the U-Net has 11 of self-attention and 11 of cross-attention, and the text
    encoder 12, which is frozen. JAX's questions about the GPU are answered for a Hopper.
    """
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda version: float(version) <= 9.0)
    monkeypatch.setattr(fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda version: version == "9.0")
    kernel = attention.kernel
    monkeypatch.setattr(attention, "kernel", lambda _, fallback, mesh=None: kernel(device, fallback, mesh))
    full = gpu_check.config(name, full=True, batch_size=8)
    task, _ = gpu_check.task_and_examples(full | {"tokenizer": {"context_length": 77}, "mesh": {"data": 1}})
    program = gpu_check.trace_step(task).lower(lowering_platforms=(platform,)).as_text()
    assert Counter(re.findall(r"custom_call @([\w$]+)", program)) == calls
