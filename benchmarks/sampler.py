"""``python -m benchmarks sampler``: the cost of one compiled program for all settings, and accuracy by steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from benchmarks import steps
from benchmarks.claims import Claim, median_interval, paired_ratios, report
from benchmarks.one_program import dedicated_sampler, general_sampler
from jdiff.runs import directory


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim, of a text-to-image run of shapes. Returns the exit status."""
    path = steps.find_shapes_run(runs)
    if path is None:
        missing = Claim("a trained run to sample from", None, note="`make demo` trains one")
        return report("sampler", [missing], quick=quick)
    return report("sampler", chain(_cost(path, quick), () if quick else steps.claims(path)), quick=quick)


def _cost(run: Path, quick: bool) -> Iterator[Claim]:
    """The time of the program for all settings, at 20 of 1000 rows, over that of a dedicated scan of the 20 rows."""
    model = directory.load(run)
    for b in (8,) if quick else (1, 8):
        for scale in (1.0, 3.0):
            settings = replace(model.settings, solver="ddim", eta=0.0, steps=20, guidance_scale=scale)
            general, dedicated_program = general_sampler(model, settings, b), dedicated_sampler(model, settings, b)
            images, dedicated_images = np.asarray(general()), np.asarray(dedicated_program())
            ratios = paired_ratios(general, dedicated_program, 6 if quick else 41)
            kind = f"batch {b}, {'guided' if scale != 1 else 'unguided'}"
            text = f"time over a dedicated program's, {kind}"
            yield Claim(text, float(np.median(ratios)), 1.03, at_most=True, interval=median_interval(ratios))
            difference = np.abs(images.astype(int) - dedicated_images.astype(int)).max()
            yield Claim(f"largest difference of a pixel, of 255, {kind}", float(difference), 1, at_most=True)
