#!/usr/bin/env python3
"""Print the Kubernetes manifest of a run: a JobSet for training on GPUs or TPUs, or an indexed Job for a sweep.

    launch/gke.py shapes --image=REGISTRY/jdiff@sha256:... --gpus=8 --hosts=2 --node=gpu=nvidia-h100-80gb -- \\
        train --config=demo_t2i --workdir=gs://bucket/shapes | kubectl apply -f -
    launch/gke.py rates --image=... --gpus=1 --runs=30 -- sweep NAME --workdir=gs://bucket/rates | kubectl apply -f -

Every host runs the same command, directly and not in a shell, which would not pass signals on. After a disruption (a
preempted spot node, a drained node) the run restarts without limit; after a crash, --restarts times.
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
DISRUPTION = [{"type": "DisruptionTarget", "status": "True"}]  # the pod's node was drained or preempted


def jobset(options: argparse.Namespace) -> dict:
    """The JobSet of one run on all hosts, which restart together."""
    cluster_flags, environment = [], []
    # GKE tells the hosts of a TPU slice of each other. GPU hosts get flags: to ask Kubernetes, a pod would need rights.
    if options.gpus and options.hosts > 1:
        cluster_flags = [
            f"--coordinator={options.name}-hosts-0-0.{options.name}:{PORT}",
            f"--num_processes={options.hosts}",
            "--process_id=$(INDEX)",
        ]
        environment = [{"name": "INDEX", "valueFrom": INDEX}]
    elif options.gpus and options.arguments[0] == "train":
        cluster_flags = ["--cluster=none"]
    job = {
        "completionMode": "Indexed",
        "completions": options.hosts,
        "parallelism": options.hosts,
        "backoffLimit": 0,  # a single host cannot restart without the others
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": DISRUPTION}]},
        "template": {"spec": _pod(options, cluster_flags, environment)},
    }
    restart = {"name": "taken-away", "action": "RestartJobSetAndIgnoreMaxRestarts"}
    spec = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": options.restarts,
            "rules": [restart | {"onJobFailureReasons": ["PodFailurePolicy"]}],
        },
        "replicatedJobs": [{"name": "hosts", "replicas": options.slices, "template": {"spec": job}}],
    }
    metadata = _metadata(options)
    if options.tpus:
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def sweep_job(options: argparse.Namespace) -> dict:
    """The indexed Job of a sweep: each pod does one run, independently of the others."""
    spec = {
        "completionMode": "Indexed",
        "completions": options.runs,
        "parallelism": min(options.at_a_time or options.runs, options.runs),
        "backoffLimitPerIndex": options.restarts,
        "maxFailedIndexes": options.runs,  # a failed run stops no other
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": DISRUPTION},
                {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [2]}},
            ]
        },
        "template": {"spec": _pod(options, ["--runs=$(INDEX)"], [{"name": "INDEX", "valueFrom": INDEX}])},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(options), "spec": spec}


def _metadata(options: argparse.Namespace) -> dict:
    labels = {"labels": {"kueue.x-k8s.io/queue-name": options.queue}} if options.queue else {}
    return {"name": options.name, **labels}


def _pod(options: argparse.Namespace, extra_arguments: list[str], environment: list[dict]) -> dict:
    """A pod without root or privileges. extra_arguments: appended to those of jdiff."""
    kind = "google.com/tpu" if options.tpus else "nvidia.com/gpu"
    devices = {kind: options.tpus or options.gpus}
    container = {
        "name": "jdiff",
        "image": options.image,
        "command": ["jdiff"],
        # Kubernetes expands $(NAME); in the user's arguments it is escaped.
        "args": [text.replace("$(", "$$(") for text in options.arguments] + extra_arguments,
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
        "terminationGracePeriodSeconds": 120,  # time to save a checkpoint
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": {LABELS.get(key, key): value for key, value in options.node},
        "tolerations": [{"key": kind, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}],
        "containers": [container],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.volume:
        pod["volumes"].append({"name": "work", "persistentVolumeClaim": {"claimName": options.volume}})
        container["volumeMounts"].append({"name": "work", "mountPath": "/work"})
        container["workingDir"] = "/work"
    return pod


def _selector(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE; KEY is {', '.join(LABELS)}, or a node's label")
    return key, value


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; invalid ones exit with status 2 and a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the run and of its Kubernetes resources")
    parser.add_argument("arguments", nargs="+", help="after --: the arguments of jdiff")
    parser.add_argument("--image", required=True, help="container image with jdiff, by digest: NAME@sha256:DIGEST")
    devices = parser.add_mutually_exclusive_group(required=True)
    devices.add_argument("--gpus", type=int, default=0, help="GPUs per host")
    devices.add_argument("--tpus", type=int, default=0, help="TPU chips per host")
    parser.add_argument("--hosts", type=int, default=1, help="hosts per slice (1)")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices (1)")
    parser.add_argument("--node", type=_selector, action="append", default=[], help="gpu=, tpu=, topology=, spot=true")
    parser.add_argument("--queue", help="Kueue queue")
    parser.add_argument("--volume", help="persistent volume claim, mounted as the working directory")
    parser.add_argument("--service-account", help="Kubernetes service account with access to the bucket of --workdir")
    parser.add_argument("--restarts", type=int, default=5, help="restarts after crashes (5)")
    parser.add_argument("--runs", type=int, default=0, help="number of runs of a sweep, one pod each")
    parser.add_argument("--at-a-time", type=int, default=0, help="pods of a sweep that run at the same time (all)")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        parser.error(f"the name is {options.name}; it must be lower-case letters, digits and -, at most 40 characters")
    if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", options.image):
        parser.error(f"--image is {options.image}; it must be NAME@sha256:DIGEST, which always names the same image")
    if bool(options.runs) != (options.arguments[0] == "sweep") or (options.runs and options.hosts * options.slices > 1):
        parser.error("--runs is required by sweep and by no other command; each run takes one host")
    if options.hosts * options.slices > 1 and options.arguments[0] != "train":
        parser.error(f"only train runs on several hosts, not {options.arguments[0]}")
    if options.gpus and options.slices > 1:
        parser.error("--slices is for TPUs; set --hosts for several hosts with GPUs")
    if min(options.gpus or options.tpus, options.hosts, options.slices) < 1 or options.restarts < 0:
        parser.error("--gpus or --tpus, --hosts and --slices must be 1 or more, --restarts 0 or more")
    return options


if __name__ == "__main__":
    parsed_options = parse(sys.argv[1:])
    print(json.dumps(sweep_job(parsed_options) if parsed_options.runs else jobset(parsed_options), indent=2))
