"""A sweep as its file defines it, checked whole: which configs it compares.

A cell is a resolved config: two that agree in every key that decides a result are one (``NOT_HASHED`` has the others).
Cells that differ only in how they sample or are measured share a run, which is trained once.
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

from jdiff.config.construct import ConfigError, construct
from jdiff.config.keys import plain, set_key
from jdiff.runs.directory import is_run, saved_config
from jdiff.sweep.algebra import SEED
from jdiff.tasks import AnyTask, make_task
from jdiff.training.ema import NO_EMA, parse_width

NOT_TRAINED = ("sample", "measure")  # sections that do not change how a run is trained
# Keys that decide no result: when a run reports and saves, where its data is stored, which devices train it.
NOT_HASHED = {
    "train": ("log_every", "save_every", "sample_every", "evaluate_every", "evaluate_num", "keep"),
    "data": ("directory",),
    "mesh": None,  # the whole section
}
MEASURE_SEED = "measure" + SEED
BETTER = ("higher", "lower")
Variant = tuple[tuple[str, Any], ...]  # the values of a cell but for its seeds


@dataclass(frozen=True)
class Measure:
    """How a cell is measured. num: prompts, pairs or points; 0 for the task's default.   seed: of what is drawn.

    ema: the EMA of the run's parameters that is used, as of ``directory.restore_params``.
    """

    num: int = 0
    seed: int = 0
    split: str = "test"
    ema: str | None = None


@dataclass(frozen=True)
class Cell:
    """values: what it sets besides the base, by dotted key.   config: all of it, with a section ``measure``."""

    values: dict[str, Any]
    config: dict[str, Any]

    @cached_property
    def key(self) -> str:
        return _hash(self.config)

    @cached_property
    def run(self) -> str:
        """The key of what is trained."""
        return _hash({name: section for name, section in self.config.items() if name not in NOT_TRAINED})

    @property
    def variant(self) -> Variant:
        """The cell without its seeds."""
        return tuple((key, value) for key, value in self.values.items() if not key.endswith(SEED))

    @property
    def repetition(self) -> tuple[tuple[str, Any], ...]:
        """Its seed: that of training, where it sets one, as what one run draws is no repetition of its training."""
        seeds = {key: value for key, value in self.values.items() if key.endswith(SEED)}
        drawn_only = seeds.keys() == {MEASURE_SEED}
        return tuple((key, value) for key, value in seeds.items() if key != MEASURE_SEED or drawn_only)

    @cached_property
    def task(self) -> AnyTask:
        return _make_task(self.config)

    @property
    def measure(self) -> Measure:
        return construct("measure", Measure, self.config["measure"])


@dataclass(frozen=True)
class Sweep:
    """cells: in the file's order.   compare: which is better of each measure, the first being what the sweep is about.

    baseline: values, by dotted key, of the variant that others are compared with; empty for the best of all.
    trained_run: a run that all cells sample with, in place of runs of their own.
    """

    name: str
    base: str
    cells: tuple[Cell, ...]
    compare: dict[str, str]
    baseline: dict[str, Any] = field(default_factory=dict)
    trained_run: str | None = None

    def label(self, values: Mapping[str, Any]) -> str:
        """What distinguishes a cell from others, to be read."""
        return label({key: value for key, value in values.items() if key in self.axes})

    @cached_property
    def axes(self) -> dict[str, list]:
        """The keys that cells differ in, each with its values, None where a cell does not set it."""
        values: dict[str, list] = {}
        for key in dict.fromkeys(key for cell in self.cells for key in cell.values):
            values[key] = list(dict.fromkeys(cell.values.get(key) for cell in self.cells))
        return {key: of_cells for key, of_cells in values.items() if len(of_cells) > 1}

    @property
    def variant_axes(self) -> dict[str, list]:
        """As ``axes``, without seeds."""
        return {key: values for key, values in self.axes.items() if not key.endswith(SEED)}

    def reference(self, variant: Variant) -> Variant | None:
        """What a variant is compared with: the one with the baseline's values; where there are several, the one that
        agrees with it in all other axes that both, or the base, set; None where there is not exactly one."""
        candidates = [other for other in self.variants if self.baseline.items() <= dict(other).items()]
        if len(candidates) > 1:
            candidates = [other for other in candidates if self._agree(other, variant)]
        return candidates[0] if len(candidates) == 1 else None

    def _agree(self, a: Variant, b: Variant) -> bool:
        for key in self.variant_axes.keys() - self.baseline.keys():
            section, *path = key.split(".")
            values = {_hashable(_get_nested(self.variants[v].config[section], path)) for v in (a, b)} - {None}
            if len(values) > 1:
                return False
        return True

    @cached_property
    def variants(self) -> dict[Variant, Cell]:
        """The variants, each with one of its cells."""
        return {cell.variant: cell for cell in reversed(self.cells)}

    @cached_property
    def runs(self) -> dict[str, list[Cell]]:
        """The cells of each run, by its key; with a trained run, those of each variant under a key of their own."""
        runs: dict[str, list[Cell]] = {}
        for cell in self.cells:
            key = cell.run
            if self.trained_run:
                key = _hash(cell.config | {"measure": cell.config["measure"] | {"seed": None}})
            runs.setdefault(key, []).append(cell)
        return runs


def read_sweep(path: str, config_file: Callable[[str], str]) -> Sweep:
    """The sweep of a file, each of whose cells is a valid config. Raises ``ConfigError``.

    config_file: from a config's name to its file, with :variant after it.
    """
    module = runpy.run_path(path)
    for name in ("sweep", "COMPARE"):
        if name not in module:
            raise ConfigError(f"{path} has no {name}")
    if ("BASE" in module) == ("RUN" in module):
        raise ConfigError(f"{path} must have either BASE, a config to train, or RUN, a run to sample with")
    for measure, better in module["COMPARE"].items():
        if better not in BETTER:
            raise ConfigError(f"COMPARE['{measure}'] of {path} is {better!r}; it must be 'higher' or 'lower'")
    if "RUN" in module:
        base = module["RUN"]
        if not epath.Path(base).exists():
            raise ConfigError(f"RUN of {path} is {base}, where there is no run; train it first")
        if not is_run(base):
            raise ConfigError(f"RUN of {path} is {base}, which is not a run of jdiff; `jdiff convert` makes one of it")
        config = saved_config(base)
    else:
        base = module["BASE"]
        file, _, variant = config_file(base).partition(":")
        config = plain(runpy.run_path(file)["get_config"](variant))
    try:
        rows = module["sweep"]()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    cells = tuple(_make_cell(config, values, module.get("MEASURE", {}), path) for values in rows)
    if not cells:
        raise ConfigError(f"{path} has no cells")
    _check_cells(cells, path, has_run="RUN" in module)
    baseline = {key: _hashable(value) for key, value in module.get("BASELINE", {}).items()}
    sweep = Sweep(Path(path).stem, base, cells, dict(module["COMPARE"]), baseline, module.get("RUN"))
    _check_baseline(sweep, path)
    return sweep


def _check_cells(cells: tuple[Cell, ...], path: str, *, has_run: bool) -> None:
    by_key: dict[str, Cell] = {}
    for cell in cells:
        if (other := by_key.setdefault(cell.key, cell)) is not cell:
            raise ConfigError(f"{path} has one cell twice: {label(other.values)}, and {label(cell.values)}")
        if has_run and (sections := {key.split(".")[0] for key in cell.values} - set(NOT_TRAINED)):
            raise ConfigError(f"{path} has a RUN, which is trained already, but a cell sets {', '.join(sections)}")


def _check_baseline(sweep: Sweep, path: str) -> None:
    references = {variant: sweep.reference(variant) for variant in sweep.variants} if sweep.baseline else {}
    for variant, reference in references.items():
        if reference is None:
            raise ConfigError(
                f"BASELINE of {path} is {label(sweep.baseline)}, but not exactly one variant has it to compare with "
                f"{label(variant)}"
            )
    if len(references) > 1 and all(variant == reference for variant, reference in references.items()):
        raise ConfigError(f"BASELINE of {path} is {label(sweep.baseline)}, as in all its variants; nothing is compared")


def _make_cell(base: Mapping, values: Mapping[str, Any], measure: Mapping, path: str) -> Cell:
    values = {key: _hashable(value) for key, value in values.items()}
    config = {name: dict(section) for name, section in base.items()} | {"measure": dict(measure)}
    for key, value in sorted(values.items(), key=lambda item: item[0].count(".")):  # a choice before its parameters
        if "." not in key:
            raise ConfigError(f"{path} sets {key}; a key is one of a section, such as train.steps")
        if isinstance(value, Mapping):
            raise ConfigError(
                f"{path} sets {key} to a dict; set {key} to a name, and parameters by keys such as {key}.x"
            )
        set_key(config, key, value)
    config = plain(config)
    try:
        section = construct("measure", Measure, config["measure"])
        _check_measure(_make_task(config), section, values)
    except ConfigError as error:
        raise ConfigError(f"{path}, cell {label(values)}: {error}") from error
    return Cell(values, config | {"measure": asdict(section)})


def _get_nested(section: Any, names: list[str]) -> Any:
    """The value of a key, None where it is not set; of a choice with parameters its name."""
    for name in names:
        section = section.get(name) if isinstance(section, Mapping) else None
    return section.get("name") if isinstance(section, Mapping) else section


def _hashable(value: Any) -> Any:
    """A value that can be compared, hashed and written: a list as a tuple, a number of NumPy's as Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value.item() if isinstance(value, np.generic) else value


def _make_task(config: Mapping) -> AnyTask:
    return make_task({name: section for name, section in config.items() if name != "measure"})


def _check_measure(task: AnyTask, measure: Measure, values: Mapping) -> None:
    """Raise ``ConfigError`` where a run cannot be measured so, as far as the config determines."""
    if measure.num < 0 or measure.num == 1 or measure.seed < 0:
        raise ConfigError(
            f"measure.num is {measure.num} and measure.seed {measure.seed}; num must be 0 or from 2, seed from 0"
        )
    if MEASURE_SEED in values and not task.draws:
        raise ConfigError(f"{MEASURE_SEED} is {measure.seed}, but task '{task.name}' draws nothing; vary train.seed")
    names = (NO_EMA, *task.config.ema.config().names)
    posthoc = task.has_run_dir and task.config.ema.snapshot_every and parse_width(str(measure.ema))
    if measure.ema not in (None, *names) and not posthoc:
        raise ConfigError(f"measure.ema is {measure.ema}, but the run will have {', '.join(names)} (config.ema)")


def _hash(config: Mapping) -> str:
    """The key of a config, by all that decides its results: 12 hexadecimal digits of SHA-256."""
    config = {
        name: {key: value for key, value in section.items() if key not in NOT_HASHED.get(name, ())}
        for name, section in config.items()
        if NOT_HASHED.get(name, ()) is not None
    }
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def label(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """The values of a cell or a variant, to be read."""
    pairs = values.items() if isinstance(values, Mapping) else values
    return ", ".join(f"{key}={value}" for key, value in pairs) or "the base"
