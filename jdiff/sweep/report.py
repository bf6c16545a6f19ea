"""The report of a sweep: results.csv, tables with verdicts, plots, and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jdiff import storage
from jdiff.config.construct import ConfigError, nearest
from jdiff.sweep.cells import NOT_TRAINED, Cell, Sweep, Variant, label
from jdiff.sweep.statistics import MIN_COUNT, Estimate, estimate_mean, paired_difference, simultaneous_level
from jdiff.sweep.store import Results, Store

MeasuredCells = Sequence[tuple[Cell, Results]]
UNSET = "as the base"  # tick label where a variant does not set the key of an axis
MAX_TICKS = 8  # values of an axis that are all labelled
LOG_RATIO = 20.0  # of the largest to the smallest value of an axis, from which on its scale is logarithmic


@dataclass(frozen=True)
class VariantRow:
    """A variant in one measure: its mean, and its difference from the reference that it is compared with.

    reference: None for a reference itself.   difference: None for it too, and where no seed is measured of both.
    """

    variant: Variant
    mean: Estimate
    reference: Variant | None
    difference: Estimate | None


@dataclass(frozen=True)
class Verdict:
    """What a sweep shows in one measure: its variants, and which of them differ from their references."""

    sweep: Sweep
    measure: str
    rows: list[VariantRow]

    @property
    def better(self) -> str:
        return self.sweep.compare[self.measure]

    def label(self, variant: Variant) -> str:
        """What distinguishes a variant from others, to be read."""
        return self.sweep.label(dict(variant))

    def verdict_label(self, row: VariantRow) -> str:
        """Better, worse or not distinguishable, or why the variant has no verdict."""
        if row.reference is None:
            return "reference"
        if row.difference is None:
            return "its reference is not measured"
        if row.difference.low is None:
            return f"fewer than {MIN_COUNT} seeds" if row.difference.count < MIN_COUNT else "equal for all seeds"
        sign = row.difference.sign if self.better == "higher" else -row.difference.sign
        return {1: "better", -1: "worse", 0: "not distinguishable"}[sign]

    @property
    def sentence(self) -> str:
        """The verdicts on all variants in words."""
        labels: dict[str, list[str]] = {}
        for row in self.rows:
            labels.setdefault(self.verdict_label(row), []).append(self.label(row.variant))
        references = labels.pop("reference", [])
        reference = label(self.sweep.baseline) if self.sweep.baseline else "".join(references)
        parts = [f"{name}: {'; '.join(variants)}" for name, variants in labels.items()]
        return f"{self.measure} ({self.better} is better), compared with {reference}. " + ". ".join(parts)


def verdicts(sweep: Sweep, measured_cells: MeasuredCells) -> Iterator[Verdict]:
    """A verdict for each measure that the sweep compares. Raises ``ConfigError`` where no cell has the measure."""
    for measure, better in sweep.compare.items():
        by_seed = _means_by_seed(measured_cells, measure)
        if not by_seed and measured_cells:
            names = _measure_names(measured_cells)
            raise ConfigError(
                f"COMPARE of {sweep.name} has {measure}, which is measured of no cell; {nearest(measure, names)}"
            )
        if not by_seed:
            continue
        sign = 1 if better == "higher" else -1
        best = max(by_seed, key=lambda variant: sign * np.mean(list(by_seed[variant].values())))
        references = {variant: sweep.reference(variant) if sweep.baseline else best for variant in by_seed}
        count = sum(variant != reference for variant, reference in references.items())
        # The best is chosen by the same numbers, so the level is that of all pairs.
        level = simultaneous_level(count if sweep.baseline else count * (count + 1) // 2)
        rows = []
        for variant, reference in references.items():
            mean = estimate_mean(list(by_seed[variant].values()))
            if variant == reference:
                rows.append(VariantRow(variant, mean, None, None))
            else:
                difference = paired_difference(by_seed[variant], by_seed.get(reference, {}), level=level)
                rows.append(VariantRow(variant, mean, reference, difference))
        yield Verdict(sweep, measure, rows)


def _means_by_seed(measured_cells: MeasuredCells, measure: str) -> dict[Variant, dict[Any, float]]:
    """A measure of each variant, by seed; the mean where one seed has several cells."""
    values: dict[Variant, dict[Any, list[float]]] = {}
    for cell, results in measured_cells:
        if measure in results:
            values.setdefault(cell.variant, {}).setdefault(cell.repetition, []).append(results[measure])
    return {
        variant: {seed: float(np.mean(numbers)) for seed, numbers in seeds.items()} for variant, seeds in values.items()
    }


def write(sweep: Sweep, store: Store) -> list[epath.Path]:
    """Print the tables and the verdicts, and write the files; returns those that a user opens."""
    folder, measured_cells = store.path, store.measured_cells(sweep)
    files = [folder / name for name in ("results.csv", "results.md", "report.html")]
    _write_csv(measured_cells, files[0])
    sweep_verdicts = list(verdicts(sweep, measured_cells))
    storage.write_text(files[1], "\n".join(map(markdown, sweep_verdicts)))
    console = Console(width=160)
    for verdict in sweep_verdicts:
        console.print(table(verdict))
        print(verdict.sentence)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    plot_files = []
    for name, figure in _figures(sweep, store, sweep_verdicts):
        plot_files.append(plots / f"{name}.png")
        png = io.BytesIO()
        FigureCanvasAgg(figure).print_png(png)
        storage.write_bytes(plot_files[-1], png.getvalue())
    storage.write_text(files[2], _page(sweep, store, len(measured_cells), sweep_verdicts, plot_files))
    return [*files, plots]


def _measure_names(measured_cells: MeasuredCells) -> list[str]:
    return list(dict.fromkeys(name for _, results in measured_cells for name in results))


def _write_csv(measured_cells: MeasuredCells, path: epath.Path) -> None:
    keys = list(dict.fromkeys(key for cell, _ in measured_cells for key in cell.values))
    names = _measure_names(measured_cells)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["cell", "run", *keys, *names])
    for cell, results in measured_cells:
        values = [str(cell.values[key]) if key in cell.values else "" for key in keys]
        writer.writerow([cell.key, cell.run, *values, *(results.get(name, "") for name in names)])
    storage.write_text(path, file.getvalue())


def _format_estimate(estimate: Estimate | None, *, show_sign: bool = False) -> str:
    if estimate is None:
        return ""
    mean = f"{estimate.mean:+.4g}" if show_sign else f"{estimate.mean:.4g}"
    return mean if estimate.low is None else f"{mean} ({estimate.low:.4g} to {estimate.high:.4g})"


HEADER = ("seeds", "mean", "difference from the reference", "verdict")
INTERVALS = "95 % confidence intervals in parentheses; those of differences are simultaneous (Bonferroni)"


def _table_rows(verdict: Verdict) -> Iterator[list[str]]:
    for row in verdict.rows:
        mean, difference = _format_estimate(row.mean), _format_estimate(row.difference, show_sign=True)
        yield [verdict.label(row.variant), str(row.mean.count), mean, difference, verdict.verdict_label(row)]


def table(verdict: Verdict) -> Table:
    """The table of a verdict for the terminal."""
    result = Table(verdict.measure, *HEADER, title=f"{verdict.better} is better; {INTERVALS}")
    for row in _table_rows(verdict):
        result.add_row(*row)
    return result


def markdown(verdict: Verdict) -> str:
    """A verdict in words, and its table, for a document."""
    rows = [[verdict.measure, *HEADER], ["---"] * (1 + len(HEADER)), *_table_rows(verdict)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{verdict.sentence}\n\n({INTERVALS}.)\n\n{table}"


def _figures(sweep: Sweep, store: Store, sweep_verdicts: Sequence[Verdict]) -> Iterator[tuple[str, Figure]]:
    """Plots by name: each measure over the longest axis, over two axes as a heat map, and the training loss."""
    axes = sweep.variant_axes
    for verdict in sweep_verdicts:
        numeric = {key for key, values in axes.items() if all(map(_is_number, values))}
        if axes:
            key = max(axes, key=lambda key: (len(axes[key]), key in numeric))
            yield verdict.measure, _line_plot(verdict, key, axes[key], is_numeric=key in numeric)
        if len(axes) == 2:
            yield f"{verdict.measure}_map", _heat_map(verdict, axes)
    if curves := _loss_curves(sweep, store):
        figure = Figure(figsize=(7, 4), layout="constrained")
        panel = figure.subplots()
        for variant, lines in curves.items():
            steps = sorted(set.intersection(*(set(line) for line in lines)))
            means = [np.mean([line[step] for line in lines]) for step in steps]
            panel.plot(steps, means, label=sweep.label(dict(variant)))
        panel.set(xlabel="step", ylabel="loss, mean over seeds")
        panel.legend(fontsize=7)
        yield "loss_while_training", figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line_plot(verdict: Verdict, key: str, values: Sequence, *, is_numeric: bool) -> Figure:
    """A measure over an axis, a line for each combination of the other axes; points where the values are no numbers."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    lines: dict[Variant, list[tuple[Any, Estimate]]] = {}
    for row in verdict.rows:
        other_values = tuple(pair for pair in row.variant if pair[0] != key)
        lines.setdefault(other_values, []).append((dict(row.variant).get(key), row.mean))
    for i, (other_values, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0] if is_numeric else values.index(point[0]))
        offset = 0.3 * (i + 0.5) / len(lines) - 0.15  # so that points of several lines do not cover each other
        errors = [(0, 0) if y.low is None else (y.mean - y.low, y.high - y.mean) for _, y in points]
        panel.errorbar(
            [x if is_numeric else values.index(x) + offset for x, _ in points],
            [y.mean for _, y in points],
            np.transpose(errors),
            marker="o",
            ms=4,
            ls="-" if is_numeric else "",
            capsize=3,
            label=verdict.label(other_values) if len(lines) > 1 else None,
        )
    if is_numeric and min(values) > 0 and max(values) / min(values) >= LOG_RATIO:
        panel.set_xscale("log")
    if not is_numeric or len(values) <= MAX_TICKS:
        positions = values if is_numeric else range(len(values))
        panel.set_xticks(positions, _tick_labels(values))
        panel.set_xticks([], minor=True)
    panel.set(xlabel=key, ylabel=f"{verdict.measure} ({verdict.better} is better)")
    if len(lines) > 1:
        panel.legend(fontsize=7)
    return figure


def _tick_labels(values: Sequence) -> list[str]:
    return [UNSET if value is None else str(value) for value in values]


def _heat_map(verdict: Verdict, axes: Mapping[str, list]) -> Figure:
    """A measure over two axes."""
    (row_key, rows), (column_key, columns) = axes.items()
    means = np.full((len(rows), len(columns)), np.nan)
    for row in verdict.rows:
        values = dict(row.variant)
        means[rows.index(values.get(row_key)), columns.index(values.get(column_key))] = row.mean.mean
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
    panel.set_xticks(range(len(columns)), _tick_labels(columns))
    panel.set_yticks(range(len(rows)), _tick_labels(rows))
    panel.set(xlabel=column_key, ylabel=row_key, title=f"{verdict.measure} ({verdict.better} is better)")
    return figure


def _loss_curves(sweep: Sweep, store: Store) -> dict[Variant, list[dict[int, float]]]:
    """The training loss by step, of the runs of each variant."""
    curves: dict[Variant, list[dict[int, float]]] = {}
    for key, cells in sweep.runs.items():
        path = store.run_dir(key) / "metrics.jsonl"
        if path.exists() and not sweep.trained_run:
            lines = storage.read_json_lines(path)
            variant = tuple((name, value) for name, value in cells[0].variant if name.split(".")[0] not in NOT_TRAINED)
            if lines:
                curves.setdefault(variant, []).append({line["step"]: line["loss"] for line in lines if "loss" in line})
    return curves


STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ccc;text-align:left}"
    "figure{display:inline-block;margin:1em}figcaption{font-size:80%}img{max-width:100%}"
)


def _page(
    sweep: Sweep, store: Store, num_measured: int, sweep_verdicts: Sequence[Verdict], plots: Sequence[epath.Path]
) -> str:
    """The HTML page, with all pictures inside it."""
    parts = [f"<h1>{html.escape(sweep.name)}</h1>"]
    parts.append(f"<p>{num_measured} of {len(sweep.cells)} cells of {html.escape(sweep.base)}.</p>")
    for verdict in sweep_verdicts:
        header = "".join(f"<th>{name}</th>" for name in (html.escape(verdict.measure), *HEADER))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in _table_rows(verdict)
        )
        parts.append(f"<h2>{html.escape(verdict.measure)}</h2><p>{html.escape(verdict.sentence)}</p>")
        parts.append(f"<table><caption>{INTERVALS}</caption><tr>{header}</tr>{body}</table>")
    parts += [_figure_html(path.read_bytes(), path.stem) for path in plots]
    pictured_variants = set()
    for cell in sweep.cells:
        path = picture_path(store, cell)
        if cell.variant not in pictured_variants and path.exists():
            pictured_variants.add(cell.variant)
            parts.append(_figure_html(path.read_bytes(), sweep.label(cell.values)))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(sweep.name)}</title>"
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "</html>\n"
    )


def _figure_html(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def picture_path(store: Store, cell: Cell) -> epath.Path:
    """The file of a cell's picture, which not every cell has."""
    return store.path / "pictures" / f"{cell.key}.png"
