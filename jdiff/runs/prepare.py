"""Preparing a data set: captioned images onto disk as records."""

from __future__ import annotations

import itertools
import time
from collections import Counter

from rich.console import Console

from jdiff.data import records
from jdiff.tasks.task import ImageTextTask


def prepare(task: ImageTextTask) -> None:
    """Write the records that a config names, and print what was rejected and why."""
    builder = task.dataset()
    if builder.has_records():
        print(f"prepared already: {builder.data_dir}")
    else:
        print(f"writing {builder.builder_config.name} to {builder.data_dir}")
        with Console(stderr=True).status("starting") as status:
            start, count = time.monotonic(), itertools.count(1)

            def show(item) -> None:
                n = next(count)
                if n % 500 == 0:
                    status.update(f"{n} items, {n / (time.monotonic() - start):.0f} items/s")

            builder.on_item = show
            records.write_records(builder)
    report = records.write_records(builder)
    for split, count in sorted(report.num_examples.items()):
        print(f"  {split}: {count} captioned images")
    if report.rejected:
        reasons = Counter(item.reason.split(":")[0] for item in report.rejected)
        print(f"  rejected: {len(report.rejected)}, listed in {builder.report_path}")
        for reason, count in reasons.most_common(5):
            print(f"    {count} x {reason}")
