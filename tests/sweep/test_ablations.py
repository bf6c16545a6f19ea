"""docs/ablations.md says what the results beside it say, of the sweeps that are shipped."""

import json
import runpy
from pathlib import Path

import pytest

from jdiff import cli
from jdiff.build.sections import plain
from jdiff.sweep import cells, report

DOCS = Path(__file__).parents[2] / "docs"
SWEEPS = sorted((Path(cli.shipped_configs()["spiral"]).parent / "sweeps").glob("*.py"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_table_follows_from_what_was_measured(path, tmp_path, monkeypatch):
    """Of all cells of the sweep as it is shipped."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "shapes"  # what `make demo` leaves, as far as a sweep's cells need it
    run.mkdir(parents=True)
    demo = runpy.run_path(str(cli.shipped_configs()["demo_t2i"]))["get_config"]("")
    (run / "config.json").write_text(json.dumps(plain(demo)))
    plan = cells.read(str(path), cli._resolved)
    done = report.read(plan, DOCS / "ablations" / f"{plan.name}.csv")
    assert [cell for cell, _ in done] == list(plan.cells)
    page = (DOCS / "ablations.md").read_text()
    for verdict in report.verdicts(plan, done):
        assert report.markdown(verdict) in page
        assert f"ablations/{plan.name}_" in page  # and its plots
