"""Several processes as one run: they find each other, and say what they are about to wait for.

Every process runs the same command. Which others there are, JAX reads from the environment of SLURM, Open MPI,
Kubernetes and TPU VMs; anywhere else it is said. A process that is alone joins nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # no public function tells what JAX would join; a test holds this one
from jax.experimental import multihost_utils

HEARTBEAT = 60  # seconds until a silent process counts as dead
SHUTDOWN = 60  # seconds that the first to end waits for others
COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # the environment variable by which JAX may be told
ANY, ALONE = "auto", "none"  # what --cluster says beside the name of one


class CannotJoin(RuntimeError):
    """The processes of a run did not find each other, or not the devices they were to find."""


@dataclass(frozen=True)
class Cluster:
    """What is said of the processes of a run; None is left to JAX to find.

    kind: ANY, ALONE, or a name that JAX has for a kind of cluster.   coordinator: host:port of process 0.
    devices: how many all processes together must find.   wait: seconds to find each other in.
    """

    kind: str = ANY
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: int | None = None
    wait: int = 300


def join(said: Cluster) -> None:
    """Make this process one of a run's, before JAX starts; prints who is waited for. Raises ``CannotJoin``."""
    explicit = (said.coordinator, said.processes, said.process)
    if any(value is not None for value in explicit) and None in explicit:
        raise CannotJoin("--coordinator, --num_processes and --process_id come together; say all three, or none")
    if said.coordinator is not None and said.kind not in (ANY, ALONE):
        raise CannotJoin(f"--coordinator says where the processes meet, and so does --cluster={said.kind}; say one")
    if said.processes is not None and not 0 <= said.process < said.processes:
        raise CannotJoin(f"--process_id is {said.process}; it must be from 0 to {said.processes - 1}, one for each")
    address, processes, process, local = _found(said)
    if processes is not None and processes > 1:
        who = f"process {process} of {processes}, coordinator {address}"
        print(f"{who}: waiting up to {said.wait} s for all of them", file=sys.stderr, flush=True)
        loopback = address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1")
        with _at_most(said.wait, f"{who}: not all of them came in {said.wait} s; start each, or say more by --wait"):
            jax.distributed.initialize(
                address,
                processes,
                process,
                local,
                cluster_detection_method="deactivate",
                initialization_timeout=said.wait + 60,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=SHUTDOWN,
                coordinator_bind_address=address if loopback else None,
            )
    if said.devices is not None and jax.device_count() != said.devices:
        raise CannotJoin(
            f"{jax.device_count()} devices were found in {jax.process_count()} processes, but --devices is "
            f"{said.devices}; see what each process is shown, or change the flag"
        )


@contextmanager
def _at_most(seconds: int, sentence: str) -> Iterator[None]:
    """End the process with a sentence if it stays in here for longer; JAX would abort it with a stack trace."""

    def end() -> None:
        print(f"jdiff: {sentence}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _found(said: Cluster) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """Coordinator, processes, this one's number, and its devices, None for all that it is shown."""
    if said.coordinator is not None or said.kind == ALONE:
        return said.coordinator, said.processes, said.process, None
    kinds = {kind.name: kind for kind in ClusterEnv._cluster_types}
    if said.kind != ANY and (said.kind not in kinds or not kinds[said.kind].is_env_present()):
        known = ", ".join(sorted({ANY, ALONE, *kinds} - {""}))
        raise CannotJoin(f"--cluster is {said.kind}, of which nothing is found here; it can be {known}")
    kind = None if said.kind == ANY else said.kind
    told = os.environ.get(COORDINATOR)
    address, processes, process, local = ClusterEnv.auto_detect_unset_distributed_params(
        told, None, None, None, kind, said.wait
    )
    if told is not None and processes is None:
        raise CannotJoin(
            f"{COORDINATOR} is {told}, but nothing tells how many processes there are, and which this is; say it by "
            "--coordinator, --num_processes and --process_id, or --cluster=none if it is alone"
        )
    # JAX takes one device for a task of SLURM or of Open MPI, though a node's only task is shown all of them.
    tasks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return address, processes, process, None if tasks.partition("(")[0] == "1" else local


def is_primary_process() -> bool:
    """Whether this process is the one that prints, and writes what all share."""
    return jax.process_index() == 0


def assert_equal_across_processes(**told: str) -> None:
    """Wait until every process has come here, and see that all tell the same. Raises ``CannotJoin``."""
    if jax.process_count() == 1:
        return
    marks = np.array([zlib.crc32(text.encode()) for text in told.values()], np.uint32)
    of_all = multihost_utils.process_allgather(marks)
    for name, column in zip(told, of_all.T):
        unlike = np.flatnonzero(column != column[0])
        if len(unlike):
            raise CannotJoin(
                f"process {unlike[0]} has another {name} than process 0; each must be started by the same command, "
                "and see the same files"
            )


class Stop:
    """Signals that ask a run to stop, as a context: every process hears of one, and stops at the same step.

    JAX carries a SIGTERM from one process to all; a SIGINT is made one.
    """

    def __init__(self):
        self._heard: list[int] = []
        self._several, self._asked = jax.process_count() > 1, 0

    def __enter__(self) -> Stop:
        def hear(number: int, _: Any) -> None:
            self._heard.append(number)
            if self._several:
                os.kill(os.getpid(), signal.SIGTERM)

        heeded = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, hear) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> int | None:
        """The number of the signal to stop by, if there is one. Every process asks equally often, between steps."""
        self._asked += 1
        if self._several and not multihost_utils.reached_preemption_sync_point(self._asked):
            return None
        return self._heard[0] if self._heard else signal.SIGTERM if self._several else None
