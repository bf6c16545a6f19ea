"""A claim is a number that the README states, the bound it must keep, and what was measured now."""

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
    """measured: None where what it is measured on does not exist yet.   bound: the least that holds (or the most).

    at_best: the favourable end of its interval, for a sample too small to settle it; held to the bound in its place.
    """

    text: str
    measured: float | None
    bound: float | None = None
    at_most: bool = False
    at_best: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """None where there is nothing to hold: no measurement, or a figure that is only stated."""
        if self.measured is None or self.bound is None:
            return None
        value = self.measured if self.at_best is None else self.at_best
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def said(self) -> str:
        """What was measured, in words."""
        return "not run" if self.measured is None else f"{self.measured:.4g} {self.note}".strip()


def surroundings() -> dict[str, str]:
    """The device and the versions a figure was measured with."""
    names = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "pillow")
    device = jax.devices()[0]
    return {
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def settle(name: str, claims: Iterable[Claim]) -> int:
    """Print each claim as it is measured, so that a run cut short leaves figures too, and the table at the end.

    Writes results/NAME.json; returns the exit status: 1 where a claim does not hold.
    """
    where, settled = surroundings(), []
    for claim in claims:
        print(f"{claim.text}: {claim.said}", flush=True)
        settled.append(claim)
    table = Table("claim", "measured", "bound", "holds", title=", ".join(f"{k} {v}" for k, v in where.items()))
    for claim in settled:
        bound = "" if claim.bound is None else f"{'<=' if claim.at_most else '>='} {claim.bound:.4g}"
        table.add_row(claim.text, claim.said, bound, {True: "yes", False: "NO", None: ""}[claim.holds])
    Console(width=140).print(table)
    RESULTS.mkdir(exist_ok=True)
    rows = [asdict(claim) | {"holds": claim.holds} for claim in settled]
    (RESULTS / f"{name}.json").write_text(json.dumps({"surroundings": where, "claims": rows}, indent=2) + "\n")
    return int(any(claim.holds is False for claim in settled))
