"""jdiff status: what a run is doing, or has done, and where its time went."""

from __future__ import annotations

from jdiff.commands import flags

USAGE = "RUN"


def define_flags() -> None:
    """None."""


def run(arguments: list[str]) -> None:
    (path,) = flags.take_paths("status", arguments, "the run")
    from jdiff.runs.activity import print_status

    print_status(path)
