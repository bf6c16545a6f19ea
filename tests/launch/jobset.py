"""What a JobSet may say, as far as ours do: fields by the documentation of JobSet v1alpha2 and of Kubernetes' Job and
Pod, and rules that hold across them, which a schema cannot say and a cluster tells late, or never."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def of(required: str = "", **fields: dict) -> dict:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def one_of(*values: str) -> dict:
    return {"enum": list(values)}


def several(item: dict, least: int = 0) -> dict:
    return {"type": "array", "items": item, "minItems": least}


DEVICES = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}, "minProperties": 1}
VARIABLE = of("name", name=TEXT, value=TEXT, valueFrom=of("fieldRef", fieldRef=of("fieldPath", fieldPath=TEXT)))
CONTAINER = of(
    "name image command args resources securityContext",
    name=NAME,
    image=TEXT,
    command=several(TEXT, 1),
    args=several(TEXT),
    workingDir=TEXT,
    env=several(VARIABLE),
    resources=of("limits requests", limits=DEVICES, requests=DEVICES),
    securityContext=of(
        allowPrivilegeEscalation=FLAG,
        readOnlyRootFilesystem=FLAG,
        privileged=FLAG,
        capabilities=of(drop=several(TEXT), add=several(TEXT)),
    ),
    volumeMounts=several(of("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = of(
    "restartPolicy containers",
    restartPolicy=one_of("Never", "OnFailure"),  # of a Job's pods
    terminationGracePeriodSeconds=COUNT,
    automountServiceAccountToken=FLAG,
    serviceAccountName=NAME,
    hostNetwork=FLAG,
    nodeSelector=TEXTS,
    securityContext=of(
        runAsNonRoot=FLAG,
        runAsUser=COUNT,
        runAsGroup=COUNT,
        fsGroup=COUNT,
        seccompProfile=of("type", type=one_of("RuntimeDefault", "Localhost", "Unconfined")),
    ),
    tolerations=several(
        of(
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            value=TEXT,
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    volumes=several(
        of(
            "name",
            name=NAME,
            emptyDir=of(medium=one_of("", "Memory"), sizeLimit=TEXT),
            persistentVolumeClaim=of("claimName", claimName=NAME, readOnly=FLAG),
        )
    ),
    containers=several(CONTAINER, 1),
)
POD_FAILURE = of(
    "action",
    action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
    onPodConditions=several(of("type status", type=TEXT, status=one_of("True", "False", "Unknown"))),
    onExitCodes=of("operator values", operator=one_of("In", "NotIn"), values=several({"type": "integer"}, 1)),
)
JOB = of(
    "template",
    completionMode=one_of("Indexed", "NonIndexed"),
    completions=COUNT,
    parallelism=COUNT,
    backoffLimit=COUNT,
    backoffLimitPerIndex=COUNT,
    maxFailedIndexes=COUNT,
    podFailurePolicy=of("rules", rules=several(POD_FAILURE)),
    template=of("spec", spec=POD),
)
JOB_FAILURE = of(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:-]*[A-Za-z0-9_])?$"},
    action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons=several(
        one_of(
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        )
    ),
    targetReplicatedJobs=several(NAME),
)
METADATA = of("name", name=NAME, labels=TEXTS, annotations=TEXTS)
SCHEMA = of(
    "apiVersion kind metadata spec",
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=METADATA,
    spec=of(
        "replicatedJobs",
        network=of(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=NAME),
        failurePolicy=of(maxRestarts=COUNT, rules=several(JOB_FAILURE)),
        replicatedJobs=several(
            of("name template", name=NAME, replicas=COUNT, template=of("spec", metadata=of(), spec=JOB)), 1
        ),
    ),
)
TRIALS = of(
    "apiVersion kind metadata spec", apiVersion=one_of("batch/v1"), kind=one_of("Job"), metadata=METADATA, spec=JOB
)
LONGEST = 63  # of a pod's name, which is also its host's


def broken(jobset: dict) -> Iterator[str]:
    """The rules that a JobSet breaks, each as a sentence."""
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    (hosts,) = spec["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    count, replicas = job.get("completions", 1), hosts.get("replicas", 1)
    if job.get("parallelism", 1) != count:
        yield "all hosts of a run must run together: parallelism must be completions"
    if job.get("completionMode") != "Indexed":
        yield "hosts are told apart by their index: completionMode must be Indexed"
    if job.get("backoffLimit", 6):
        yield "one host cannot begin again without the others: backoffLimit must be 0"
    if pod["restartPolicy"] != "Never":
        yield "a podFailurePolicy takes restartPolicy Never, and else the job is never begun"
    if pod.get("terminationGracePeriodSeconds", 30) < 60:
        yield "a run that is taken away needs a minute or more to save: terminationGracePeriodSeconds"
    if container["command"][0] in ("sh", "bash", "/bin/sh", "/bin/bash"):
        yield "a shell keeps the signal to itself by which a run is told to save: command must be jdiff"
    reasons = [reason for rule in spec["failurePolicy"].get("rules", []) for reason in rule["onJobFailureReasons"]]
    conditions = [
        condition["type"]
        for rule in job.get("podFailurePolicy", {"rules": []})["rules"]
        if rule["action"] == "FailJob"
        for condition in rule.get("onPodConditions", [])
    ]
    if ("PodFailurePolicy" in reasons) != ("DisruptionTarget" in conditions):
        yield "a node that is taken away counts as no crash only where job and JobSet both say so"
    (devices,) = container["resources"]["limits"].items()
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield "devices cannot be promised twice: requests must be limits"
    if devices[0] == "nvidia.com/gpu" and replicas > 1:
        yield "hosts with GPUs are those of one job: replicas must be 1"
    coordinators = [text for text in container["args"] if text.startswith("--coordinator=")]
    if devices[0] == "nvidia.com/gpu" and count > 1 and container["args"][0] == "train":
        told = {
            f"--coordinator={name}-{hosts['name']}-0-0.{name}:",
            f"--num_processes={count}",
            "--process_id=$(INDEX)",
        }
        found = {re.sub(r":\d+$", ":", text) for text in container["args"]}
        if told - found or "INDEX" not in [variable["name"] for variable in container["env"]]:
            yield "every host must be told of the others: --coordinator, --num_processes and --process_id of its index"
    elif coordinators:
        yield "a host that is alone, or of TPUs, is told by nobody of others"
    if len(f"{name}-{hosts['name']}-{replicas - 1}-{count - 1}") + len("-00000") > LONGEST:
        yield "a pod's name is too long for a host: metadata.name"
    topology = pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology")
    if topology and math.prod(map(int, topology.split("x"))) != count * devices[1]:
        yield "hosts and their chips are not as many as the topology has"
    yield from _broken_in_pods(pod)


def broken_in_trials(job: dict) -> Iterator[str]:
    """The rules that the Job of a sweep breaks."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    if spec.get("completionMode") != "Indexed" or "--runs=$(INDEX)" not in container["args"]:
        yield "each pod is told its run by its index"
    if any(text.startswith(("--coordinator", "--process_id")) for text in container["args"]):
        yield "runs of a sweep must not join into one"
    if not spec.get("backoffLimitPerIndex") and spec.get("backoffLimit", 6):
        yield "a run that fails counts for itself: backoffLimitPerIndex"
    if spec.get("maxFailedIndexes", 0) < spec.get("completions", 1):
        yield "a run that fails ends no other: maxFailedIndexes must be completions"
    actions = {rule["action"] for rule in spec.get("podFailurePolicy", {"rules": []})["rules"]}
    if actions != {"Ignore", "FailIndex"}:
        yield "what is taken away counts as no failure, and a mistake is not tried again"
    yield from _broken_in_pods(pod)


def _broken_in_pods(pod: dict) -> Iterator[str]:
    (container,) = pod["containers"]
    own = pod.get("securityContext", {}), container["securityContext"]
    if not own[0].get("runAsNonRoot") or own[0].get("runAsUser") == 0 or own[1].get("allowPrivilegeEscalation", True):
        yield "a run needs no root"
    if own[1].get("privileged") or own[1].get("capabilities", {}).get("drop") != ["ALL"] or pod.get("hostNetwork"):
        yield "a run needs no rights over its host"
    if pod.get("automountServiceAccountToken", True):
        yield "a run asks Kubernetes nothing: automountServiceAccountToken must be false"
    if not re.search(r"@sha256:[0-9a-f]{64}$", container["image"]):
        yield "an image is the same on all hosts only by its digest"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    if {mount["name"] for mount in container.get("volumeMounts", [])} != volumes:
        yield "volumes and what is mounted are not the same"
    if own[1].get("readOnlyRootFilesystem") and "/tmp" not in {m["mountPath"] for m in container["volumeMounts"]}:
        yield "there is nowhere to write"
