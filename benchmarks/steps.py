"""How many steps a picture needs: the share of prompts that each method draws right with so many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.claims import RESULTS, Claim
from jdiff import runs
from jdiff.data import records
from jdiff.data.shapes.world import Scene
from jdiff.evaluation import prompt_accuracy, shapes

PROMPTS, BATCH = 512, 64
FEW = (2, 5, 10, 20, 50)
# For each method of the figure, what it is beside its name, and the steps it is drawn with.
METHODS = {
    "ddpm": ({"solver": "ddpm"}, (*FEW, 1000)),
    "ddim": ({"solver": "ddim", "eta": 0.0}, FEW),
    "heun": ({"solver": "heun"}, FEW),
    "dpmpp_2m": ({"solver": "dpmpp_2m"}, FEW),
    "dpmpp_2m_sde": ({"solver": "dpmpp_2m_sde"}, FEW),
    "unipc_3": ({"solver": "unipc_3"}, FEW),
}
BEST, HELD_AGAINST = ("dpmpp_2m", 20), (("ddim", 50), ("ddpm", 1000))


def claims(path: Path) -> Iterator[Claim]:
    """The shares, and the bound on what few steps of the best multistep method lose. Draws docs/steps.png."""
    right = {}
    for key, verdicts in _verdicts(path):
        right[key] = np.array(verdicts)
        name, steps = key
        text = f"{path.name}, {name} of {steps} steps: whole prompt right"
        yield Claim(text, float(right[key].mean()), note=f"of {len(verdicts)}")
    for other in HELD_AGAINST:
        lower = right[other].mean() - right[BEST].mean()
        apart = f"; {int((right[other] != right[BEST]).sum())} of {PROMPTS} prompts differ"
        text = f"{BEST[0]} of {BEST[1]} steps, lower than {other[0]} of {other[1]} by"
        yield Claim(text, float(lower), 0.03, at_most=True, note=apart)
    _figure(right)


def run_of_shapes(runs: str) -> Path | None:
    """The best of the runs there that draw shapes."""
    return next((Path(runs) / name for name in ("shapes_t2i", "shapes") if (Path(runs) / name).exists()), None)


def asked(path: Path, count: int) -> tuple[list[str], list[Scene], np.ndarray]:
    """Captions that a run is asked for, their scenes, and the test pictures (n, h, w, 3) that they are of."""
    held = records.records(runs.saved_experiment(path).dataset(), "test")
    chosen, scenes = shapes.sharp_indices(held, count), shapes.scenes(held)
    pictures = np.stack([held[i]["image"] for i in chosen])
    return [shapes.full_caption(held[i]) for i in chosen], [scenes[i] for i in chosen], pictures


def whole(scenes: list[Scene], drawn: np.ndarray) -> list[bool]:
    """Which pictures show all that was asked for."""
    return [bool(one["prompt_accuracy"]) for one in prompt_accuracy.verdicts(scenes, drawn)]


def _verdicts(path: Path) -> Iterator[tuple[tuple[str, int], list[bool]]]:
    """For each method and number of steps, which of the same prompts, from the same seeds, were drawn right.

    Batches that were drawn before are read from results/steps.json, so that a run cut short goes on.
    """
    model, (captions, scenes, _) = runs.load(path), asked(path, PROMPTS)
    kept, about = RESULTS / "steps.json", f"{path.name} at step {runs.latest_step(path)}"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found = found if found.get("of") == about else {"of": about}
    # Cheap ones first: a figure of few steps is there long before a thousand are.
    order = [BEST, *HELD_AGAINST[:1]]
    order += sorted(((name, n) for name, (_, counts) in METHODS.items() for n in counts), key=lambda key: key[1])
    for name, steps in dict.fromkeys(order):
        settings = replace(model.settings, **{"eta": 0.0, **METHODS[name][0]}, steps=steps)
        verdicts = found.setdefault(f"{name} {steps}", [])
        for first in range(len(verdicts), len(captions), BATCH):
            part = slice(first, first + BATCH)
            drawn = model.sample(captions[part], settings=settings, seed=first, batch_size=BATCH)
            verdicts += whole(scenes[part], drawn)
            RESULTS.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found))
        yield (name, steps), verdicts


def _figure(right: dict[tuple[str, int], np.ndarray]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (_, counts) in METHODS.items():
        shown = [n for n in counts if (name, n) in right]
        share = np.array([right[name, n].mean() for n in shown])
        error = np.sqrt(share * (1 - share) / PROMPTS)
        axes.errorbar(shown, share, error, marker="o", capsize=2, label=name)
    axes.set(xscale="log", xlabel="steps", ylabel="whole prompts right")
    axes.set_xticks(sorted({n for _, n in right}), labels=sorted({n for _, n in right}))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(Path(__file__).parent.parent / "docs" / "steps.png", dpi=120)
