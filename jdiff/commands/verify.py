"""jdiff verify: check that the files of a run are those that were written."""

from __future__ import annotations

from jdiff.commands import flags

USAGE = "RUN"


def define_flags() -> None:
    """None."""


def run(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise flags.UsageError(f"verify takes one path, the run; {len(arguments)} were passed")
    from jdiff.runs.verify import verify_run

    verify_run(*arguments)
