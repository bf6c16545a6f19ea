#!/usr/bin/env python3
"""Write the JobSet that runs jdiff on GPUs or TPUs of Kubernetes, or the Job that does the runs of a sweep.

    launch/gke.py shapes --image=REGISTRY/jdiff@sha256:... --gpus=8 --hosts=2 --node=gpu=nvidia-h100-80gb -- \\
        train --config=demo_t2i --workdir=gs://bucket/shapes | kubectl apply -f -
    launch/gke.py rates --image=... --gpus=1 --runs=30 -- sweep NAME --workdir=gs://bucket/rates | kubectl apply -f -

Every host runs the same command, without a shell between, which would keep signals to itself. What Kubernetes takes
away (a spot node, a drained one) is begun again without end; a crash --restarts times.
"""

from __future__ import annotations

import argparse
import json
import re
import sys

PORT = 12345
LABELS = {
    "gpu": "cloud.google.com/gke-accelerator",
    "tpu": "cloud.google.com/gke-tpu-accelerator",
    "topology": "cloud.google.com/gke-tpu-topology",
    "spot": "cloud.google.com/gke-spot",
}


INDEX = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
TAKEN_AWAY = [{"type": "DisruptionTarget", "status": "True"}]  # a pod whose node is drained, or was a spot one


def run(said: argparse.Namespace) -> dict:
    """The JobSet of one run on all hosts, which begin again together."""
    more, environment = [], []
    # A TPU's hosts are told of each other by GKE. Those of GPUs are told here: asking Kubernetes takes rights to ask.
    if said.gpus and said.hosts > 1:
        more = [f"--coordinator={said.name}-hosts-0-0.{said.name}:{PORT}", f"--num_processes={said.hosts}"]
        more += ["--process_id=$(INDEX)"]
        environment = [{"name": "INDEX", "valueFrom": INDEX}]
    elif said.gpus and said.arguments[0] == "train":
        more = ["--cluster=none"]
    job = {
        "completionMode": "Indexed",
        "completions": said.hosts,
        "parallelism": said.hosts,
        "backoffLimit": 0,  # one host alone cannot go on
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": TAKEN_AWAY}]},
        "template": {"spec": _pod(said, more, environment)},
    }
    again = {"name": "taken-away", "action": "RestartJobSetAndIgnoreMaxRestarts"}
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": said.restarts,
            "rules": [again | {"onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [{"name": "hosts", "replicas": said.slices, "template": {"spec": job}}],
    }
    metadata = _metadata(said)
    if said.tpus:
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def trials(said: argparse.Namespace) -> dict:
    """The indexed Job of a sweep, whose pods each do one of its runs and know nothing of each other."""
    spec = {
        "completionMode": "Indexed",
        "completions": said.runs,
        "parallelism": min(said.at_a_time or said.runs, said.runs),
        "backoffLimitPerIndex": said.restarts,
        "maxFailedIndexes": said.runs,  # the others go on
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": TAKEN_AWAY},
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [2]}},
            ]
        },
        "template": {"spec": _pod(said, ["--runs=$(INDEX)"], [{"name": "INDEX", "valueFrom": INDEX}])},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(said), "spec": spec}


def _metadata(said: argparse.Namespace) -> dict:
    labels = {"labels": {"kueue.x-k8s.io/queue-name": said.queue}} if said.queue else {}
    return {"name": said.name, **labels}


def _pod(said: argparse.Namespace, more: list[str], environment: list[dict]) -> dict:
    """A pod that needs no root and no rights. more: what jdiff is told besides."""
    kind = "google.com/tpu" if said.tpus else "nvidia.com/gpu"
    devices = {kind: said.tpus or said.gpus}
    container = {
        "name": "jdiff",
        "image": said.image,
        "command": ["jdiff"],
        # Kubernetes puts variables in place of $(NAME); what the user wrote stays as it is.
        "args": [text.replace("$(", "$$(") for text in said.arguments] + more,
        "env": [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "/tmp/compiled"}, *environment],
        "resources": {"limits": dict(devices), "requests": dict(devices)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,  # to save in
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {LABELS.get(key, key): value for key, value in said.node},
        "tolerations": [{"key": kind, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "containers": [container],
    }
    if said.service_account:
        pod["serviceAccountName"] = said.service_account
    if said.volume:
        pod["volumes"].append({"name": "work", "persistentVolumeClaim": {"claimName": said.volume}})
        container["volumeMounts"].append({"name": "work", "mountPath": "/work"})
        container["workingDir"] = "/work"
    return pod


def _selector(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text} is no KEY=VALUE; KEY is {', '.join(LABELS)}, or a node's label")
    return key, value


def read(arguments: list[str]) -> argparse.Namespace:
    """The command line, checked. Ends the program with a sentence where it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the run, and so of its resources")
    parser.add_argument("arguments", nargs="+", help="after --: what jdiff is told")
    parser.add_argument("--image", required=True, help="container with jdiff, by its digest")
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--gpus", type=int, default=0, help="of each host")
    devices.add_argument("--tpus", type=int, default=0, help="chips of each host")
    parser.add_argument("--hosts", type=int, default=1, help="of each slice (1)")
    parser.add_argument("--slices", type=int, default=1, help="of TPUs (1)")
    parser.add_argument("--node", type=_selector, action="append", default=[], help="gpu=, tpu=, topology=, spot=true")
    parser.add_argument("--queue", help="of Kueue")
    parser.add_argument("--volume", help="a claim, which becomes the directory that jdiff works in")
    parser.add_argument("--service-account", help="one that may use the bucket of --workdir")
    parser.add_argument("--restarts", type=int, default=5, help="after crashes (5)")
    parser.add_argument("--runs", type=int, default=0, help="of a sweep, each a pod that does one alone")
    parser.add_argument("--at-a-time", type=int, default=0, help="how many of them (all)")
    said = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", said.name):
        parser.error(f"the name is {said.name}; it must be small letters, digits and -, 40 at most")
    if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", said.image):
        parser.error(f"--image is {said.image}, no NAME@sha256:DIGEST, the only name that stays the same image")
    if bool(said.runs) != (said.arguments[0] == "sweep") or (said.runs and said.hosts * said.slices > 1):
        parser.error("--runs goes with sweep, each run on one host")
    if said.hosts * said.slices > 1 and said.arguments[0] != "train":
        parser.error(f"only train takes several hosts, not {said.arguments[0]}")
    if said.gpus and said.slices > 1:
        parser.error("--slices are of TPUs; hosts with GPUs are said by --hosts")
    if min(said.gpus or said.tpus, said.hosts, said.slices) < 1 or said.restarts < 0:
        parser.error("--gpus or --tpus, --hosts and --slices must be 1 or more, --restarts 0 or more")
    return said


if __name__ == "__main__":
    told = read(sys.argv[1:])
    print(json.dumps(trials(told) if told.runs else run(told), indent=2))
