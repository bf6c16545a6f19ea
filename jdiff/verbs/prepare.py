"""jdiff prepare: captioned images onto disk."""

from __future__ import annotations

import itertools
import time
from collections import Counter

from rich.console import Console

from jdiff.build import Experiment
from jdiff.data import records


def prepare(setup: Experiment) -> None:
    """Write the records that a config names, and say what was left out and why."""
    builder = setup.dataset()
    if builder.has_records():
        print(f"prepared already: {builder.data_dir}")
    else:
        print(f"writing {builder.builder_config.name} to {builder.data_dir}")
        with Console(stderr=True).status("starting") as status:
            began, count = time.monotonic(), itertools.count(1)

            def show(item) -> None:
                n = next(count)
                if n % 500 == 0:
                    status.update(f"{n} items, {n / (time.monotonic() - began):.0f} a second")

            builder.on_item = show
            records.prepare(builder)
    report = records.prepare(builder)
    for split, count in sorted(report.num_examples.items()):
        print(f"  {split}: {count} captioned images")
    if report.rejected:
        reasons = Counter(item.reason.split(":")[0] for item in report.rejected)
        print(f"  left out: {len(report.rejected)}, listed in {builder.report_path}")
        for reason, count in reasons.most_common(5):
            print(f"    {count} x {reason}")
