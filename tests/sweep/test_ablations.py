"""docs/ablations.md says what the results beside it say, of the sweeps that are shipped."""

import csv
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


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_table_follows_from_what_was_measured(path, tmp_path, monkeypatch):
    """Of all cells of the sweep as it is shipped."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "shapes"  # what `make demo` leaves, as far as a sweep's cells need it
    run.mkdir(parents=True)
    clip, demo = (plain(runpy.run_path(str(cli.shipped_configs()[name]))["get_config"]("")) for name in DEMO)
    demo |= {"text": clip["text"] | demo["text"], "tokenizer": clip["tokenizer"]}
    (run / "config.json").write_text(json.dumps(demo))
    plan = cells.read(str(path), cli._resolved)
    page, by_key = (DOCS / "ablations.md").read_text(), {cell.key: cell for cell in plan.cells}
    with (DOCS / "ablations" / f"{plan.name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == list(by_key), "the sweep has changed since, and must be run again"
    done = [(by_key[row["cell"]], {name: float(row[name]) for name in plan.compare}) for row in rows]
    for verdict in report.verdicts(plan, done):
        assert report.markdown(verdict) in page


def test_every_plot_is_there():
    linked = re.findall(r"\]\(([^)]*\.png)\)", (DOCS / "ablations.md").read_text())
    assert len(linked) >= len(SWEEPS) and all((DOCS / link).exists() for link in linked)
    assert {path.name for path in (DOCS / "ablations").glob("*.png")} == {Path(link).name for link in linked}
