"""The time of a run is attributed whole, over restarts, and `jdiff status` and `jdiff verify` show what they should."""

import signal

import pytest

from jdiff.runs.activity import DOWN, LOST_STEPS, attribute, read_activity
from tests.faults import damage, harness
from tests.faults.harness import LONG_RUN, TRAIN

PHASES = {"start": 2.0, "compile": 5.0, "data": 1.0, "step": 9.0, "evaluate": 1.0, "save": 1.0}


def test_seconds_add_up_to_the_time_from_the_first_start_to_the_last_end():
    starts = [
        {"start_time": 100.0, "end_time": 120.0, "start_step": 0, "step": 10, "seconds": PHASES},
        {"start_time": 150.0, "end_time": 169.0, "start_step": 8, "step": 20, "seconds": PHASES},
    ]
    seconds = attribute(starts)
    assert sum(seconds.values()) == pytest.approx(69)
    assert seconds[DOWN] == 30 and seconds[LOST_STEPS] == pytest.approx(0.2 * 10)  # two of ten steps were done again
    assert seconds["step"] == pytest.approx(9 * 0.8 + 9) and seconds["start"] == pytest.approx(2 + 1 + 2)


def test_status_of_a_running_and_of_a_finished_run(folder):
    running = harness.start(*LONG_RUN, "--workdir=watched", cwd=folder)
    running.wait_for((folder / "watched" / "checkpoints" / "40" / "manifest.json").exists)
    status = harness.run("status", "watched", cwd=folder).text
    assert f"running, by process {running.process.pid}" in status and "newest checkpoint: step" in status
    assert running.send(signal.SIGTERM).status() == 75
    status = harness.run("status", "watched", cwd=folder).text
    assert "not running" in status and "of 100000, loss" in status and "training" in status
    assert "finished" in harness.run("status", "whole", cwd=folder).text
    assert read_activity(folder / "whole")[0]["step"] == 12
    assert harness.start("status", "nowhere", cwd=folder).status() == 2


def test_verify_names_what_is_damaged(folder):
    assert "whole is intact" in harness.run("verify", "whole", cwd=folder).text
    run = damage.copy(folder / "whole", folder / "verified")
    damage.damage(run / "checkpoints" / "8", "truncate", 0)
    damage.damage(run / "samples", "swap", 3)
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines[:-5])
    text = harness.run("verify", "verified", cwd=folder, status=1).text
    for name in ("checkpoint 8: ", "previews: ", "1 of 4 lines are damaged"):
        assert name in text
    assert "checkpoint 12: intact" in text
    assert harness.run(*TRAIN, "--workdir=verified", cwd=folder)
