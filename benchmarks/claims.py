"""A claim: a number that the documentation states, the bound that it must keep, and the value measured now.

A claim holds if the whole interval of its value keeps the bound, does not hold if none of it does, and is not settled
if the interval spans the bound: then more must be measured. A value without an interval is exact.
"""

from __future__ import annotations

import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"  # of the last full measurement; with --quick, RESULTS / "quick"
HOLDS, DOES_NOT_HOLD, NOT_SETTLED = "holds", "does not hold", "not settled"


@dataclass(frozen=True)
class Claim:
    """A measured value and its bound.

    text: what is measured; the key of the claim among those of a benchmark.
    value: None where it cannot be measured, as without a trained run.   bound: a minimum, or with at_most a maximum.
    interval: 95 % confidence interval of the value, where it is a sample.
    """

    text: str
    value: float | None
    bound: float | None = None
    at_most: bool = False
    interval: tuple[float, float] | None = None
    note: str = ""

    @property
    def outcome(self) -> str:
        """One of the three outcomes; empty without a value or a bound."""
        if self.value is None or self.bound is None:
            return ""
        ends = {(end <= self.bound) if self.at_most else (end >= self.bound) for end in self.interval or (self.value,)}
        return NOT_SETTLED if len(ends) > 1 else HOLDS if ends == {True} else DOES_NOT_HOLD

    @property
    def text_of_value(self) -> str:
        """The value, its interval and its note, as printed."""
        if self.value is None:
            return "not run"
        interval = "({:.3g} to {:.3g})".format(*self.interval) if self.interval else ""
        return " ".join(part for part in (f"{self.value:.4g}", interval, self.note) if part)

    @property
    def text_of_bound(self) -> str:
        """The bound, as printed."""
        return "" if self.bound is None else f"{'<=' if self.at_most else '>='} {self.bound:.4g}"


def cpu_seconds(work: Callable) -> float:
    """CPU seconds of all threads that a call takes, with its result computed; wall seconds on an accelerator."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    jax.block_until_ready(work())
    return clock() - start


def paired_ratios(a: Callable, b: Callable, repeats: int) -> np.ndarray:
    """The times of a over those of b, (repeats,): each pair measured one after the other, in alternating order."""
    ratios = []
    for i in range(repeats):
        times = {call: cpu_seconds(call) for call in ((a, b) if i % 2 else (b, a))}
        ratios.append(times[a] / times[b])
    return np.array(ratios)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of a median, by order statistics; of fewer than six values, all of them."""
    n, values = len(values), np.sort(values)
    tail, k = 0.5**n, 0  # of the binomial distribution: as few as k values below the median
    while tail + math.comb(n, k + 1) * 0.5**n <= 0.025:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return float(values[k]), float(values[n - 1 - k])


def environment() -> str:
    """The device, and the versions of Python and of packages, in a line."""
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{len(jax.devices())} x {device.device_kind}, Python {platform.python_version()}, {versions}"


def report(name: str, claims: Iterable[Claim], *, quick: bool) -> int:
    """Print each claim when it is measured, so that an interrupted run leaves its figures, and a table at the end.

    Writes results/NAME-DEVICE.json, of which docs/evidence/results.md is made, or, with quick, results/quick/NAME.json.
    What is not measured this time keeps its earlier record. Returns the exit status: 1 if a claim does not hold.
    """
    measurements = []
    for claim in claims:
        print(f"{claim.text}: {claim.text_of_value}", flush=True)
        measurements.append(claim)
    table = Table("claim", "measured", "bound", "outcome", title=environment())
    for claim in measurements:
        table.add_row(claim.text, claim.text_of_value, claim.text_of_bound, claim.outcome)
    Console(width=140).print(table)
    device = re.sub(r"\W+", "-", jax.devices()[0].device_kind.lower())
    path = RESULTS / "quick" / f"{name}.json" if quick else RESULTS / f"{name}-{device}.json"
    earlier = {row["text"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    origin = {"date": date.today().isoformat(), "environment": environment()}
    rows = earlier | {claim.text: asdict(claim) | origin for claim in measurements if claim.value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    outcomes = [claim.outcome for claim in measurements]
    if NOT_SETTLED in outcomes:
        print(f"{outcomes.count(NOT_SETTLED)} claims are not settled: their intervals span the bound, so measure more")
    return int(DOES_NOT_HOLD in outcomes)
