"""jdiff sweep: train and measure many variants of a config, and report which differ."""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from jdiff.commands import flags
from jdiff.config.construct import nearest

USAGE = "NAME --workdir"


def define_flags() -> None:
    flags.define_workdir("Directory of the sweep.")
    absl_flags.DEFINE_integer("jobs", 1, "Runs at a time on this machine, each with its share of cores; 0: report.", 0)
    absl_flags.DEFINE_list("gpus", [], "Indices of GPUs, each for one run at a time.")
    absl_flags.DEFINE_enum(
        "vectorize",
        "auto",
        ["auto", "always", "never"],
        "Train runs that differ only in scalar hyperparameters as one vmapped program.",
    )
    absl_flags.DEFINE_list("runs", [], "Do only the runs with these indices, without a report; for array jobs.")
    absl_flags.DEFINE_bool("retry", False, "Try failed runs again.")
    absl_flags.DEFINE_bool("dry_run", False, "Only print a command for each cell.")


def run(arguments: list[str]) -> None:
    from jdiff.sweep.run import run_sweep

    f = absl_flags.FLAGS
    if len(arguments) != 1:
        raise flags.UsageError(f"sweep takes one sweep, a file or a name; {len(arguments)} were passed")
    if not all(index.isdecimal() for index in f.runs):
        raise flags.UsageError(f"--runs is {','.join(f.runs)}; it must be indices of runs, from 0")
    run_sweep(
        sweep_file(arguments[0]),
        flags.required("workdir"),
        config_file=flags.config_file,
        jobs=f.jobs,
        gpus=f.gpus,
        vectorize_runs=f.vectorize,
        indices=[int(index) for index in f.runs],
        retry=f.retry,
        dry_run=f.dry_run,
    )


def sweep_file(name: str) -> str:
    """A sweep's file, from its path or its name. Raises ``UsageError``."""
    if Path(name).is_file():
        return name
    folders = {config.parent / "sweeps" for config in flags.shipped_configs().values()}
    sweeps = {path.stem: path for folder in folders for path in folder.glob("*.py")}
    if name not in sweeps:
        raise flags.UsageError(f"there is no sweep '{name}', as a file or by name; {nearest(name, sweeps)}")
    return str(sweeps[name])
