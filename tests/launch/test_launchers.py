"""Launchers with fake programs: the commands that they run, when they restart, and how they stop."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
ODD = ("train", "--config=a b.py", '--note=it\'s $(touch x); "no" *', "")
# Records its arguments, and exits with the next status that `answers` has for them.
PROGRAM = """#!/usr/bin/env python3
import fcntl, json, os, signal, sys, time
folder = {folder!r}
with open(folder + "/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    with open(folder + "/commands", "a") as log:
        print(json.dumps([name, *arguments, os.environ.get("JAX_LOCAL_DEVICE_IDS")]), file=log)
    answers = json.load(open(folder + "/answers"))
    prefixes = [key for key in answers if " ".join([name, *arguments]).startswith(key)]
    queue = answers[max(prefixes, key=len)] if prefixes else []
    status, text = queue.pop(0) if queue else [0, ""]
    json.dump(answers, open(folder + "/answers", "w"))
print(text, end="", flush=True)
if any("pkill" in text for text in arguments):
    open(folder + "/stopped", "w").close()
if status == "waits":  # for a signal, or for pkill
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open(folder + "/waits", "w").close()
    while not os.path.exists(folder + "/stopped"):
        time.sleep(0.02)
    status = 75
sys.exit(status)
"""


@pytest.fixture
def machine(tmp_path):
    """Fake programs on PATH. Their answers, (exit status, output), are by the beginning of the command line."""

    class Machine:
        def answer(self, **answers):
            (tmp_path / "answers").write_text(json.dumps({k.replace("_", " "): v for k, v in answers.items()}))

        def start(self, script, *arguments, **variables):
            path = f"{tmp_path}:{os.environ['PATH']}"
            environment = os.environ | {"PATH": path, "DELAY": "0", "POLL": "0"} | variables
            command = [str(LAUNCH / script), *arguments]
            return subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

        def run(self, script, *arguments, **environment):
            process = self.start(script, *arguments, **environment)
            errors = process.communicate(timeout=60)[1]
            return process.returncode, errors

        def wait(self):
            while not (tmp_path / "waits").exists():
                time.sleep(0.02)

        @property
        def commands(self):
            return [json.loads(line) for line in (tmp_path / "commands").read_text().splitlines()]

    for name in ("jdiff", "srun", "scontrol", "gcloud"):
        (tmp_path / name).write_text(PROGRAM.format(folder=str(tmp_path)))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").write_text("{}")
    return Machine()


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".py"))
def test_shellcheck_passes(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    check = subprocess.run(["shellcheck", LAUNCH / script], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_local_restarts_after_preemption_and_crash(machine):
    machine.answer(jdiff=[(75, ""), (1, ""), (-9, "")])
    status, errors = machine.run("local.sh", *ODD)
    assert status == 0
    assert machine.commands == [["jdiff", *ODD, None]] * 4
    assert [line.split("; ")[0] for line in errors.splitlines()] == [
        f"launch/local.sh: exited with status {status}" for status in (75, 1, 247)
    ]


def test_local_stops_after_a_user_error_and_after_the_last_restart(machine):
    machine.answer(jdiff=[(2, "")])
    assert machine.run("local.sh", "train")[0] == 2
    machine.answer(jdiff=[(1, "")] * 9)
    status, errors = machine.run("local.sh", "train", RESTARTS="2")
    assert status == 1 and "RESTARTS allows more" in errors
    assert len(machine.commands) == 1 + 3


def test_local_starts_one_process_per_gpu(machine):
    machine.answer(jdiff=[(0, ""), (75, ""), (0, "")])
    assert machine.run("local.sh", *ODD, PROCESSES="3")[0] == 0
    first, second = machine.commands[:3], machine.commands[3:]
    for commands in (first, second):
        addresses = {command[-4] for command in commands}
        assert len(addresses) == 1 and addresses.pop().startswith("--coordinator=127.0.0.1:")
        flags = sorted((command[:-4], command[-3:]) for command in commands)
        assert flags == [(["jdiff", *ODD], ["--num_processes=3", f"--process_id={i}", str(i)]) for i in range(3)]


def test_local_stops_on_sigterm(machine):
    machine.answer(jdiff=[("waits", "")])
    process = machine.start("local.sh", "train")
    machine.wait()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(machine.commands) == 1


@pytest.mark.parametrize(
    ("status", "restart_count", "requeues"),
    [(0, 0, False), (75, 99, True), (134, 4, True), (134, 5, False), (2, 0, False)],
)
def test_slurm_requeues_after_preemption_and_crash(machine, status, restart_count, requeues):
    machine.answer(srun=[(status, "")])
    assert machine.run("slurm.sbatch", *ODD, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restart_count))[0] == status
    srun, *scontrol = machine.commands
    assert srun == ["srun", "--kill-on-bad-exit=1", "--label", "jdiff", *ODD, None]
    assert scontrol == ([["scontrol", "requeue", "7", None]] if requeues else [])


def test_slurm_array_task_does_one_run_of_a_sweep(machine):
    variables = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert machine.run("slurm.sbatch", "sweep", "a name", "--workdir=x", **variables)[0] == 0
    assert machine.commands[0][3:] == ["jdiff", "sweep", "a name", "--workdir=x", "--runs=3", None]


TPU = {"NAME": "shapes", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite"}
QUEUED_RESOURCES = "gcloud_compute_tpus_queued-resources"


def test_tpu_slice_is_created_used_and_deleted(machine):
    machine.answer(**{f"{QUEUED_RESOURCES}_describe": [(1, ""), (0, "PROVISIONING"), (0, "ACTIVE"), (0, "ACTIVE")]})
    assert machine.run("tpu.sh", *ODD, SETUP="pip install x", **TPU)[0] == 0
    commands = [command[3:] for command in machine.commands if "describe" not in command]
    suffix = ["--zone=us-west4-a", "--quiet", None]
    options = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert commands[0] == ["queued-resources", "create", "shapes", "--node-id=shapes", *options, *suffix]
    assert commands[1][:4] == ["tpu-vm", "ssh", "shapes", "--worker=all"] and commands[1][5:] == suffix
    assert commands[2] == ["queued-resources", "delete", "shapes", "--force", *suffix]
    assert len(commands) == 3
    arguments = commands[1][4].removeprefix("--command=pip install x && ")
    bash = subprocess.run(["bash", "-c", f"set -- {arguments}; printf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert bash.stdout.split("\0")[:-1] == ["jdiff", *ODD]


def test_tpu_slice_is_created_again_after_preemption(machine):
    states = ["", "ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE", "ACTIVE"]
    answers = {f"{QUEUED_RESOURCES}_describe": [(0, state) for state in states]}
    machine.answer(**answers, **{"gcloud_compute_tpus_tpu-vm": [(255, ""), (0, "")]})
    status, errors = machine.run("tpu.sh", "train", SPOT="no", **TPU)
    assert status == 0 and "status 255, the slice is SUSPENDED" in errors
    verbs = [command[4] for command in machine.commands if "describe" not in command]
    assert verbs == ["create", "ssh", "delete", "create", "ssh", "delete"]
    assert all("--spot" not in command for command in machine.commands)


def test_tpu_sigterm_stops_the_workers_and_keeps_the_slice(machine):
    machine.answer(
        **{f"{QUEUED_RESOURCES}_describe": [(0, "ACTIVE")] * 9, "gcloud_compute_tpus_tpu-vm": [("waits", ""), (0, "")]}
    )
    process = machine.start("tpu.sh", "train", **TPU)
    machine.wait()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 75 and "the slice is kept" in errors
    assert not any("delete" in command for command in machine.commands)
    assert "--command=pkill -TERM -x jdiff" in machine.commands[-1]


@pytest.mark.parametrize("name", ["Shapes", "1st", "a" * 41, "a;b", "a-"])
def test_tpu_rejects_an_invalid_name(machine, name):
    status, errors = machine.run("tpu.sh", "train", **TPU | {"NAME": name})
    assert status == 2 and "NAME is" in errors
