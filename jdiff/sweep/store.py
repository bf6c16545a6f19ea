"""What is done of a sweep, in its directory: ``runs/KEY`` is a run, ``cells/KEY.json`` what was measured of a cell,
``failed/KEY.json`` why a run failed."""

from __future__ import annotations

from typing import Any

from etils import epath

from jdiff import storage
from jdiff.sweep.cells import Cell, Sweep

REMEDY = "delete it, and run the sweep again"
Results = dict[str, float]  # of a cell, by the name of the measure


class Store:
    """The directory of a sweep."""

    def __init__(self, workdir: epath.PathLike):
        self.path = epath.Path(workdir)
        self.on_disk = storage.on_disk(workdir)

    def run_dir(self, key: str) -> epath.Path:
        return self.path / "runs" / key

    def results(self, cell: Cell) -> Results | None:
        """What was measured of a cell, None where it was not."""
        path = self.path / "cells" / f"{cell.key}.json"
        return storage.read_json(path, REMEDY, "results")["results"] if path.exists() else None

    def measured_cells(self, sweep: Sweep) -> list[tuple[Cell, Results]]:
        """The cells that were measured, in the sweep's order, with their results."""
        return [(cell, results) for cell in sweep.cells if (results := self.results(cell)) is not None]

    def save(self, cell: Cell, results: Results) -> None:
        """Keep what was measured of a cell, whole or not at all."""
        self._write("cells", cell.key, {"values": cell.values, "run": cell.run, "results": results})

    def failure(self, key: str) -> str | None:
        """Why a run failed, None where it did not."""
        path = self.path / "failed" / f"{key}.json"
        return storage.read_json(path, REMEDY, "reason")["reason"] if path.exists() else None

    def save_failure(self, key: str, reason: str) -> None:
        self._write("failed", key, {"reason": reason})

    def clear_failure(self, key: str) -> None:
        """Let a run be tried again."""
        (self.path / "failed" / f"{key}.json").unlink(missing_ok=True)

    def remaining_runs(self, sweep: Sweep) -> list[str]:
        """The runs that have cells to measure, and have not failed."""
        return [
            key
            for key, cells in sweep.runs.items()
            if self.failure(key) is None and any(self.results(cell) is None for cell in cells)
        ]

    def _write(self, kind: str, key: str, content: dict[str, Any]) -> None:
        folder = self.path / kind
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_json(folder / f"{key}.json", content)
