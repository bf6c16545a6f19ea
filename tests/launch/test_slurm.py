"""A run on a real SLURM cluster of two nodes: preempted, requeued, and bit-identical to an uninterrupted run."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jdiff.runs import directory
from tests.launch import slurm
from tests.running import jdiff

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
RUN = ("train", "--config=demo_clip:tiny", "--config.train.steps=300", "--config.train.log_every=10", "--devices=4")
RUN += ("--config.train.save_every=1000", "--config.train.sample_every=1000", "--config.mesh.fsdp=2")


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs a command such as sbatch on the cluster, in a directory with prepared data, and returns its output."""
    if reason := slurm.skip_reason():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=folder)
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    variables |= {"JAX_NUM_CPU_DEVICES": "2"}
    with slurm.cluster(folder / "cluster") as environment:
        variables["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

        def ask(*command: str) -> str:
            process = subprocess.run(
                command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=300
            )
            assert process.returncode == 0, process.stdout + process.stderr
            return process.stdout.strip()

        ask.folder = folder
        yield ask


def submit(ask, workdir):
    """The number of a new job."""
    return ask("sbatch", "--parsable", "--nodes=2", "--exclusive", str(SCRIPT), *RUN, f"--workdir={workdir}")


def job(ask, number):
    """The fields of a job that SLURM shows, by name."""
    return dict(re.findall(r"(\w+)=(\S+)", ask("scontrol", "show", "job", number)))


def wait_for(condition, seconds=240):
    for _ in range(seconds * 5):
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("timed out")


def test_resume_is_bit_identical_after_preemption(ask):
    expected_dir, workdir = ask.folder / "runs" / "uninterrupted", ask.folder / "runs" / "preempted"
    first_number = submit(ask, expected_dir)
    wait_for(lambda: job(ask, first_number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    assert job(ask, first_number)["JobState"] == "COMPLETED", (ask.folder / f"jdiff-{first_number}.out").read_text()

    number, output = submit(ask, workdir), lambda: (ask.folder / f"jdiff-{number}.out").read_text()
    wait_for(
        lambda: (workdir / "metrics.jsonl").exists() and len((workdir / "metrics.jsonl").read_text().splitlines()) > 3
    )
    ask("sbatch", "--wait", "--partition=high", "--nodes=2", "--exclusive", "--wrap=srun sleep 1")
    wait_for(lambda: job(ask, number)["Restarts"] == "1")
    assert len(re.findall(r"stopped at step \d+ and saved", output())) == 2
    ask("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM delays a requeued job by two minutes
    wait_for(lambda: job(ask, number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    fields = job(ask, number)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), output()

    assert (expected_dir / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    weights = [directory.restore_params(path, directory.first_device(), ema="none") for path in (expected_dir, workdir)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
