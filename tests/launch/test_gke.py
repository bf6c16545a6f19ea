"""JobSets: as they were once read over, clean under the schema and the rules; mistakes in them are caught."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.launch import jobset

SCRIPT = Path(__file__).parents[2] / "launch" / "gke.py"
IMAGE = "--image=registry.example/jdiff@sha256:" + "0123456789abcdef" * 4
TRAIN = ("--", "train", "--config=demo_t2i", '--workdir=gs://bucket/it\'s $(HOME) "here"')
GPUS = ("shapes", IMAGE, "--gpus=8", "--hosts=2", "--node=gpu=nvidia-h100-80gb", "--queue=research", *TRAIN)
RUNS = {
    "gpus": GPUS,
    "one_gpu": ("shapes", IMAGE, "--gpus=1", "--volume=work", "--restarts=0", *TRAIN),
    "sweep": (
        "rates",
        IMAGE,
        "--gpus=1",
        "--runs=30",
        "--at-a-time=8",
        "--",
        "sweep",
        "some one",
        "--workdir=gs://b/r",
    ),
    "tpus": (
        *("shapes", IMAGE, "--tpus=4", "--hosts=4", "--slices=2", "--node=tpu=tpu-v5-lite-podslice"),
        *("--node=topology=4x4", "--node=spot=true", "--service-account=trainer", *TRAIN),
    ),
}


def written(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_jobset_is_clean(name):
    done = written(*RUNS[name])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (Path(__file__).parent / f"{name}.json").read_text()
    found = json.loads(done.stdout)
    assert not caught(found)


def at(found, *path):
    for key in path:
        found = found[key]
    return found


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")
CONTAINER = (*POD, "containers", 0)


# What is wrong: where, which key, and what it becomes; None takes it away.
MISTAKES = {
    "a field is misspelt": (POD, "terminationGracePeriodSecond", 120),
    "a policy that there is not": (POD, "restartPolicy", "Sometimes"),
    "a policy that the job refuses": (POD, "restartPolicy", "OnFailure"),
    "fewer together than all": (JOB, "parallelism", 1),
    "hosts without an index": (JOB, "completionMode", None),
    "one host begins again alone": (JOB, "backoffLimit", 3),
    "a number in quotes": (("spec", "failurePolicy"), "maxRestarts", "5"),
    "a rule without its name": (("spec", "failurePolicy", "rules", 0), "name", None),
    "a node that is taken away counts as a crash": (JOB, "podFailurePolicy", None),
    "a shell that keeps the signal": (CONTAINER, "command", ["bash", "-c", "jdiff train"]),
    "no time to save": (POD, "terminationGracePeriodSeconds", 5),
    "a name with capitals": (("metadata",), "name", "Shapes"),
    "a coordinator of another name": (("metadata",), "name", "other"),
    "an image that may change": (CONTAINER, "image", "registry.example/jdiff:latest"),
    "root": ((*POD, "securityContext"), "runAsUser", 0),
    "rights over the host": ((*CONTAINER, "securityContext"), "privileged", True),
    "a token for Kubernetes": (POD, "automountServiceAccountToken", None),
    "a volume that is not there": ((*CONTAINER, "volumeMounts", 0), "name", "temp"),
    "devices by request alone": ((*CONTAINER, "resources"), "limits", None),
    "jobs that do not meet": (("spec", "replicatedJobs", 0), "replicas", 2),
}


def caught(found):
    """Whether the schema or a rule finds a mistake."""
    trials = found["kind"] == "Job"
    try:
        jsonschema.validate(found, jobset.TRIALS if trials else jobset.SCHEMA)
    except jsonschema.ValidationError:
        return True
    return bool(list(jobset.broken_in_trials(found) if trials else jobset.broken(found)))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake):
    where, key, value = MISTAKES[mistake]
    found = json.loads(written(*GPUS).stdout)
    right = copy.deepcopy(found)
    if value is None:
        del at(found, *where)[key]
    else:
        at(found, *where)[key] = value
    assert caught(found) and not caught(right)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("completionMode", "NonIndexed"),
        ("backoffLimitPerIndex", None),
        ("maxFailedIndexes", 3),
        ("podFailurePolicy", None),
        ("completion", 30),
    ],
)
def test_a_mistake_in_trials_is_caught(key, value):
    found = json.loads(written(*RUNS["sweep"]).stdout)
    if value is None:
        del found["spec"][key]
    else:
        found["spec"][key] = value
    assert caught(found)


def test_a_topology_has_as_many_chips_as_its_hosts():
    found = json.loads(written(*RUNS["tpus"]).stdout)
    at(found, *POD)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] = "8x8"
    assert list(jobset.broken(found)) == ["hosts and their chips are not as many as the topology has"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("Shapes", IMAGE, "--gpus=1", *TRAIN), "must be small letters"),
        (("shapes", "--image=jdiff:latest", "--gpus=1", *TRAIN), "no NAME@sha256:DIGEST"),
        (("shapes", IMAGE, *TRAIN), "--gpus --tpus is required"),
        (("shapes", IMAGE, "--gpus=8", "--slices=2", *TRAIN), "--slices are of TPUs"),
        (("shapes", IMAGE, "--gpus=8", "--hosts=0", *TRAIN), "must be 1 or more"),
        (("shapes", IMAGE, "--gpus=8", "--node=gpu", *TRAIN), "no KEY=VALUE"),
        (("shapes", IMAGE, "--gpus=8", "--hosts=2", "--", "sample", "x"), "only train takes several hosts"),
        (("shapes", IMAGE, "--gpus=8"), "arguments"),
        (("shapes", IMAGE, "--gpus=8", "--runs=3", *TRAIN), "--runs goes with sweep"),
        (("shapes", IMAGE, "--gpus=8", "--", "sweep", "x"), "--runs goes with sweep"),
    ],
)
def test_what_cannot_be_is_refused(arguments, why):
    done = written(*arguments)
    assert done.returncode == 2 and why in done.stderr.splitlines()[-1]
