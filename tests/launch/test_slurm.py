"""A training on a real SLURM of two nodes: preempted, queued again, and the same to the bit as one left alone."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jdiff import runs
from tests.launch import slurm
from tests.running import jdiff

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
RUN = ("train", "--config=demo_clip:tiny", "--config.train.steps=300", "--config.train.log_every=10", "--devices=4")
RUN += ("--config.train.save_every=1000", "--config.train.sample_every=1000", "--config.mesh.fsdp=2")


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Asks the cluster something, by sbatch and its like, from where data is prepared."""
    if why := slurm.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=folder)
    own = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    own |= {"JAX_NUM_CPU_DEVICES": "2"}
    with slurm.cluster(folder / "cluster") as environment:
        own["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

        def ask(*command: str) -> str:
            done = subprocess.run(
                command, cwd=folder, env=environment | own, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout.strip()

        ask.folder = folder
        yield ask


def submitted(ask, workdir, *about):
    return ask("sbatch", "--parsable", "--nodes=2", "--exclusive", *about, str(SCRIPT), *RUN, f"--workdir={workdir}")


def job(ask, number):
    """What SLURM says of a job, by name."""
    return dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "job", number)))


def until(condition, seconds=240):
    for _ in range(seconds * 5):
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("waited in vain")


def test_a_job_that_is_preempted_ends_with_the_same_bits(ask):
    alone, both = ask.folder / "runs" / "alone", ask.folder / "runs" / "both"
    left_alone = submitted(ask, alone)
    until(lambda: job(ask, left_alone)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert job(ask, left_alone)["JobState"] == "COMPLETED", (ask.folder / f"jdiff-{left_alone}.out").read_text()

    number, output = submitted(ask, both), lambda: (ask.folder / f"jdiff-{number}.out").read_text()
    until(lambda: (both / "metrics.jsonl").exists() and len((both / "metrics.jsonl").read_text().splitlines()) > 3)
    ask("sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive", "--wrap=srun sleep 1")
    until(lambda: job(ask, number)["Restarts"] == "1")
    assert len(re.findall(r"stopped at step \d+, saved", output())) == 2
    ask("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM lets it wait for two minutes
    until(lambda: job(ask, number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    about = job(ask, number)
    assert (about["JobState"], about["Restarts"]) == ("COMPLETED", "1"), output()

    assert (alone / "metrics.jsonl").read_text() == (both / "metrics.jsonl").read_text()
    weights = [runs.restore_weights(workdir, runs.first_device(), average="none") for workdir in (alone, both)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
