"""jdiff export: a sampler in files that need JAX alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags as absl_flags

from jdiff.commands import flags

USAGE = "RUN DESTINATION"


def define_flags() -> None:
    flags.define_hints()
    flags.define_ema()
    flags.define_settings()
    absl_flags.DEFINE_integer("max_rows", 1000, "Most rows of any settings that may replace the exported ones.", 1)


def run(arguments: list[str]) -> None:
    source, destination = flags.take_paths("export", arguments, "the model", "the new folder")
    f = absl_flags.FLAGS
    export(source, destination, hints=flags.hints(), changes=flags.settings(), max_rows=f.max_rows, ema=f.ema)


def export(
    source: str, destination: str, *, hints: Any, changes: dict[str, Any], max_rows: int, ema: str | None = None
) -> None:
    """Write the model at ``source`` as a folder that draws by itself.

    changes: to the config's sampling settings; settings.safetensors, which holds them, is data of the program.
    max_rows: the most rows of any settings that may replace them.   ema: as of ``directory.restore_params``.
    Raises ``ConfigError`` where ``destination`` is not empty.
    """
    from jdiff.inference import exported
    from jdiff.runs import directory

    folder = directory.new_folder(destination)
    sampler, step = directory.load_sampler(source, hints, ema)
    sampler = exported.portable(dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, **changes)))
    rows = sampler.inputs([sampler.settings], max_rows=max_rows).tableau.num_rows  # refuse impossible settings first
    print(f"writing a program of up to {rows} rows for any number of images, on CPU, CUDA and TPU")
    exported.write_folder(folder, sampler, max_rows, {"source": source, "step": step, "ema": ema})
    print(f"wrote {folder}; `python {folder / 'draw.py'} 'a red circle'` draws, without jdiff")
