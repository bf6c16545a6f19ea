"""``python -m benchmarks NAME [--quick]``: measures again what the README and the docs claim."""

from __future__ import annotations

import argparse
import importlib
import sys

from jdiff import runtime

NAMES = {
    "accuracy": "retrieval and prompt accuracy of the demo, shapes and emoji runs",
    "sampler": "the cost of one compiled program for all settings, and prompt accuracy by number of steps",
    "gpu_check": "training and sampling at full size on a GPU; with tiny networks on a CPU",
    "weights": "memory and time of loading pretrained weights",
    "choices": "solvers, spacings, schedules and prediction types on a spiral; variances and guidance on shapes",
    "contrastive": "memory of the contrastive losses on eight fake CPU devices",
    "sweeps": "throughput of vmapped runs, and of a sweep's sampling in one program",
    "reliability": "random damage to checkpoints and run files, and what all protection costs",
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
