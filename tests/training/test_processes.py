"""Multi-process runs, started as a user does: stop and resume on two hosts, and errors of the cluster flags."""

import json
import os
import signal
import time

import numpy as np
import pytest

from jdiff.runtime import distributed
from jdiff.runtime.distributed import Cluster, ClusterError
from tests.running import jdiff, start, start_distributed, wait

RUN = ("train", "--config=demo_clip:tiny", "--config.train.steps=1000", "--config.train.log_every=2")
RUN += ("--config.train.save_every=1000", "--config.train.sample_every=1000")


def logged_losses(workdir):
    """The losses written so far, by step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def stop_after(num_logs, processes, workdir):
    """Send SIGTERM to one process of a run after so many log steps. Returns the step at which all processes stop."""
    while len(logged_losses(workdir)) < num_logs:
        assert all(process.poll() is None for process in processes), wait(processes)
        time.sleep(0.05)
    os.kill(processes[-1].pid, signal.SIGTERM)
    statuses, errors = wait(processes)
    assert statuses == [75] * len(processes), errors
    (step,) = {text.split("stopped at step ")[1].split()[0] for text in errors}
    assert step in [path.name for path in (workdir / "checkpoints").iterdir()]
    return int(step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with prepared data."""
    path = tmp_path_factory.mktemp("hosts")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=path)
    return path


def test_two_hosts_stop_together_and_one_host_resumes(folder, monkeypatch):
    """One SIGTERM stops two hosts of two devices; one host of four devices resumes; losses are those of one device."""
    one_device, two_hosts = folder / "runs" / "one_device", folder / "runs" / "two_hosts"
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    command = (*RUN, "--workdir=runs/two_hosts", "--config.mesh.data=2", "--config.mesh.fsdp=2", "--devices=4")
    first = stop_after(2, start_distributed(*command, "--config.mesh.slices=2", cwd=folder), two_hosts)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    last = stop_after(first // 2 + 3, [start(*command, cwd=folder)], two_hosts)
    assert last > first
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    stop_after(last // 2, [start(*RUN, "--workdir=runs/one_device", cwd=folder)], one_device)
    losses, expected = logged_losses(two_hosts), logged_losses(one_device)
    steps = sorted(set(losses) & set(expected))
    assert steps[: last // 2] == list(range(2, last + 1, 2))
    np.testing.assert_allclose([losses[i] for i in steps], [expected[i] for i in steps], rtol=1e-4)


def test_hosts_with_different_configs_do_not_start(folder, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    flags_of_host = ((), ("--config.train.seed=1",))
    statuses, errors = wait(
        start_distributed(*RUN, "--workdir=runs/unlike", cwd=folder, process_arguments=flags_of_host)
    )
    assert statuses == [2, 2]
    assert all("process 1 has another config than process 0" in text for text in errors), errors
    assert not (folder / "runs" / "unlike").exists()


def test_host_exits_when_the_others_do_not_connect(folder):
    cluster = ("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1", "--wait=1")
    (status,), (errors,) = wait([start(*RUN, "--workdir=runs/vain", *cluster, cwd=folder)])
    assert status == 1
    lines = errors.splitlines()
    assert len(lines) == 2 and all("process 1 of 2, coordinator 127.0.0.1:1" in line for line in lines)
    assert "1 s" in lines[0] and "--wait" in lines[1]


@pytest.mark.parametrize(("tasks", "local_devices"), [("1(x2)", None), ("4(x2)", [1])])
def test_slurm_environment_is_resolved(monkeypatch, tasks, local_devices):
    """JAX still has the private function that detects a cluster; a node's only task has all devices of its node."""
    variables = {"JOB_ID": "7", "STEP_NODELIST": "n[1-2]", "NTASKS": "2", "PROCID": "1", "LOCALID": "1"}
    for name, value in {**variables, "STEP_TASKS_PER_NODE": tasks}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for kind in ("auto", "slurm"):
        assert distributed._resolve(Cluster(kind)) == ("n1:61447", 2, 1, local_devices)
    assert distributed._resolve(Cluster("none")) == (None, None, None, None)


@pytest.mark.parametrize(("tasks", "local_devices"), [("1", None), ("4", [1])])
def test_open_mpi_environment_is_resolved(monkeypatch, tasks, local_devices):
    variables = {"COMM_WORLD_SIZE": "2", "COMM_WORLD_RANK": "1", "COMM_WORLD_LOCAL_RANK": "1"}
    variables |= {"MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "COMM_WORLD_LOCAL_SIZE": tasks}
    for name, value in variables.items():
        monkeypatch.setenv(f"OMPI_{name}", value)
    assert distributed._resolve(Cluster("ompi")) == ("10.96.0.1:62624", 2, 1, local_devices)


def test_single_process_initializes_nothing_and_wrong_flags_are_rejected(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    distributed.initialize(Cluster(num_devices=8))
    with pytest.raises(ClusterError, match="8 devices .* --devices is 9"):
        distributed.initialize(Cluster(num_devices=9))
    with pytest.raises(ClusterError, match="--process_id is 2"):
        distributed.initialize(Cluster(coordinator="n1:1", num_processes=2, process_id=2))
    with pytest.raises(ClusterError, match="--coordinator and --cluster=slurm"):
        distributed.initialize(Cluster("slurm", coordinator="n1:1", num_processes=2, process_id=1))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "n1:1")
    with pytest.raises(ClusterError, match="JAX_COORDINATOR_ADDRESS is n1:1"):
        distributed.initialize(Cluster())
    distributed.initialize(Cluster("none"))
