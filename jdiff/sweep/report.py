"""What a sweep has found: results.csv, tables with verdicts, plots, and one page that needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jdiff.construct import ConfigError, nearest
from jdiff.sweep.cells import AFTER, Cell, Store, Sweep, Variant, words
from jdiff.sweep.statistics import LEAST, Difference, difference, paired, together

Done = Sequence[tuple[Cell, dict[str, float]]]  # what was measured of each cell
UNSAID = "as the base"  # of an axis
TICKS = 8  # of an axis, values that are each told
WIDE = 20.0  # from the least to the greatest of an axis, from which on it is drawn by its logarithm


@dataclass(frozen=True)
class Row:
    """A variant in one measure: its own mean, and how much higher it is than the one it is compared with, its
    reference; None of what is compared with no other."""

    variant: Variant
    mean: Difference
    reference: Variant | None
    beside: Difference | None


@dataclass(frozen=True)
class Verdict:
    """What may be said in one measure."""

    plan: Sweep
    measure: str
    rows: list[Row]

    @property
    def better(self) -> str:
        return self.plan.compare[self.measure]

    def words(self, variant: Variant) -> str:
        """What sets a variant apart, to be read."""
        return self.plan.words(dict(variant))

    def told(self, row: Row) -> str:
        """Better, worse, or neither."""
        if row.reference is None:
            return "reference"
        if row.beside is None:
            return "its reference is not measured"
        if row.beside.low is None:
            return f"fewer than {LEAST} seeds" if row.beside.count < LEAST else "the same of all seeds"
        sign = row.beside.sign if self.better == "higher" else -row.beside.sign
        return {1: "better", -1: "worse", 0: "not distinguishable"}[sign]

    @property
    def sentence(self) -> str:
        """All of it in words."""
        told: dict[str, list[str]] = {}
        for row in self.rows:
            told.setdefault(self.told(row), []).append(self.words(row.variant))
        references = told.pop("reference", [])
        beside = words(self.plan.baseline) if self.plan.baseline else "".join(references)
        parts = [f"{name}: {'; '.join(variants)}" for name, variants in told.items()]
        return f"{self.measure} ({self.better} is better), beside {beside}. " + ". ".join(parts)


def verdicts(plan: Sweep, done: Done) -> Iterator[Verdict]:
    """One for each measure that the sweep compares. Raises ``ConfigError`` where no cell has it."""
    known = _measures(done)
    for measure, better in plan.compare.items():
        values: dict[Variant, dict] = {}
        for cell, numbers in done:
            if measure in numbers:
                values.setdefault(cell.variant, {}).setdefault(cell.repetition, []).append(numbers[measure])
        by_seed = {one: {seed: float(np.mean(of)) for seed, of in own.items()} for one, own in values.items()}
        if not by_seed and done:
            raise ConfigError(f"COMPARE of {plan.name} says {measure}, which no cell has; {nearest(measure, known)}")
        if not by_seed:
            continue
        sign = 1 if better == "higher" else -1
        best = max(by_seed, key=lambda variant: sign * np.mean(list(by_seed[variant].values())))
        references = {one: plan.reference(one) if plan.baseline else best for one in by_seed}
        compared = sum(one != reference for one, reference in references.items())
        # The best is known by the same numbers, as if all had been compared with all.
        level = together(compared if plan.baseline else compared * (compared + 1) // 2)
        rows = []
        for one, reference in references.items():
            mean = difference(list(by_seed[one].values()))
            if one == reference:
                rows.append(Row(one, mean, None, None))
            else:
                beside = paired(by_seed[one], by_seed.get(reference, {}), level=level)
                rows.append(Row(one, mean, reference, beside))
        yield Verdict(plan, measure, rows)


def write(plan: Sweep, store: Store) -> list[epath.Path]:
    """Print the table and the verdicts, and write the files; returns those a user opens."""
    folder, done = store.path, store.done(plan)
    made = [folder / name for name in ("results.csv", "results.md", "report.html")]
    _csv(done, made[0])
    told = list(verdicts(plan, done))
    made[1].write_text("\n".join(map(markdown, told)))
    console = Console(width=160)
    for verdict in told:
        console.print(table(verdict))
        print(verdict.sentence)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = []
    for name, figure in _figures(plan, store, told):
        drawn.append(plots / f"{name}.png")
        with drawn[-1].open("wb") as file:
            FigureCanvasAgg(figure).print_png(file)
    made[2].write_text(_page(plan, store, len(done), told, drawn))
    return [*made, plots]


def _measures(done: Done) -> list[str]:
    """The names of all that was measured."""
    return list(dict.fromkeys(name for _, found in done for name in found))


def _csv(done: Done, path: epath.Path) -> None:
    keys = list(dict.fromkeys(key for cell, _ in done for key in cell.said))
    measures = _measures(done)
    with path.open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", "run", *keys, *measures])
        for cell, found in done:
            said = [str(cell.said[key]) if key in cell.said else "" for key in keys]
            writer.writerow([cell.key, cell.run, *said, *(found.get(name, "") for name in measures)])


def _interval(found: Difference | None, signed: bool = False) -> str:
    if found is None:
        return ""
    mean = f"{found.mean:+.4g}" if signed else f"{found.mean:.4g}"
    return mean if found.low is None else f"{mean} ({found.low:.4g} to {found.high:.4g})"


HEADER = ("seeds", "mean", "beside the reference", "verdict")
INTERVALS = "in brackets where the truth is in 95 of 100 cases: of each mean by itself, of all differences at once"


def _cells(verdict: Verdict) -> Iterator[list[str]]:
    for row in verdict.rows:
        beside = _interval(row.beside, signed=True)
        yield [verdict.words(row.variant), str(row.mean.count), _interval(row.mean), beside, verdict.told(row)]


def table(verdict: Verdict) -> Table:
    """A verdict for the terminal."""
    made = Table(verdict.measure, *HEADER, title=f"{verdict.better} is better; {INTERVALS}")
    for row in _cells(verdict):
        made.add_row(*row)
    return made


def markdown(verdict: Verdict) -> str:
    """A verdict in words, and its table, for a document."""
    rows = [[verdict.measure, *HEADER], ["---"] * (1 + len(HEADER)), *_cells(verdict)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{verdict.sentence}\n\n({INTERVALS[0].upper()}{INTERVALS[1:]}.)\n\n{table}"


def _figures(plan: Sweep, store: Store, told: Sequence[Verdict]) -> Iterator[tuple[str, Figure]]:
    """Plots by name: each measure over an axis, and over two as a map; the loss while training."""
    axes = plan.variant_axes
    for verdict in told:
        numbers = {key for key, values in axes.items() if all(map(_is_number, values))}
        if axes:
            along = max(axes, key=lambda key: (len(axes[key]), key in numbers))
            yield verdict.measure, _lines(verdict, along, axes[along], ordered=along in numbers)
        if len(axes) == 2:
            yield f"{verdict.measure}_map", _heat(verdict, axes)
    if curves := _losses(plan, store):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for variant, lines in curves.items():
            steps = sorted(set.intersection(*(set(line) for line in lines)))
            axes.plot(
                steps, [np.mean([line[step] for line in lines]) for step in steps], label=plan.words(dict(variant))
            )
        axes.set(xlabel="step", ylabel="loss, on the mean over seeds")
        axes.legend(fontsize=7)
        yield "loss_while_training", figure


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(verdict: Verdict, along: str, values: Sequence, ordered: bool) -> Figure:
    """A measure along an axis, a line for each combination of the others, or points where it has no order."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[Variant, list[tuple[Any, Difference]]] = {}
    for row in verdict.rows:
        rest = tuple((key, value) for key, value in row.variant if key != along)
        lines.setdefault(rest, []).append((dict(row.variant).get(along), row.mean))
    for i, (rest, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0] if ordered else values.index(point[0]))
        aside = 0.3 * (i + 0.5) / len(lines) - 0.15  # so that points do not hide each other
        low_high = [(0, 0) if of.low is None else (of.mean - of.low, of.high - of.mean) for _, of in points]
        axes.errorbar(
            [at if ordered else values.index(at) + aside for at, _ in points],
            [of.mean for _, of in points],
            np.transpose(low_high),
            marker="o",
            ms=4,
            ls="-" if ordered else "",
            capsize=3,
            label=verdict.words(rest) if len(lines) > 1 else None,
        )
    if ordered and min(values) > 0 and max(values) / min(values) >= WIDE:
        axes.set_xscale("log")
    if not ordered or len(values) <= TICKS:
        places = values if ordered else range(len(values))
        axes.set_xticks(places, [UNSAID if value is None else str(value) for value in values])
        axes.set_xticks([], minor=True)
    axes.set(xlabel=along, ylabel=f"{verdict.measure} ({verdict.better} is better)")
    if len(lines) > 1:
        axes.legend(fontsize=7)
    return figure


def _heat(verdict: Verdict, axes: Mapping[str, list]) -> Figure:
    """A measure over two axes."""
    (first, rows), (second, columns) = axes.items()
    means = np.full((len(rows), len(columns)), np.nan)
    for row in verdict.rows:
        said = dict(row.variant)
        means[rows.index(said.get(first)), columns.index(said.get(second))] = row.mean.mean
    figure = Figure(figsize=(1.5 + 0.9 * len(columns), 1.5 + 0.6 * len(rows)), layout="constrained")
    panel = figure.subplots()
    panel.imshow(means, aspect="auto", cmap="viridis" if verdict.better == "higher" else "viridis_r")
    for i, j in np.argwhere(~np.isnan(means)):
        panel.text(
            j,
            i,
            f"{means[i, j]:.3g}",
            ha="center",
            va="center",
            fontsize=8,
            color="w",
            bbox={"facecolor": "0.2", "edgecolor": "none", "pad": 1},
        )
    panel.set_xticks(range(len(columns)), [UNSAID if value is None else str(value) for value in columns])
    panel.set_yticks(range(len(rows)), [UNSAID if value is None else str(value) for value in rows])
    panel.set(xlabel=second, ylabel=first, title=f"{verdict.measure} ({verdict.better} is better)")
    return figure


def _losses(plan: Sweep, store: Store) -> dict[Variant, list[dict[int, float]]]:
    """What training reported, by step, of the runs of each variant."""
    curves: dict[Variant, list[dict[int, float]]] = {}
    for key, cells in plan.runs.items():
        path = store.run(key) / "metrics.jsonl"
        if path.exists() and not plan.trained:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            own = tuple((name, value) for name, value in cells[0].variant if name.split(".")[0] not in AFTER)
            if lines:
                curves.setdefault(own, []).append({line["step"]: line["loss"] for line in lines})
    return curves


STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
    "figure{display:inline-block;margin:1em}figcaption{font-size:80%}img{max-width:100%}"
)


def _page(plan: Sweep, store: Store, done: int, told: Sequence[Verdict], plots: Sequence[epath.Path]) -> str:
    parts = [f"<h1>{html.escape(plan.name)}</h1>"]
    parts.append(f"<p>{done} of {len(plan.cells)} cells of {html.escape(plan.base)}.</p>")
    for verdict in told:
        header = "".join(f"<th>{name}</th>" for name in (html.escape(verdict.measure), *HEADER))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in _cells(verdict)
        )
        parts.append(f"<h2>{html.escape(verdict.measure)}</h2><p>{html.escape(verdict.sentence)}</p>")
        parts.append(f"<table><caption>{INTERVALS}</caption><tr>{header}</tr>{body}</table>")
    parts += [_picture(path.read_bytes(), path.stem) for path in plots]
    shown = set()
    for cell in plan.cells:
        path = picture_of(store, cell)
        if cell.variant not in shown and path.exists():
            shown.add(cell.variant)
            parts.append(_picture(path.read_bytes(), plan.words(cell.said)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(plan.name)}</title>"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )


def _picture(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def picture_of(store: Store, cell: Cell) -> epath.Path:
    """Where a cell's picture is, if it has one."""
    return store.path / "pictures" / f"{cell.key}.png"
