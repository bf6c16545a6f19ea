"""jdiff verify: check that the files of a run are those that were written."""

from __future__ import annotations

from jdiff.commands import flags

USAGE = "RUN"


def define_flags() -> None:
    """None."""


def run(arguments: list[str]) -> None:
    (path,) = flags.take_paths("verify", arguments, "the run")
    from jdiff.runs.verify import verify_run

    verify_run(path)
