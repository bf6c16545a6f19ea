"""``python -m benchmarks NAME [--quick]``: measures again what the README and the docs claim."""

from __future__ import annotations

import argparse
import importlib
import sys

from jdiff import runtime

NAMES = {
    "mathematics": "sampling: the solvers' exactness, the cost of one compiled program, accuracy by number of steps",
    "path": "accuracy of the demo, shapes and emoji runs",
    "gpu_check": "training and sampling at full size on a GPU; with tiny networks on a CPU",
    "weights": "memory and time of loading pretrained weights",
    "choices": "solvers, spacings, schedules and prediction types on a spiral; variances and guidance on shapes",
    "sharding": "one run on several meshes of eight fake CPU devices; the contrastive losses and their memory",
    "sweeps": "launchers and sweeps: rejected mistakes, a run on SLURM, resumed sweeps, vmapped runs",
    "schedulers": "diffusers' schedulers with a perfect network, compared with float64",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="; ".join(f"{name}: {summary}" for name, summary in NAMES.items()))
    parser.add_argument("--quick", action="store_true", help="fewer samples, under a minute")
    parser.add_argument("--runs", default="runs", help="directory of the trained runs")
    arguments = parser.parse_args()
    runtime.setup()
    try:
        benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    except ModuleNotFoundError as error:
        print(f"benchmarks: {error.name} is not installed; `make parity` installs it", file=sys.stderr)
        return 1
    try:
        return benchmark.measure(quick=arguments.quick, runs=arguments.runs)
    except OSError as error:  # a run whose data was deleted
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
