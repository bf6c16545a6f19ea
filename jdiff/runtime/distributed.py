"""Multi-process runs: initialize JAX's distributed runtime, compare processes, and stop all of them together.

Every process runs the same command. JAX detects the other processes in the environment of SLURM, Open MPI, Kubernetes
and TPU VMs; elsewhere --coordinator, --num_processes and --process_id pass them. A single process initializes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # JAX has no public function for what it detects; a test covers this one
from jax._src.distributed import global_state  # or for the store of keys and values that all processes share
from jax.experimental import multihost_utils

from jdiff.runtime import signals

HEARTBEAT_SECONDS = 60  # a process silent for longer counts as dead
SHUTDOWN_SECONDS = 60  # how long the first process to end waits for the others
COORDINATOR_VARIABLE = "JAX_COORDINATOR_ADDRESS"  # the environment variable in which JAX looks for host:port
AUTO_DETECT, SINGLE_PROCESS = "auto", "none"  # values of --cluster beside the names of JAX's cluster types


class ClusterError(RuntimeError):
    """The processes of a run could not connect, see other numbers of devices, or were started differently."""

    exit_status = 2


@dataclass(frozen=True)
class Cluster:
    """How the processes of a run find each other; JAX detects what is None.

    kind: AUTO_DETECT, SINGLE_PROCESS, or the name of one of JAX's cluster types.
    coordinator: host:port of process 0.   num_processes, process_id: of the run, and this one's index, 0-based.
    num_devices: required number of devices of all processes together; None accepts any.
    timeout: seconds within which all processes must connect.
    """

    kind: str = AUTO_DETECT
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    num_devices: int | None = None
    timeout: int = 300


def initialize(cluster: Cluster) -> None:
    """Connect this process to the others of its run, before JAX starts. Logs the coordinator and the timeout.

    Raises ``ClusterError`` for flags that contradict each other, and for another number of devices than required. The
    process exits with status 1 when the others do not connect in time.
    """
    _check(cluster)
    address, num_processes, process_id, local_devices = _resolve(cluster)
    if num_processes is not None and num_processes > 1:
        label = f"process {process_id} of {num_processes}, coordinator {address}"
        print(f"{label}: waiting up to {cluster.timeout} s for all processes", file=sys.stderr, flush=True)
        loopback = address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1")
        with _exit_after(
            cluster.timeout,
            f"{label}: not all processes connected within {cluster.timeout} s; start all of them, or raise --wait",
        ):
            jax.distributed.initialize(
                address,
                num_processes,
                process_id,
                local_devices,
                cluster_detection_method="deactivate",
                initialization_timeout=cluster.timeout + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
                coordinator_bind_address=address if loopback else None,
            )
        signals.take_sigterm()
    if cluster.num_devices is not None and jax.device_count() != cluster.num_devices:
        raise ClusterError(
            f"{jax.device_count()} devices were found in {jax.process_count()} processes, but --devices is "
            f"{cluster.num_devices}; check which devices each process sees, or change the flag"
        )


def _check(cluster: Cluster) -> None:
    explicit = (cluster.coordinator, cluster.num_processes, cluster.process_id)
    if any(value is not None for value in explicit) and None in explicit:
        raise ClusterError("--coordinator, --num_processes and --process_id go together: pass all three, or none")
    if cluster.coordinator is not None and cluster.kind not in (AUTO_DETECT, SINGLE_PROCESS):
        raise ClusterError(f"--coordinator and --cluster={cluster.kind} both set the coordinator; pass one of them")
    if cluster.num_processes is not None and not 0 <= cluster.process_id < cluster.num_processes:
        raise ClusterError(
            f"--process_id is {cluster.process_id}; with --num_processes={cluster.num_processes} it must be from 0 to "
            f"{cluster.num_processes - 1}, different for each process"
        )


@contextmanager
def _exit_after(seconds: int, message: str) -> Iterator[None]:
    """Exit the process with a message if the block takes longer; JAX would abort it with a stack trace."""

    def end() -> None:
        print(f"jdiff: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _resolve(cluster: Cluster) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """Coordinator, number of processes, this one's index, and its local devices (None: all that it sees)."""
    if cluster.coordinator is not None or cluster.kind == SINGLE_PROCESS:
        return cluster.coordinator, cluster.num_processes, cluster.process_id, None
    kinds = {kind.name: kind for kind in ClusterEnv._cluster_types}
    if cluster.kind != AUTO_DETECT and (cluster.kind not in kinds or not kinds[cluster.kind].is_env_present()):
        choices = ", ".join(sorted({AUTO_DETECT, SINGLE_PROCESS, *kinds} - {""}))
        raise ClusterError(
            f"--cluster is {cluster.kind}, but this process does not run in such a cluster; choices: {choices}"
        )
    kind = None if cluster.kind == AUTO_DETECT else cluster.kind
    coordinator = os.environ.get(COORDINATOR_VARIABLE)
    address, num_processes, process_id, local_devices = ClusterEnv.auto_detect_unset_distributed_params(
        coordinator, None, None, None, kind, cluster.timeout
    )
    if coordinator is not None and num_processes is None:
        raise ClusterError(
            f"{COORDINATOR_VARIABLE} is {coordinator}, but the number of processes and this one's index are unknown; "
            "pass --coordinator, --num_processes and --process_id, or --cluster=none for a single process"
        )
    # JAX assigns one device to a task of SLURM or Open MPI, but the only task of a node sees all devices of its node.
    tasks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return address, num_processes, process_id, None if tasks.partition("(")[0] == "1" else local_devices


def publish(key: str, value: str) -> None:
    """Let all processes know a value, under the key and this process' index; at any time, from any thread."""
    if (client := global_state.client) is not None:
        client.key_value_set(f"jdiff/{key}/{jax.process_index()}", value, allow_overwrite=True)


def published_values(key: str) -> dict[int, str]:
    """What processes have published under a key, by their index."""
    client = global_state.client
    pairs = [] if client is None else client.key_value_dir_get(f"jdiff/{key}/")
    return {int(name.rsplit("/", 1)[1]): value for name, value in pairs}


def is_primary_process() -> bool:
    """Whether this is process 0, which prints and writes the files that all processes share."""
    return jax.process_index() == 0


def assert_equal_across_processes(**values: str) -> None:
    """Wait for all processes, and compare their values by name. Raises ``ClusterError`` where one differs."""
    if jax.process_count() == 1:
        return
    checksums = np.array([zlib.crc32(text.encode()) for text in values.values()], np.uint32)
    for name, column in zip(values, multihost_utils.process_allgather(checksums).T):
        different = np.flatnonzero(column != column[0])
        if len(different):
            raise ClusterError(
                f"process {different[0]} has another {name} than process 0; start every process with the same command, "
                "and let all of them see the same files"
            )


def first_problem(problem: str | None) -> str | None:
    """The problem of the first process that has one, with its index; all call this together and return the same."""
    if jax.process_count() == 1:
        return problem
    for process, text in enumerate(_texts_of_all(problem or "")):
        if text:
            return text if text.startswith("process ") else f"process {process}: {text}"
    return None


def sum_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The sums over all processes of counts by name; all call it together."""
    if jax.process_count() == 1:
        return dict(counts)
    total: Counter[str] = Counter()
    for text in _texts_of_all(json.dumps(dict(counts))):
        total.update(json.loads(text))
    return dict(total)


def from_primary(number: int) -> int:
    """The primary process' number, on all, which call this together: others may see its files late."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _texts_of_all(text: str) -> list[str]:
    """The texts of all processes, in their order; all call it together."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    rows = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - data.size)))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes)]


class StopSignals(signals.StopSignals):
    """A context in which SIGINT and SIGTERM ask the run to stop: all processes stop after the same step.

    JAX's preemption service passes a signal that any of several processes receives to all.
    """

    def __init__(self):
        self._multi_process, self._step = jax.process_count() > 1, 0

    def poll(self) -> int | None:
        """The number of the signal to stop by, or None. Every process must call it equally often, between steps."""
        self._step += 1
        if self._multi_process and not multihost_utils.reached_preemption_sync_point(self._step):
            return None
        return self.signal_numbers[0] if self.signal_numbers else signal.SIGTERM if self._multi_process else None
