"""jdiff prepare: captioned images onto disk as records."""

from __future__ import annotations

from jdiff.commands import flags

USAGE = "--config"


def define_flags() -> None:
    flags.define_config()
    flags.define_workdir("Ignored; accepted so that train's arguments work.")


def run(arguments: list[str]) -> None:
    flags.no_arguments(arguments)
    from jdiff.runs.prepare import prepare

    prepare(flags.image_text_task())
