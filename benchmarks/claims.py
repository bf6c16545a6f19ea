"""A claim: a number that the README states, the bound that it must keep, and the value measured now."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Claim:
    """A measured value and its bound.

    value: None where it cannot be measured, as without a trained run.   bound: a minimum, or with at_most a maximum.
    at_best: the favourable end of a confidence interval; a sample too small to decide is compared by it instead.
    """

    text: str
    value: float | None
    bound: float | None = None
    at_most: bool = False
    at_best: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps its bound; None without a value or a bound."""
        if self.value is None or self.bound is None:
            return None
        value = self.value if self.at_best is None else self.at_best
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def text_of_value(self) -> str:
        """The value and its note, as printed."""
        return "not run" if self.value is None else f"{self.value:.4g} {self.note}".strip()


def environment() -> dict[str, str]:
    """The device, and the versions of Python and of packages."""
    names = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow")
    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def report(name: str, claims: Iterable[Claim]) -> int:
    """Print each claim when it is measured, so that an interrupted run leaves its figures, and a table at the end.

    Writes results/NAME.json. Returns the exit status: 1 if a claim does not hold.
    """
    versions, measurements = environment(), []
    for claim in claims:
        print(f"{claim.text}: {claim.text_of_value}", flush=True)
        measurements.append(claim)
    table = Table("claim", "measured", "bound", "holds", title=", ".join(f"{k} {v}" for k, v in versions.items()))
    for claim in measurements:
        bound = "" if claim.bound is None else f"{'<=' if claim.at_most else '>='} {claim.bound:.4g}"
        table.add_row(claim.text, claim.text_of_value, bound, {True: "yes", False: "NO", None: ""}[claim.holds])
    Console(width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    rows = [asdict(claim) | {"holds": claim.holds} for claim in measurements]
    (RESULTS / f"{name}.json").write_text(json.dumps({"environment": versions, "claims": rows}, indent=2) + "\n")
    return int(any(claim.holds is False for claim in measurements))
