"""A sweep as its file says it, checked whole; its cells by what they are, and which of them are done.

A cell is its resolved config: two that agree in it are one. Cells that differ only in how they draw or are measured
are of one run, which is trained once. In the sweep's directory, ``runs/KEY`` is a run, ``cells/KEY.json`` what was
measured of a cell, ``failed/KEY.json`` why a run could not be.
"""

from __future__ import annotations

import hashlib
import json
import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jdiff import build, storage
from jdiff.build import Experiment, Spiral
from jdiff.build.sections import plain
from jdiff.construct import ConfigError, construct
from jdiff.sweep.algebra import SEED
from jdiff.training import ema

AFTER = ("sample", "measure")  # sections that say nothing of how a run is trained
DRAWN = "measure" + SEED
BETTER = ("higher", "lower")
Variant = tuple[tuple[str, Any], ...]  # what cells say but for their seeds


@dataclass(frozen=True)
class Measure:
    """How a cell is measured. num: prompts, pairs or points; the kind's own number if 0.   seed: of what is drawn.

    average: which of the run's, as of ``runs.restore_weights``.
    """

    num: int = 0
    seed: int = 0
    split: str = "test"
    average: str | None = None


@dataclass(frozen=True)
class Cell:
    """said: what it says beside the base, by dotted key.   config: all it says, with a section ``measure``."""

    said: dict[str, Any]
    config: dict[str, Any]

    @cached_property
    def key(self) -> str:
        return _hash(self.config)

    @cached_property
    def run(self) -> str:
        """The key of what is trained."""
        return _hash({name: section for name, section in self.config.items() if name not in AFTER})

    @property
    def variant(self) -> Variant:
        """What it is but for its seed."""
        return tuple((key, value) for key, value in self.said.items() if not key.endswith(SEED))

    @property
    def repetition(self) -> tuple[tuple[str, Any], ...]:
        """Its seed: that of training, where it says one, for what one run draws is no repetition of training it."""
        own = {key: value for key, value in self.said.items() if key.endswith(SEED)}
        return tuple((key, value) for key, value in own.items() if key != DRAWN or own.keys() == {DRAWN})

    @cached_property
    def setup(self) -> Experiment | Spiral:
        return _setup(self.config)

    @property
    def measure(self) -> Measure:
        return construct("measure", Measure, self.config["measure"])


@dataclass(frozen=True)
class Sweep:
    """cells: in the file's order.   compare: which is better of each measure, the first being what the sweep is about.

    baseline: what those say that others are compared with, by dotted key; the best one of all if not said.
    trained: a run that all cells are drawn by, in place of runs of their own.
    """

    name: str
    base: str
    cells: tuple[Cell, ...]
    compare: dict[str, str]
    baseline: dict[str, Any] = field(default_factory=dict)
    trained: str | None = None

    def words(self, said: Mapping[str, Any]) -> str:
        """What sets a cell apart from others, to be read."""
        return words({key: value for key, value in said.items() if key in self.axes})

    @cached_property
    def axes(self) -> dict[str, list]:
        """The keys that cells differ in, each with its values, None where a cell does not say it."""
        values: dict[str, list] = {}
        for key in dict.fromkeys(key for cell in self.cells for key in cell.said):
            values[key] = list(dict.fromkeys(cell.said.get(key) for cell in self.cells))
        return {key: found for key, found in values.items() if len(found) > 1}

    @property
    def variant_axes(self) -> dict[str, list]:
        """As ``axes``, but for seeds."""
        return {key: values for key, values in self.axes.items() if not key.endswith(SEED)}

    def reference(self, variant: Variant) -> Variant | None:
        """What a variant is compared with: the one of the baseline, or where there are several the one that is like it
        in all else that both say, or the base does; None where there is not one."""
        found = [one for one in self.variants if self.baseline.items() <= dict(one).items()]
        if len(found) > 1:
            found = [one for one in found if self._alike(one, variant)]
        return found[0] if len(found) == 1 else None

    def _alike(self, one: Variant, other: Variant) -> bool:
        for key in self.variant_axes.keys() - self.baseline.keys():
            section, _, name = key.partition(".")
            values = {_frozen(self.variants[of].config[section].get(name)) for of in (one, other)} - {None}
            if len(values) > 1:
                return False
        return True

    @cached_property
    def variants(self) -> dict[Variant, Cell]:
        """The variants, each with a cell of its own."""
        return {cell.variant: cell for cell in reversed(self.cells)}

    @cached_property
    def runs(self) -> dict[str, list[Cell]]:
        """The cells of each run, by its key; of a run that is trained already, those of each variant apart."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            key = cell.run
            if self.trained:
                key = _hash(cell.config | {"measure": cell.config["measure"] | {"seed": None}})
            found.setdefault(key, []).append(cell)
        return found


def read(path: str, config_file: Callable[[str], str]) -> Sweep:
    """The sweep of a file, each of whose cells is a config that can be built. Raises ``ConfigError``.

    config_file: from a config's name to its file, with :variant after it.
    """
    said = runpy.run_path(path)
    for name in ("sweep", "COMPARE"):
        if name not in said:
            raise ConfigError(f"{path} has no {name}")
    if ("BASE" in said) == ("RUN" in said):
        raise ConfigError(f"{path} must have BASE, a config to train, or RUN, a run to draw by, and not both")
    for measure, better in said["COMPARE"].items():
        if better not in BETTER:
            raise ConfigError(
                f"COMPARE of {path} says {better!r} is better of {measure}; it can be 'higher' or 'lower'"
            )
    if "RUN" in said:
        base, config = said["RUN"], epath.Path(said["RUN"]) / "config.json"
        if not config.exists():
            raise ConfigError(f"RUN of {path} is {base}, where there is no run; train it first")
        config = json.loads(config.read_text())
        if "train" not in config:
            raise ConfigError(f"RUN of {path} is {base}, which is no run of ours; jdiff convert makes one of it")
    else:
        base = said["BASE"]
        file, _, variant = config_file(base).partition(":")
        config = plain(runpy.run_path(file)["get_config"](variant))
    try:
        listed = said["sweep"]()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    cells = tuple(_cell(config, one, said.get("MEASURE", {}), path) for one in listed)
    if not cells:
        raise ConfigError(f"{path} has no cells")
    known = {}
    for cell in cells:
        if (other := known.setdefault(cell.key, cell)) is not cell:
            raise ConfigError(f"{path} has one cell twice: {words(other.said)}, and {words(cell.said)}")
        if "RUN" in said and (outside := {key.split(".")[0] for key in cell.said} - set(AFTER)):
            raise ConfigError(f"{path} has a RUN, which is trained already, but a cell says {', '.join(outside)}")
    baseline = {key: _frozen(value) for key, value in said.get("BASELINE", {}).items()}
    plan = Sweep(Path(path).stem, base, cells, dict(said["COMPARE"]), baseline, said.get("RUN"))
    references = {one: plan.reference(one) for one in plan.variants} if baseline else {}
    for variant, reference in references.items():
        if reference is None:
            raise ConfigError(
                f"BASELINE of {path} is {words(baseline)}, but there is not one variant of it to compare with "
                f"{words(variant)}"
            )
    if len(references) > 1 and all(one == reference for one, reference in references.items()):
        raise ConfigError(f"BASELINE of {path} is {words(baseline)}, which all its variants say; nothing is compared")
    return plan


def _cell(base: Mapping, said: Mapping[str, Any], measure: Mapping, path: str) -> Cell:
    said = {key: _frozen(value) for key, value in said.items()}
    config = {name: dict(section) for name, section in base.items()} | {"measure": dict(measure)}
    for key, value in said.items():
        section, dot, name = key.partition(".")
        if not dot or "." in name:
            raise ConfigError(f"{path} says {key}; a key is that of a section, as train.steps")
        config.setdefault(section, {})[name] = value
    config = plain(config)
    try:
        own = construct("measure", Measure, config["measure"])
        _check_measure(_setup(config), own, said)
    except ConfigError as error:
        raise ConfigError(f"{path}, cell {words(said)}: {error}") from error
    return Cell(said, config | {"measure": asdict(own)})


def _frozen(value: Any) -> Any:
    """A value that can be compared, hashed and written: a list as a tuple, a number of NumPy's as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return value.item() if isinstance(value, np.generic) else value


def _setup(config: Mapping) -> Experiment | Spiral:
    own = {name: section for name, section in config.items() if name != "measure"}
    points = own.get("train", {}).get("task") == "points"
    return build.spiral(own) if points else build.experiment(own)


def _check_measure(setup: Experiment | Spiral, measure: Measure, said: Mapping) -> None:
    """Raise ``ConfigError`` where a run cannot be measured so, as far as the config tells."""
    if measure.num < 0 or measure.num == 1 or measure.seed < 0:
        raise ConfigError(
            f"measure.num is {measure.num} and measure.seed {measure.seed}; num must be 0 or 2 and more, seed 0 or more"
        )
    if DRAWN in said and setup.train.task == "contrastive":
        raise ConfigError(f"{DRAWN} is {measure.seed}, but of a dual encoder nothing is drawn; train.seed repeats it")
    names = (ema.NO_EMA, *setup.ema_config().names)
    made = isinstance(setup, Experiment) and setup.ema.snapshot_every and ema.parse_width(str(measure.average))
    if measure.average not in (None, *names) and not made:
        raise ConfigError(
            f"measure.average is {measure.average}, but the run will have {', '.join(names)} (config.ema)"
        )


def _hash(config: Mapping) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def words(said: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """What a cell or a variant says, to be read."""
    pairs = said.items() if isinstance(said, Mapping) else said
    return ", ".join(f"{key}={value}" for key, value in pairs) or "the base"


class Store:
    """What there is of a sweep in its directory."""

    def __init__(self, workdir: epath.PathLike):
        self.path = epath.Path(workdir)
        self.on_disk = storage.on_disk(workdir)

    def run(self, key: str) -> epath.Path:
        return self.path / "runs" / key

    def found(self, cell: Cell) -> dict[str, float] | None:
        """What was measured of a cell, None where it is not done."""
        path = self.path / "cells" / f"{cell.key}.json"
        return json.loads(path.read_text())["found"] if path.exists() else None

    def done(self, sweep: Sweep) -> list[tuple[Cell, dict[str, float]]]:
        """The cells that are done, in the sweep's order, and what was measured of each."""
        return [(cell, found) for cell in sweep.cells if (found := self.found(cell)) is not None]

    def finish(self, cell: Cell, found: dict[str, float]) -> None:
        """Keep what was measured of a cell, whole or not at all."""
        self._write("cells", cell.key, {"said": cell.said, "run": cell.run, "found": found})

    def failure(self, key: str) -> str | None:
        """Why a run could not be, None where it has not failed."""
        path = self.path / "failed" / f"{key}.json"
        return json.loads(path.read_text())["why"] if path.exists() else None

    def fail(self, key: str, why: str) -> None:
        self._write("failed", key, {"why": why})

    def forgive(self, key: str) -> None:
        """Let a run be tried again."""
        (self.path / "failed" / f"{key}.json").unlink(missing_ok=True)

    def left(self, sweep: Sweep) -> list[str]:
        """The runs that have cells to do, and have not failed."""
        return [
            key
            for key, cells in sweep.runs.items()
            if self.failure(key) is None and any(self.found(cell) is None for cell in cells)
        ]

    def _write(self, kind: str, key: str, content: dict) -> None:
        folder = self.path / kind
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / f".{key}.part"
        half.write_text(json.dumps(content, indent=2) + "\n")
        half.replace(folder / f"{key}.json")
