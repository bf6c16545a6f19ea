"""A SLURM cluster of two nodes on this machine, from Debian's packages; runs as root, so only in a container."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = ("n1", "n2")
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPort={port}
{nodes}
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def _path() -> str:
    """PATH with the directories of system daemons."""
    return f"{os.environ['PATH']}:/usr/sbin"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster, its state in ``folder``. Yields the environment for sbatch and other commands."""
    _name_nodes()
    (folder / "state").mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host, cpus = socket.gethostname().split(".")[0], os.cpu_count()
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={cpus} RealMemory=1000"
        for node in NODES
    )
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, folder=folder, port=_free_port(), nodes=nodes))
    munge = {f"--{name}-file": folder / f"munge.{name}" for name in ("pid", "seed", "log")}
    munge |= {"--key-file": key, "--socket": folder / "munge.socket"}
    daemons = [["munged", "--foreground", "--force", *(f"{flag}={path}" for flag, path in munge.items())]]
    daemons += [["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", node] for node in NODES)]
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": _path()}
    with ExitStack() as stack:
        for command in daemons:
            output = stack.enter_context((folder / "daemons.out").open("ab"))
            daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            stack.callback(_end, daemon)
            time.sleep(1)
        for _ in range(60):
            sinfo = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%N %T"], env=environment, capture_output=True, text=True
            )
            if set(sinfo.stdout.splitlines()) == {f"{node} idle" for node in NODES}:
                break
            time.sleep(1)
        else:
            raise RuntimeError(f"the cluster does not start: {sinfo.stdout}{sinfo.stderr}; see {folder}")
        yield environment


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _name_nodes() -> None:
    """Make the names of the nodes resolve, because JAX resolves the first one."""
    hosts = Path("/etc/hosts")
    if not set(NODES) <= set(hosts.read_text().split()):
        with hosts.open("a") as file:
            file.write(f"127.0.0.1 {' '.join(NODES)}\n")


def skip_reason() -> str | None:
    """Why no cluster can run here; None where it can."""
    programs = ("munged", "slurmctld", "slurmd")
    if missing_programs := [program for program in programs if shutil.which(program, path=_path()) is None]:
        return f"no {', '.join(missing_programs)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"
