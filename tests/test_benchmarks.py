"""The benchmarks run; their figures are not tested here."""

import json
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from scipy.stats import binom

from benchmarks import accuracy, claims, flops, gpu_check
from jdiff.models.convolution import Conv
from jdiff.sharding import attention


@pytest.mark.slow
def test_gpu_check_runs_on_whatever_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with jax.debug_nans(False):  # with it, compiled programs report no memory
        assert gpu_check.measure(quick=True, runs="") == 0
    results = json.loads((tmp_path / "quick" / "gpu_check.json").read_text())
    assert results[0]["environment"].startswith("8 x cpu, Python")
    assert all(row["value"] for row in results if row["text"].endswith("images a second"))


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
    ("value", "options", "outcome", "status"),
    [
        (0.9, {}, claims.DOES_NOT_HOLD, 1),
        (0.9, {"at_most": True}, claims.HOLDS, 0),
        (None, {}, "", 0),
        (0.9, {"interval": (0.85, 0.94)}, claims.DOES_NOT_HOLD, 1),
        (0.9, {"interval": (0.85, 0.96)}, claims.NOT_SETTLED, 0),
        (0.96, {"interval": (0.94, 0.98)}, claims.NOT_SETTLED, 0),
        (0.97, {"interval": (0.95, 0.98)}, claims.HOLDS, 0),
        (1.192, {"at_most": True, "interval": (0.93, 1.4)}, claims.NOT_SETTLED, 0),
        (1.192, {"at_most": True, "interval": (1.1, 1.4)}, claims.DOES_NOT_HOLD, 1),
    ],
)
def test_claim_has_three_outcomes_and_report_fails_where_one_does_not_hold(
    tmp_path, monkeypatch, value, options, outcome, status
):
    """A bound of 0.95: a value, or an interval within it, beyond it, or spanning it."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    claim = claims.Claim("x", value, 0.95, **options)
    assert claim.outcome == outcome
    assert claims.report("some", [claim], quick=False) == status


@pytest.mark.parametrize(("n", "rank"), [(5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (17, 4), (25, 7), (41, 13)])
def test_interval_of_a_median_has_the_ranks_of_the_sign_test(n, rank):
    """Ranks of the binomial distribution, by scipy: at most 2.5 % of it lies below the interval."""
    low, high = claims.median_interval(np.arange(n)[::-1])
    assert (low, high) == (rank, n - 1 - rank)
    assert n < 6 or binom.cdf(rank, n, 0.5) <= 0.025 < binom.cdf(rank + 1, n, 0.5)


def test_report_keeps_the_full_results_of_what_is_not_measured_again(tmp_path, monkeypatch):
    """With quick, all of them; else those of claims without a value this time."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    claims.report("some", [claims.Claim("x", 1.0), claims.Claim("y", 1.0)], quick=False)
    claims.report("some", [claims.Claim("x", 2.0)], quick=True)
    claims.report("some", [claims.Claim("x", None), claims.Claim("y", 3.0)], quick=False)
    files = {path.name: json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}
    values = {name: {row["text"]: row["value"] for row in rows} for name, rows in files.items()}
    assert values == {"some.json": {"x": 2.0}, "some-cpu.json": {"x": 1.0, "y": 3.0}}


def test_order_accuracy_is_reported_without_a_bound(tmp_path, monkeypatch):
    results = {"pairs": 7, "analogy_accuracy": 1.0, "analogy_chance": 0.1}
    monkeypatch.setattr(accuracy, "_evaluate", lambda run: {**results, "order_accuracy": 0.5})
    order_claims = [claim for claim in accuracy._encoders(tmp_path) if "order accuracy" in claim.text]
    assert [(claim.value, claim.bound) for claim in order_claims] == [(0.5, None)] * len(accuracy.ENCODERS)


def test_report_prints_each_claim_before_the_next_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)

    def interrupted_claims():
        yield claims.Claim("first", 0.25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claims.report("some", interrupted_claims(), quick=False)
    assert "first: 0.25" in capsys.readouterr().out


class Device(NamedTuple):
    """The attributes of a device that ``sharding.attention`` chooses a kernel by."""

    platform: str
    compute_capability: str = ""


@pytest.mark.slow
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
    task, _ = gpu_check.task_and_examples(full | {"tokenizer": {"context_length": 77}})
    program = gpu_check.trace_step(task).lower(lowering_platforms=(platform,)).as_text()
    assert Counter(re.findall(r"custom_call @([\w$]+)", program)) == calls
