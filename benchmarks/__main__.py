"""``python -m benchmarks NAME [--quick]``: measure again what the README and the docs claim."""

from __future__ import annotations

import argparse
import importlib
import sys

from jdiff.runtime import backend

NAMES = {
    "mathematics": "sampling: one program for everything, its cost, and how many steps a picture needs",
    "path": "the demo and the shapes runs",
    "gpu_check": "training and sampling at full size on a GPU, and tiny on whatever else there is",
    "weights": "other people's weights against their own libraries, which the extra 'parity' installs",
    "choices": "solvers, grids, schedules and prediction types on a spiral",
    "sharding": "one run on every layout of eight fake CPU devices; the contrastive losses over them, and their memory",
    "sweeps": "launchers and sweeps: mistakes caught, a run on SLURM, cells done once, lanes of one program",
    "schedulers": "diffusers' schedulers with a perfect network, beside float64",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES, help="; ".join(f"{name}: {what}" for name, what in NAMES.items()))
    parser.add_argument("--quick", action="store_true", help="fewer samples, under a minute")
    parser.add_argument("--runs", default="runs", help="where the runs lie")
    arguments = parser.parse_args()
    backend.configure()
    try:
        benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    except ModuleNotFoundError as error:
        print(f"benchmarks: {error.name} is not installed; `make parity` installs it", file=sys.stderr)
        return 1
    try:
        return benchmark.measure(quick=arguments.quick, runs=arguments.runs)
    except OSError as error:  # a run whose data is not there any more
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
