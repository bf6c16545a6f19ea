"""The tables of docs/evidence/ablations.md follow from the results of every shipped sweep, in CSV files beside it."""

import csv
import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from jdiff.commands.flags import config_file, shipped_configs
from jdiff.config.keys import plain
from jdiff.runs import directory
from jdiff.sweep import report
from jdiff.sweep.cells import Cell, read_sweep

DOCS = Path(__file__).parents[2] / "docs" / "evidence"
DEMO = ("demo_clip", "demo_t2i")
SWEEPS = sorted((Path(shipped_configs()["spiral"]).parent / "sweeps").glob("*.py"))


def tables(text):
    """The Markdown tables of a text: the measure, which the header's first cell names, and the rows of each."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells_by_line = [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()] for block in blocks
    ]
    return [(header[0], rows) for header, _, *rows in cells_by_line]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_table_follows_from_the_measured_results(path, tmp_path, monkeypatch):
    """Variants, numbers and verdicts of all cells of the shipped sweep; the prose around them is free."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "shapes"  # the config of the run of `make demo`; cells need no more
    run.mkdir(parents=True)
    clip, demo = (plain(runpy.run_path(str(shipped_configs()[name]))["get_config"]("")) for name in DEMO)
    demo |= {"text": clip["text"] | demo["text"], "tokenizer": clip["tokenizer"]}
    directory.write_config(run, demo)
    sweep = read_sweep(str(path), config_file)
    by_key = {cell.key: cell for cell in sweep.cells}
    with (DOCS / "ablations" / f"{sweep.name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == list(by_key), "the sweep has changed since, and must be rerun"
    assert [row["run"] for row in rows] == [cell.run for cell in sweep.cells]
    results = [(by_key[row["cell"]], {name: float(row[name]) for name in sweep.compare}) for row in rows]
    page_tables = tables((DOCS / "ablations.md").read_text())
    for verdict in report.verdicts(sweep, results):
        assert tables(report.markdown(verdict))[0] in page_tables


@pytest.mark.parametrize("key", ["train.log_every", "train.save_every", "train.sample_every", "train.keep"])
def test_key_of_a_cell_ignores_logs_checkpoints_and_devices(key):
    """Results stay valid when a config only changes when to log or save, where its data is, or its mesh."""
    cell = Cell({}, {"train": {"steps": 1}, "data": {"source": "shapes"}, "sample": {"steps": 20}})
    section, _, name = key.partition(".")
    config = {**cell.config, "data": {"source": "shapes", "directory": "elsewhere"}, "mesh": {"fsdp": 2}}
    variant = dataclasses.replace(cell, config=config | {section: config[section] | {name: 7}})
    assert (variant.key, variant.run) == (cell.key, cell.run)
    longer = dataclasses.replace(cell, config=cell.config | {"train": {"steps": 2}})
    assert longer.key != cell.key and longer.run != cell.run
    redrawn = dataclasses.replace(cell, config=cell.config | {"sample": {"steps": 10}})
    assert redrawn.key != cell.key and redrawn.run == cell.run


def test_every_plot_exists():
    linked_files = re.findall(r"\]\(([^)]*\.png)\)", (DOCS / "ablations.md").read_text())
    assert len(linked_files) >= len(SWEEPS) and all((DOCS / link).exists() for link in linked_files)
    assert {path.name for path in (DOCS / "ablations").glob("*.png")} == {Path(link).name for link in linked_files}
