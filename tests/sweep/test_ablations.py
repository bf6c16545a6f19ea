"""The tables of docs/ablations.md follow from the results in docs/ablations/*.csv, for every shipped sweep."""

import csv
import dataclasses
import json
import re
import runpy
from pathlib import Path

import pytest

from jdiff import cli
from jdiff.build.sections import plain
from jdiff.sweep import cells, report

DOCS = Path(__file__).parents[2] / "docs"
DEMO = ("demo_clip", "demo_t2i")
SWEEPS = sorted((Path(cli.shipped_configs()["spiral"]).parent / "sweeps").glob("*.py"))


def tables(text):
    """The Markdown tables of a text: the measure, which the header's first cell names, and the rows of each."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    cells_by_line = [
        [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()] for block in blocks
    ]
    return [(header[0], rows) for header, _, *rows in cells_by_line]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_table_follows_from_the_measured_results(path, tmp_path, monkeypatch):
    """Variants, numbers and verdicts of all cells of the sweep as it is shipped; the words around them are free."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "shapes"  # the run directory of `make demo`, as far as a sweep's cells need it
    run.mkdir(parents=True)
    clip, demo = (plain(runpy.run_path(str(cli.shipped_configs()[name]))["get_config"]("")) for name in DEMO)
    demo |= {"text": clip["text"] | demo["text"], "tokenizer": clip["tokenizer"]}
    (run / "config.json").write_text(json.dumps(demo))
    plan = cells.read(str(path), cli._resolved)
    by_key = {cell.key: cell for cell in plan.cells}
    with (DOCS / "ablations" / f"{plan.name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == list(by_key), "the sweep has changed since, and must be run again"
    assert [row["run"] for row in rows] == [cell.run for cell in plan.cells]
    results = [(by_key[row["cell"]], {name: float(row[name]) for name in plan.compare}) for row in rows]
    page_tables = tables((DOCS / "ablations.md").read_text())
    for verdict in report.verdicts(plan, results):
        assert tables(report.markdown(verdict))[0] in page_tables


@pytest.mark.parametrize("key", ["train.log_every", "train.save_every", "train.sample_every", "train.keep"])
def test_key_of_a_cell_ignores_reports_and_devices(key):
    """Results stay valid when a config only logs, saves or spreads its training otherwise."""
    cell = cells.Cell({}, {"train": {"steps": 1}, "data": {"source": "shapes"}, "sample": {"steps": 20}})
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
