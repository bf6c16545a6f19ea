"""A JSON schema for the fields that our manifests use, from the documentation of JobSet v1alpha2 and of Kubernetes' Job
and Pod, and rules across fields, which no schema expresses and a cluster reports late or never."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def obj(required_fields: str = "", **fields: dict) -> dict:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required_fields.split(), "additionalProperties": False}


def enum(*values: str) -> dict:
    return {"enum": list(values)}


def array(item: dict, min_items: int = 0) -> dict:
    return {"type": "array", "items": item, "minItems": min_items}


DEVICES = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}, "minProperties": 1}
VARIABLE = obj("name", name=TEXT, value=TEXT, valueFrom=obj("fieldRef", fieldRef=obj("fieldPath", fieldPath=TEXT)))
CONTAINER = obj(
    "name image command args resources securityContext",
    name=NAME,
    image=TEXT,
    command=array(TEXT, 1),
    args=array(TEXT),
    workingDir=TEXT,
    env=array(VARIABLE),
    resources=obj("limits requests", limits=DEVICES, requests=DEVICES),
    securityContext=obj(
        allowPrivilegeEscalation=FLAG,
        readOnlyRootFilesystem=FLAG,
        privileged=FLAG,
        capabilities=obj(drop=array(TEXT), add=array(TEXT)),
    ),
    volumeMounts=array(obj("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = obj(
    "restartPolicy containers",
    restartPolicy=enum("Never", "OnFailure"),  # of a Job's pods
    terminationGracePeriodSeconds=COUNT,
    automountServiceAccountToken=FLAG,
    serviceAccountName=NAME,
    hostNetwork=FLAG,
    nodeSelector=TEXTS,
    securityContext=obj(
        runAsNonRoot=FLAG,
        runAsUser=COUNT,
        runAsGroup=COUNT,
        fsGroup=COUNT,
        seccompProfile=obj("type", type=enum("RuntimeDefault", "Localhost", "Unconfined")),
    ),
    tolerations=array(
        obj(
            key=TEXT,
            operator=enum("Exists", "Equal"),
            value=TEXT,
            effect=enum("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    volumes=array(
        obj(
            "name",
            name=NAME,
            emptyDir=obj(medium=enum("", "Memory"), sizeLimit=TEXT),
            persistentVolumeClaim=obj("claimName", claimName=NAME, readOnly=FLAG),
        )
    ),
    containers=array(CONTAINER, 1),
)
POD_FAILURE = obj(
    "action",
    action=enum("FailJob", "FailIndex", "Ignore", "Count"),
    onPodConditions=array(obj("type status", type=TEXT, status=enum("True", "False", "Unknown"))),
    onExitCodes=obj("operator values", operator=enum("In", "NotIn"), values=array({"type": "integer"}, 1)),
)
JOB = obj(
    "template",
    completionMode=enum("Indexed", "NonIndexed"),
    completions=COUNT,
    parallelism=COUNT,
    backoffLimit=COUNT,
    backoffLimitPerIndex=COUNT,
    maxFailedIndexes=COUNT,
    podFailurePolicy=obj("rules", rules=array(POD_FAILURE)),
    template=obj("spec", spec=POD),
)
JOB_FAILURE = obj(
    "name action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:-]*[A-Za-z0-9_])?$"},
    action=enum("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons=array(
        enum(
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        )
    ),
    targetReplicatedJobs=array(NAME),
)
METADATA = obj("name", name=NAME, labels=TEXTS, annotations=TEXTS)
SCHEMA = obj(
    "apiVersion kind metadata spec",
    apiVersion=enum("jobset.x-k8s.io/v1alpha2"),
    kind=enum("JobSet"),
    metadata=METADATA,
    spec=obj(
        "replicatedJobs",
        network=obj(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=NAME),
        failurePolicy=obj(maxRestarts=COUNT, rules=array(JOB_FAILURE)),
        replicatedJobs=array(
            obj("name template", name=NAME, replicas=COUNT, template=obj("spec", metadata=obj(), spec=JOB)), 1
        ),
    ),
)
SWEEP_SCHEMA = obj(
    "apiVersion kind metadata spec", apiVersion=enum("batch/v1"), kind=enum("Job"), metadata=METADATA, spec=JOB
)
MAX_POD_NAME = 63  # characters; the pod's name is also its host name


def violations(jobset: dict) -> Iterator[str]:
    """The rules that a JobSet violates, each as a sentence."""
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    (hosts,) = spec["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    count, replicas = job.get("completions", 1), hosts.get("replicas", 1)
    if job.get("parallelism", 1) != count:
        yield "all hosts of a run must run at the same time: parallelism must equal completions"
    if job.get("completionMode") != "Indexed":
        yield "every host needs an index: completionMode must be Indexed"
    if job.get("backoffLimit", 6):
        yield "a host cannot restart without the others: backoffLimit must be 0"
    if pod["restartPolicy"] != "Never":
        yield "podFailurePolicy requires restartPolicy Never, or the job never starts"
    if pod.get("terminationGracePeriodSeconds", 30) < 60:
        yield "a disrupted run needs time to save: terminationGracePeriodSeconds must be 60 or more"
    if container["command"][0] in ("sh", "bash", "/bin/sh", "/bin/bash"):
        yield "a shell does not pass on SIGTERM, on which a run saves: command must be jdiff"
    reasons = [reason for rule in spec["failurePolicy"].get("rules", []) for reason in rule["onJobFailureReasons"]]
    conditions = [
        condition["type"]
        for rule in job.get("podFailurePolicy", {"rules": []})["rules"]
        if rule["action"] == "FailJob"
        for condition in rule.get("onPodConditions", [])
    ]
    if ("PodFailurePolicy" in reasons) != ("DisruptionTarget" in conditions):
        yield "a disruption is not counted as a crash only where both Job and JobSet have the rule"
    (devices,) = container["resources"]["limits"].items()
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield "devices cannot be overcommitted: requests must equal limits"
    if devices[0] == "nvidia.com/gpu" and replicas > 1:
        yield "all hosts with GPUs belong to one job: replicas must be 1"
    coordinators = [text for text in container["args"] if text.startswith("--coordinator=")]
    if devices[0] == "nvidia.com/gpu" and count > 1 and container["args"][0] == "train":
        cluster_flags = {
            f"--coordinator={name}-{hosts['name']}-0-0.{name}:",
            f"--num_processes={count}",
            "--process_id=$(INDEX)",
        }
        arguments = {re.sub(r":\d+$", ":", text) for text in container["args"]}
        if cluster_flags - arguments or "INDEX" not in [variable["name"] for variable in container["env"]]:
            yield "every GPU host needs --coordinator, --num_processes, and --process_id with its index"
    elif coordinators:
        yield "a single host, and hosts with TPUs, take no --coordinator"
    if len(f"{name}-{hosts['name']}-{replicas - 1}-{count - 1}") + len("-00000") > MAX_POD_NAME:
        yield "the pod's name is too long for a host name: shorten metadata.name"
    topology = pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology")
    if topology and math.prod(map(int, topology.split("x"))) != count * devices[1]:
        yield "hosts times chips per host differs from the topology"
    yield from _pod_violations(pod)


def sweep_violations(job: dict) -> Iterator[str]:
    """The rules that the Job of a sweep violates."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    if spec.get("completionMode") != "Indexed" or "--runs=$(INDEX)" not in container["args"]:
        yield "each pod does the run of its index: completionMode must be Indexed, with --runs=$(INDEX)"
    if any(text.startswith(("--coordinator", "--process_id")) for text in container["args"]):
        yield "the runs of a sweep are independent: no --coordinator, no --process_id"
    if not spec.get("backoffLimitPerIndex") and spec.get("backoffLimit", 6):
        yield "failures are counted per run: backoffLimitPerIndex"
    if spec.get("maxFailedIndexes", 0) < spec.get("completions", 1):
        yield "a failed run stops no other: maxFailedIndexes must equal completions"
    actions = {rule["action"] for rule in spec.get("podFailurePolicy", {"rules": []})["rules"]}
    if actions != {"Ignore", "FailIndex"}:
        yield "disruptions are ignored and user errors are not retried: podFailurePolicy needs Ignore and FailIndex"
    yield from _pod_violations(pod)


def _pod_violations(pod: dict) -> Iterator[str]:
    (container,) = pod["containers"]
    pod_context, context = pod.get("securityContext", {}), container["securityContext"]
    if (
        not pod_context.get("runAsNonRoot")
        or pod_context.get("runAsUser") == 0
        or context.get("allowPrivilegeEscalation", True)
    ):
        yield "a run must not be root"
    if context.get("privileged") or context.get("capabilities", {}).get("drop") != ["ALL"] or pod.get("hostNetwork"):
        yield "a run needs no privileges on its host"
    if pod.get("automountServiceAccountToken", True):
        yield "a run does not call Kubernetes: automountServiceAccountToken must be false"
    if not re.search(r"@sha256:[0-9a-f]{64}$", container["image"]):
        yield "all hosts need the same image: it must be named by its digest"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    if {mount["name"] for mount in container.get("volumeMounts", [])} != volumes:
        yield "volumes and volumeMounts differ"
    if context.get("readOnlyRootFilesystem") and "/tmp" not in {m["mountPath"] for m in container["volumeMounts"]}:
        yield "a read-only root file system needs a volume at /tmp"
