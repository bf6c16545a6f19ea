"""A run of two hosts with two devices each, as its user starts it, and what they say when something is wrong."""

import json
import os
import signal
import time

import numpy as np
import pytest

from jdiff.runtime import distributed
from jdiff.runtime.distributed import CannotJoin, Cluster
from tests.running import jdiff, start, start_distributed, wait

RUN = ("train", "--config=demo_clip:tiny", "--config.train.steps=1000", "--config.train.log_every=2")
RUN += ("--config.train.save_every=1000", "--config.train.sample_every=1000")


def reports(workdir):
    """The losses so far, by step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def stopped(processes, workdir, after):
    """Let a run report so often, then stop one of its processes. Returns the step that all have stopped at."""
    while len(reports(workdir)) < after:
        assert all(process.poll() is None for process in processes), wait(processes)
        time.sleep(0.05)
    os.kill(processes[-1].pid, signal.SIGTERM)
    statuses, errors = wait(processes)
    assert statuses == [75] * len(processes), errors
    (step,) = {text.split("stopped at step ")[1].split(",")[0] for text in errors}
    assert step in [path.name for path in (workdir / "checkpoints").iterdir()]
    return int(step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where data is prepared."""
    path = tmp_path_factory.mktemp("hosts")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=path)
    return path


def test_two_hosts_stop_together_and_one_goes_on(folder, monkeypatch):
    """One's SIGTERM stops two hosts of two devices each; one host of four goes on; all lose what one device does."""
    alone, both = folder / "runs" / "alone", folder / "runs" / "both"
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    spread = (*RUN, "--workdir=runs/both", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--devices=4")
    first = stopped(start_distributed(*spread, "--config.mesh.slices=2", cwd=folder), both, after=2)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    last = stopped([start(*spread, cwd=folder)], both, after=first // 2 + 3)
    assert last > first
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    stopped([start(*RUN, "--workdir=runs/alone", cwd=folder)], alone, after=last // 2)
    mine, theirs = reports(both), reports(alone)
    steps = sorted(set(mine) & set(theirs))
    assert steps[: last // 2] == list(range(2, last + 1, 2))
    np.testing.assert_allclose([mine[i] for i in steps], [theirs[i] for i in steps], rtol=1e-4)


def test_hosts_that_were_told_otherwise_do_not_begin(folder, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    each = ((), ("--config.train.seed=1",))
    statuses, errors = wait(start_distributed(*RUN, "--workdir=runs/unlike", cwd=folder, process_arguments=each))
    assert statuses == [2, 2]
    assert all("process 1 has another config than process 0" in text for text in errors), errors
    assert not (folder / "runs" / "unlike").exists()


def test_a_host_that_waits_in_vain_says_so(folder):
    alone = ("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1", "--wait=1")
    (status,), (errors,) = wait([start(*RUN, "--workdir=runs/vain", *alone, cwd=folder)])
    assert status == 1
    who = "process 1 of 2, coordinator 127.0.0.1:1"
    assert errors.splitlines() == [
        f"{who}: waiting up to 1 s for all of them",
        f"jdiff: {who}: not all of them came in 1 s; start each, or say more by --wait",
    ]


@pytest.mark.parametrize(("tasks", "shown"), [("1(x2)", None), ("4(x2)", [1])])
def test_what_slurm_says_is_understood(monkeypatch, tasks, shown):
    """Also that JAX still tells what it would join; a node's only task has all devices of its node."""
    said = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "1", "LOCALID": "1"}
    for name, value in {**said, "STEP_TASKS_PER_NODE": tasks}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for kind in ("auto", "slurm"):
        assert distributed._found(Cluster(kind)) == ("n1:61447", 2, 1, shown)
    assert distributed._found(Cluster("none")) == (None, None, None, None)


@pytest.mark.parametrize(("tasks", "shown"), [("1", None), ("4", [1])])
def test_what_open_mpi_says_is_understood(monkeypatch, tasks, shown):
    said = {"COMM_WORLD_SIZE": "2", "COMM_WORLD_RANK": "1", "COMM_WORLD_LOCAL_RANK": "1"}
    said |= {"MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "COMM_WORLD_LOCAL_SIZE": tasks}
    for name, value in said.items():
        monkeypatch.setenv(f"OMPI_{name}", value)
    assert distributed._found(Cluster("ompi")) == ("10.96.0.1:62624", 2, 1, shown)


def test_a_process_that_is_alone_joins_nothing(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    distributed.join(Cluster(devices=8))
    with pytest.raises(CannotJoin, match="8 devices were found in 1 processes, but --devices is 9"):
        distributed.join(Cluster(devices=9))
    with pytest.raises(CannotJoin, match="--process_id is 2; it must be from 0 to 1"):
        distributed.join(Cluster(coordinator="n1:1", processes=2, process=2))
    with pytest.raises(CannotJoin, match="say one"):
        distributed.join(Cluster("slurm", coordinator="n1:1", processes=2, process=1))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "n1:1")
    with pytest.raises(CannotJoin, match="nothing tells how many processes there are"):
        distributed.join(Cluster())
    distributed.join(Cluster("none"))
