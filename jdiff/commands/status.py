"""jdiff status: what a run is doing, or has done, and where its time went."""

from __future__ import annotations

from jdiff.commands import flags

USAGE = "RUN"


def define_flags() -> None:
    """None."""


def run(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise flags.UsageError(f"status takes one path, the run; {len(arguments)} were passed")
    from jdiff.runs.activity import print_status

    print_status(*arguments)
