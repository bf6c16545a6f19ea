"""Manifests for Kubernetes: equal to reviewed goldens, valid by schema and rules, which catch mistakes in them."""

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
        "a name",
        "--workdir=gs://b/r",
    ),
    "tpus": (
        *("shapes", IMAGE, "--tpus=4", "--hosts=4", "--slices=2", "--node=tpu=tpu-v5-lite-podslice"),
        *("--node=topology=4x4", "--node=spot=true", "--service-account=trainer", *TRAIN),
    ),
}


def gke(*arguments):
    """Run launch/gke.py."""
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", RUNS)
def test_manifest_equals_its_golden_and_is_valid(name):
    process = gke(*RUNS[name])
    assert process.returncode == 0, process.stderr
    assert process.stdout == (Path(__file__).parent / f"{name}.json").read_text()
    assert is_valid(json.loads(process.stdout))


def descend(tree, *path):
    for key in path:
        tree = tree[key]
    return tree


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")
CONTAINER = (*POD, "containers", 0)


# For each mistake: the path to an object, the key in it, and the wrong value; None deletes the key.
MISTAKES = {
    "a field is misspelt": (POD, "terminationGracePeriodSecond", 120),
    "an unknown restart policy": (POD, "restartPolicy", "Sometimes"),
    "a restart policy that podFailurePolicy excludes": (POD, "restartPolicy", "OnFailure"),
    "fewer pods at the same time than hosts": (JOB, "parallelism", 1),
    "hosts without an index": (JOB, "completionMode", None),
    "one host restarts alone": (JOB, "backoffLimit", 3),
    "a number in quotes": (("spec", "failurePolicy"), "maxRestarts", "5"),
    "a rule without its name": (("spec", "failurePolicy", "rules", 0), "name", None),
    "a disruption counts as a crash": (JOB, "podFailurePolicy", None),
    "a shell that does not pass on signals": (CONTAINER, "command", ["bash", "-c", "jdiff train"]),
    "no time to save": (POD, "terminationGracePeriodSeconds", 5),
    "a name with capitals": (("metadata",), "name", "Shapes"),
    "a coordinator with another name": (("metadata",), "name", "other"),
    "an image that may change": (CONTAINER, "image", "registry.example/jdiff:latest"),
    "root": ((*POD, "securityContext"), "runAsUser", 0),
    "privileges on the host": ((*CONTAINER, "securityContext"), "privileged", True),
    "a token for Kubernetes": (POD, "automountServiceAccountToken", None),
    "an unknown volume": ((*CONTAINER, "volumeMounts", 0), "name", "temp"),
    "devices without limits": ((*CONTAINER, "resources"), "limits", None),
    "two jobs without a common coordinator": (("spec", "replicatedJobs", 0), "replicas", 2),
}


def is_valid(manifest):
    """Whether a manifest satisfies the schema and the rules."""
    is_sweep = manifest["kind"] == "Job"
    try:
        jsonschema.validate(manifest, jobset.SWEEP_SCHEMA if is_sweep else jobset.SCHEMA)
    except jsonschema.ValidationError:
        return False
    return not list(jobset.sweep_violations(manifest) if is_sweep else jobset.violations(manifest))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_a_jobset_is_caught(mistake):
    path, key, value = MISTAKES[mistake]
    manifest = json.loads(gke(*GPUS).stdout)
    assert is_valid(manifest)
    if value is None:
        del descend(manifest, *path)[key]
    else:
        descend(manifest, *path)[key] = value
    assert not is_valid(manifest)


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
def test_mistake_in_a_sweep_job_is_caught(key, value):
    manifest = json.loads(gke(*RUNS["sweep"]).stdout)
    if value is None:
        del manifest["spec"][key]
    else:
        manifest["spec"][key] = value
    assert not is_valid(manifest)


def test_topology_must_have_the_chips_of_all_hosts():
    manifest = json.loads(gke(*RUNS["tpus"]).stdout)
    descend(manifest, *POD)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] = "8x8"
    assert list(jobset.violations(manifest)) == ["hosts times chips per host differs from the topology"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Shapes", IMAGE, "--gpus=1", *TRAIN), "the name is Shapes"),
        (("shapes", "--image=jdiff:latest", "--gpus=1", *TRAIN), "--image is jdiff:latest"),
        (("shapes", IMAGE, *TRAIN), "--gpus --tpus is required"),
        (("shapes", IMAGE, "--gpus=8", "--slices=2", *TRAIN), "--slices"),
        (("shapes", IMAGE, "--gpus=8", "--hosts=0", *TRAIN), "must be 1 or more"),
        (("shapes", IMAGE, "--gpus=8", "--node=gpu", *TRAIN), "KEY=VALUE"),
        (("shapes", IMAGE, "--gpus=8", "--hosts=2", "--", "sample", "x"), "not sample"),
        (("shapes", IMAGE, "--gpus=8"), "arguments"),
        (("shapes", IMAGE, "--gpus=8", "--runs=3", *TRAIN), "--runs"),
        (("shapes", IMAGE, "--gpus=8", "--", "sweep", "x"), "--runs"),
    ],
)
def test_invalid_options_are_rejected(arguments, message):
    process = gke(*arguments)
    assert process.returncode == 2 and message in process.stderr.splitlines()[-1]
