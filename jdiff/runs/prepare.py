"""Preparing a data set: captioned images onto disk as records."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections import defaultdict

from rich.console import Console

from jdiff.data import records
from jdiff.data.record_writer import RecordsReport, write_records
from jdiff.data.tokenizer import Tokenizer
from jdiff.runs import directory
from jdiff.runs.begin import note_on_truncation
from jdiff.tasks.task import ImageTextTask


def prepare(task: ImageTextTask) -> None:
    """Write the records that a config names, and print what was rejected and why."""
    section = task.config.data
    source = section.make_source()
    changes = records.changed_files(source, section.directory)
    name = records.dataset_name(source)
    folder = records.records_folder(section.directory, name)
    if changes:
        print(f"files in config.data.path changed since the last `jdiff prepare`: {changes}")
    if problem := records.what_is_missing(folder):
        if folder.exists():
            print(f"the records at {folder} are incomplete: {problem}; writing them again")
        print(f"writing {name} to {folder}")
    else:
        print(f"prepared already: {folder}")
    with Console(stderr=True).status("starting") as status:
        start, count = time.monotonic(), itertools.count(1)

        def show(item: records.Example | records.Rejected) -> None:
            n = next(count)
            if n % 500 == 0:
                status.update(f"{n} items, {n / (time.monotonic() - start):.0f} items/s")

        report = write_records(source, section.directory, max_rejected=section.max_rejected, on_item=show)
    _print_report(report)
    dataset = records.Records(section.directory, name)
    tokenizer = _tokenizer(task, dataset) if "train" in dataset.num_examples else None
    if tokenizer and (note := note_on_truncation(tokenizer, dataset.captions("train"))):
        print(f"  {note}")


def _tokenizer(task: ImageTextTask, dataset: records.Records) -> Tokenizer | None:
    """The tokenizer that training will have; None where the model of the text tower does not exist yet."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        if path := task.init_from.get("text"):
            return directory.open_model(path).task.tokenizer
        if "text" not in task.frozen_by_default:
            return task.train_tokenizer(dataset.captions("train"))
    return None


def _print_report(report: RecordsReport) -> None:
    for split, count in sorted(report.num_examples.items()):
        print(f"  {split}: {count} captioned images")
    if report.copies["within"]:
        print(f"  copies: {report.copies['within']} images have the pixels of another one of their split")
    if report.copies["across"]:
        print(f"  copies: {report.copies['across']} images of other splits have the pixels of one in train")
    if report.rejected:
        print(f"  rejected: {len(report.rejected)}, listed in {report.report_file}")
        groups: dict[str, list[records.Rejected]] = defaultdict(list)
        for item in report.rejected:
            groups[_kind(item.reason)].append(item)
        for first, *others in sorted(groups.values(), key=len, reverse=True)[:5]:
            print(f"    {1 + len(others)} x {first.reason} ({first.key}{', ...' * bool(others)})")


def _kind(reason: str) -> str:
    """A reason without what differs from item to item: numbers, names of files, and what follows a colon."""
    return re.sub(r"\d[\d,.]*|\S+\.\w+", "", reason.split(":")[0])
