"""Updates of a bad loss or gradient are skipped, in the compiled step; training that cannot go on rolls back, once."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from jdiff.runs import directory
from jdiff.runs.roll_back import add_to_history, data_offset, roll_back
from jdiff.training import spikes
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.loop import Divergence, SkippedInARow
from jdiff.training.state import TrainState
from tests.faults import harness
from tests.faults.harness import INJECTIONS, TRAIN, parameters
from tests.trees import distance

judge = jax.jit(spikes.judge)


def health_after(losses, norms):
    health = spikes.initial_health()
    decisions = []
    for loss, norm in zip(losses, norms, strict=True):
        is_accepted, health = judge(health, jnp.float32(loss), jnp.float32(norm))
        decisions.append(bool(is_accepted))
    return decisions, health


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_a_value_that_is_not_finite_is_skipped_from_the_first_step_on(value, column):
    with jax.debug_nans(False):
        values = [[1.0, value, 1.0], [1.0, 1.0, 1.0]]
        decisions, health = health_after(*(values if column == 0 else values[::-1]))
    assert decisions == [True, False, True]
    assert (int(health.num_skipped), int(health.num_accepted), int(health.in_a_row)) == (1, 2, 0)


def test_a_spike_is_a_value_far_above_the_median_of_the_window():
    random = np.random.default_rng(0)
    losses, norms = 1 + 0.1 * random.standard_normal(100), 1 + 0.1 * random.standard_normal(100)
    decisions, health = health_after(losses, norms)
    assert all(decisions)
    for loss, norm, is_accepted in [(1.5, 1, True), (2.5, 1, False), (1, 5, True), (1, 12, False), (0.01, 0.01, True)]:
        assert bool(judge(health, jnp.float32(loss), jnp.float32(norm))[0]) == is_accepted, (loss, norm)


def test_noise_that_is_wide_by_itself_is_no_spike():
    random = np.random.default_rng(1)
    decisions, _ = health_after(random.exponential(size=2000), random.exponential(size=2000))
    assert np.mean(decisions) > 0.98


def test_a_run_whose_loss_falls_steeply_is_not_stopped():
    decisions, _ = health_after(10 * 0.97 ** np.arange(300), 10 * 0.97 ** np.arange(300))
    assert all(decisions)


def history(path, *lines):
    for line in lines:
        add_to_history(path, line)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 4, 8 and 12."""
    path = epath.Path(tmp_path)
    with Checkpoints(path / directory.CHECKPOINTS, keep=9) as store:
        for step in (4, 8, 12):
            store.save(TrainState(jnp.int32(step), {"n": {"w": jnp.ones(3)}}, {}, {}, {}))
            store.wait()
    return path


def test_rolling_back_takes_the_checkpoint_from_before_and_passes_over_the_data(run):
    assert "going back to step 8" in roll_back(run, SkippedInARow(10, 17), keep=9)
    with directory.checkpoints(run) as store:
        assert store.steps == [4, 8]
    assert [data_offset(run, step) for step in (4, 8, 12)] == [0, 9, 9]


def test_a_run_rolls_back_to_a_checkpoint_once_unless_its_learning_rate_was_changed(run):
    history(run, {"step": 8, "rolled_back_from": 17})
    error = SkippedInARow(10, 17)
    error.records = [["a", "b"], ["c"]]
    with pytest.raises(Divergence, match=r"again.*learning_rate"):
        roll_back(run, error, keep=9)
    assert json.loads((run / "divergence.json").read_text())["records"] == [["a", "b"], ["c"]]
    history(run, {"step": 8, "changes": {"optimizer.learning_rate": [1, 0.1]}})
    roll_back(run, SkippedInARow(10, 17), keep=9)
    with pytest.raises(Divergence, match="no checkpoint from before"):
        roll_back(run, SkippedInARow(2, 9), keep=9)


def test_a_run_of_a_huge_learning_rate_stops_and_goes_on_with_a_lower_one(folder):
    flags = ("--workdir=diverging", "--config.train.max_skipped=3")
    command = harness.start(*TRAIN, *flags, "--config.optimizer.learning_rate=1e30", cwd=folder)
    assert command.status() == 2
    assert "skipped" in command.text and "config.optimizer.learning_rate" in command.text.splitlines()[-1]
    records = json.loads((folder / "diverging" / "divergence.json").read_text())["records"]
    assert len(records) >= 3 and len(records[0]) == 8
    command = harness.run(*TRAIN, *flags, "--config.optimizer.learning_rate=1e-3", cwd=folder)
    assert "steps 0 to 12" in command.text and "skipped" not in command.text
    assert distance(parameters(folder / "diverging"), parameters(folder / "whole")) == 0


def test_bad_batches_are_skipped_and_a_killed_run_skips_the_same(folder):
    """Batches 6 to 8 give no finite loss: the run goes back to step 4 and past them."""
    inject = (f"{INJECTIONS}:poison_batches", 5, 7)
    flags = ("--config.train.max_skipped=3", "--config.train.log_every=1")
    for name in ("poisoned", "poisoned_and_killed"):
        command = harness.start(*TRAIN, *flags, f"--workdir={name}", cwd=folder, inject=inject)
        if name == "poisoned_and_killed":
            command.wait_for_output("going back to step 4").send(signal.SIGKILL).status()
            harness.run(*TRAIN, *flags, f"--workdir={name}", cwd=folder, inject=inject)
        else:
            assert command.status() == 0, command.text
    first, second = (folder / name for name in ("poisoned", "poisoned_and_killed"))
    assert distance(parameters(first), parameters(second)) == 0
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    assert json.loads((first / "history.jsonl").read_text()) == {"step": 4, "rolled_back_from": 8}
    steps = [json.loads(line)["step"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
