"""jdiff train: train a run, or resume it."""

from __future__ import annotations

from absl import flags as absl_flags

from jdiff.commands import flags

USAGE = "--config --workdir"


def define_flags() -> None:
    flags.define_config()
    flags.define_workdir()
    absl_flags.DEFINE_string("cluster", "auto", "Cluster type (default: detected by JAX); 'none': a single process.")
    absl_flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot detect it.")
    absl_flags.DEFINE_integer("num_processes", None, "Number of processes, each started by this command.", 1)
    absl_flags.DEFINE_integer("process_id", None, "Index of this process, 0-based.", 0)
    absl_flags.DEFINE_integer("devices", None, "Abort unless the job sees exactly this many devices in all.", 1)
    absl_flags.DEFINE_integer("wait", 300, "Seconds that processes wait for each other to start.", 1)


def run(arguments: list[str]) -> None:
    flags.no_arguments(arguments)
    from jdiff.runtime.distributed import Cluster, initialize

    f = absl_flags.FLAGS
    initialize(Cluster(f.cluster, f.coordinator, f.num_processes, f.process_id, f.devices, f.wait))
    from jdiff.runs.train import train

    train(flags.image_text_task(), flags.required("workdir"))
