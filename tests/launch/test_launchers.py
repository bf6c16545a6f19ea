"""Launchers on machines that are made up: what they ask of them, when they try again, and how they stop."""

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
# Notes what it is told, and ends as the next line of STATUSES says.
PROGRAM = """#!/usr/bin/env python3
import fcntl, json, os, signal, sys, time
folder = {folder!r}
with open(folder + "/lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    name, said = os.path.basename(sys.argv[0]), sys.argv[1:]
    with open(folder + "/asked", "a") as asked:
        print(json.dumps([name, *said, os.environ.get("JAX_LOCAL_DEVICE_IDS")]), file=asked)
    answers = json.load(open(folder + "/answers"))
    mine = [key for key in answers if " ".join([name, *said]).startswith(key)]
    answer = answers[max(mine, key=len)] if mine else []
    status, text = answer.pop(0) if answer else [0, ""]
    json.dump(answers, open(folder + "/answers", "w"))
print(text, end="", flush=True)
if any("pkill" in text for text in said):
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
    """Programs that a launcher asks, whose answers, (status, text), are said by how a question begins."""

    class Machine:
        def answer(self, **answers):
            (tmp_path / "answers").write_text(json.dumps({k.replace("_", " "): v for k, v in answers.items()}))

        def start(self, script, *arguments, **environment):
            own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DELAY": "0", "POLL": "0"} | environment
            command = [str(LAUNCH / script), *arguments]
            return subprocess.Popen(command, env=os.environ | own, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

        def run(self, script, *arguments, **environment):
            process = self.start(script, *arguments, **environment)
            errors = process.communicate(timeout=60)[1]
            return process.returncode, errors

        def wait(self):
            while not (tmp_path / "waits").exists():
                time.sleep(0.02)

        @property
        def asked(self):
            return [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]

    for name in ("jdiff", "srun", "scontrol", "gcloud"):
        (tmp_path / name).write_text(PROGRAM.format(folder=str(tmp_path)))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").write_text("{}")
    return Machine()


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".py"))
def test_scripts_are_clean(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_one_machine_starts_again_what_was_preempted_or_crashed(machine):
    machine.answer(jdiff=[(75, ""), (1, ""), (-9, "")])
    status, errors = machine.run("local.sh", *ODD)
    assert status == 0
    assert machine.asked == [["jdiff", *ODD, None]] * 4
    assert [line.split("; ")[0] for line in errors.splitlines()] == [
        f"launch/local.sh: ended with status {status}" for status in (75, 1, 247)
    ]


def test_one_machine_gives_up(machine):
    """On a mistake at once, on crashes after so many."""
    machine.answer(jdiff=[(2, "")])
    assert machine.run("local.sh", "train")[0] == 2
    machine.answer(jdiff=[(1, "")] * 9)
    status, errors = machine.run("local.sh", "train", RESTARTS="2")
    assert status == 1 and "RESTARTS allows more" in errors
    assert len(machine.asked) == 1 + 3


def test_one_machine_starts_a_process_for_each_gpu(machine):
    machine.answer(jdiff=[(0, ""), (75, ""), (0, "")])
    assert machine.run("local.sh", *ODD, PROCESSES="3")[0] == 0
    first, second = machine.asked[:3], machine.asked[3:]
    for asked in (first, second):
        addresses = {said[-4] for said in asked}
        assert len(addresses) == 1 and addresses.pop().startswith("--coordinator=127.0.0.1:")
        told = sorted((said[:-4], said[-3:]) for said in asked)
        assert told == [(["jdiff", *ODD], ["--num_processes=3", f"--process_id={i}", str(i)]) for i in range(3)]


def test_one_machine_stops_when_it_is_asked_to(machine):
    machine.answer(jdiff=[("waits", "")])
    process = machine.start("local.sh", "train")
    machine.wait()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(machine.asked) == 1


@pytest.mark.parametrize(
    ("status", "before", "again"), [(0, 0, False), (75, 99, True), (134, 4, True), (134, 5, False), (2, 0, False)]
)
def test_a_job_is_queued_again_where_that_helps(machine, status, before, again):
    machine.answer(srun=[(status, "")])
    assert machine.run("slurm.sbatch", *ODD, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(before))[0] == status
    ran, *more = machine.asked
    assert ran == ["srun", "--kill-on-bad-exit=1", "--label", "jdiff", *ODD, None]
    assert more == ([["scontrol", "requeue", "7", None]] if again else [])


def test_a_task_of_an_array_does_one_run(machine):
    about = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert machine.run("slurm.sbatch", "sweep", "some one", "--workdir=x", **about)[0] == 0
    assert machine.asked[0][3:] == ["jdiff", "sweep", "some one", "--workdir=x", "--runs=3", None]


TPU = {"NAME": "shapes", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite"}
QUEUED = "gcloud_compute_tpus_queued-resources"


def test_a_slice_is_asked_for_used_and_given_back(machine):
    machine.answer(**{f"{QUEUED}_describe": [(1, ""), (0, "PROVISIONING"), (0, "ACTIVE"), (0, "ACTIVE")]})
    assert machine.run("tpu.sh", *ODD, SETUP="pip install x", **TPU)[0] == 0
    done = [asked[3:] for asked in machine.asked if "describe" not in asked]
    where = ["--zone=us-west4-a", "--quiet", None]
    created = ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    assert done[0] == ["queued-resources", "create", "shapes", "--node-id=shapes", *created, *where]
    assert done[1][:4] == ["tpu-vm", "ssh", "shapes", "--worker=all"] and done[1][5:] == where
    assert done[2] == ["queued-resources", "delete", "shapes", "--force", *where]
    assert len(done) == 3
    told = done[1][4].removeprefix("--command=pip install x && ")
    said = subprocess.run(["bash", "-c", f"set -- {told}; printf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert said.stdout.split("\0")[:-1] == ["jdiff", *ODD]


def test_another_slice_is_asked_for_where_one_was_taken_away(machine):
    states = ["", "ACTIVE", "ACTIVE", "SUSPENDED", "", "ACTIVE", "ACTIVE"]
    answers = {f"{QUEUED}_describe": [(0, state) for state in states]}
    machine.answer(**answers, **{"gcloud_compute_tpus_tpu-vm": [(255, ""), (0, "")]})
    status, errors = machine.run("tpu.sh", "train", SPOT="no", **TPU)
    assert status == 0 and "ended with status 255, the slice is SUSPENDED" in errors
    verbs = [asked[4] for asked in machine.asked if "describe" not in asked]
    assert verbs == ["create", "ssh", "delete", "create", "ssh", "delete"]
    assert all("--spot" not in asked for asked in machine.asked)


def test_workers_are_stopped_and_their_slice_is_kept(machine):
    machine.answer(
        **{f"{QUEUED}_describe": [(0, "ACTIVE")] * 9, "gcloud_compute_tpus_tpu-vm": [("waits", ""), (0, "")]}
    )
    process = machine.start("tpu.sh", "train", **TPU)
    machine.wait()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 75 and "the slice is kept" in errors
    assert not any("delete" in asked for asked in machine.asked)
    assert "--command=pkill -TERM -x jdiff" in machine.asked[-1]


@pytest.mark.parametrize("name", ["Shapes", "1st", "a" * 41, "a;b", "a-"])
def test_a_name_that_resources_cannot_have_is_refused(machine, name):
    status, errors = machine.run("tpu.sh", "train", **TPU | {"NAME": name})
    assert status == 2 and "must be small letters" in errors
