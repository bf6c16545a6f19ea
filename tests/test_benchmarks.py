"""The benchmark code itself runs; its figures are nobody's concern here."""

import ast
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import claims, flops, gpu_check, mutants, path
from jdiff.models.convolution import Conv


def test_gpu_check_runs_on_whatever_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with jax.debug_nans(False):  # with it the compiler does not say what memory a program takes
        assert gpu_check.measure(quick=True, runs="") == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["surroundings"]["device"]
    assert all(row["measured"] for row in found["claims"] if row["text"].endswith("images a second"))


def test_work_is_counted_as_it_is_written():
    """A convolution of 3 x 3, a product and what jit hides, by hand."""
    conv = Conv(5, (3, 3), (2, 2), ((1, 1), (1, 1)))
    params = jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    @jax.jit
    def work(params, x):
        y = conv.apply(params, x)
        return y.reshape(-1, 5) @ y.reshape(-1, 5).T

    shape = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert flops.products(work, params, shape) == 2 * (2 * 4 * 4 * 5) * 9 * 3 + 2 * (32 * 32) * 5


@pytest.mark.parametrize(
    ("measured", "more", "status"),
    [
        (0.9, {}, 1),
        (0.9, {"at_most": True}, 0),
        (None, {}, 0),
        (0.9, {"at_best": 0.94}, 1),
        (0.9, {"at_best": 0.96}, 0),
    ],
)
def test_a_claim_that_does_not_hold_fails_the_run(tmp_path, monkeypatch, measured, more, status):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    assert claims.settle("some", [claims.Claim("x", measured, 0.95, **more)]) == status


def test_what_an_encoder_tells_apart_is_stated_without_a_bound(tmp_path, monkeypatch):
    found = {"pairs": 7, "analogy_accuracy": 1.0, "analogy_chance": 0.1}
    monkeypatch.setattr(path, "_evaluated", lambda run: {**found, "order_accuracy": 0.5})
    told = [claim for claim in path._encoders(tmp_path) if "order told" in claim.text]
    assert [claim.measured for claim in told] == [0.5] * len(path.ENCODERS)
    assert not any(claim.holds is False for claim in told)


def test_a_run_cut_short_has_said_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)

    def measured():
        yield claims.Claim("first", 0.25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claims.settle("some", measured())
    assert "first: 0.25" in capsys.readouterr().out


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_can_be_made(mutant):
    """Its right formula is in the sources, just once, and what it becomes is Python."""
    ast.parse(mutants.mutated(mutant))
