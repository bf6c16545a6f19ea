"""Prompt accuracy by the number of sampling steps, for each method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.claims import RESULTS, Claim
from jdiff.data.shapes.world import Scene
from jdiff.evaluation import prompt_accuracy, shapes
from jdiff.runs import directory

PROMPTS, BATCH = 512, 64
FEW_STEPS = (2, 5, 10, 20, 50)
# For each method of the figure, its settings, and the numbers of steps that it samples with.
METHODS = {
    "ddpm": ({"solver": "ddpm"}, (*FEW_STEPS, 1000)),
    "ddim": ({"solver": "ddim", "eta": 0.0}, FEW_STEPS),
    "heun": ({"solver": "heun"}, FEW_STEPS),
    "dpmpp_2m": ({"solver": "dpmpp_2m"}, FEW_STEPS),
    "dpmpp_2m_sde": ({"solver": "dpmpp_2m_sde"}, FEW_STEPS),
    "unipc_3": ({"solver": "unipc_3"}, FEW_STEPS),
}
BEST, REFERENCES = ("dpmpp_2m", 20), (("ddim", 50), ("ddpm", 1000))


def claims(run: Path) -> Iterator[Claim]:
    """The accuracies, and a bound on what the best multistep method loses. Plots docs/pictures/steps.png."""
    verdicts = {}
    for key, prompt_verdicts in _verdicts(run):
        verdicts[key] = np.array(prompt_verdicts)
        name, steps = key
        text = f"{run.name}, {name} of {steps} steps: prompt accuracy"
        yield Claim(text, float(verdicts[key].mean()), note=f"({len(prompt_verdicts)} prompts)")
    for reference in REFERENCES:
        loss = verdicts[reference].mean() - verdicts[BEST].mean()
        note = f"({int((verdicts[reference] != verdicts[BEST]).sum())} of {PROMPTS} prompts differ)"
        text = f"{BEST[0]} of {BEST[1]} steps, prompt accuracy lower than {reference[0]} of {reference[1]} by"
        yield Claim(text, float(loss), 0.03, at_most=True, note=note)
    _plot(verdicts)


def find_shapes_run(runs: str) -> Path | None:
    """The best text-to-image run of shapes in a directory of runs."""
    return next((Path(runs) / name for name in ("shapes_t2i", "shapes") if (Path(runs) / name).exists()), None)


def captioned_test_images(run: Path, count: int) -> tuple[list[str], list[Scene], np.ndarray]:
    """Captions of test images of a run's data, their scenes, and the images (n, h, w, 3)."""
    examples = directory.saved_task(run).split("test")
    indices, scenes = shapes.sharp_indices(examples, count), shapes.scenes(examples)
    images = np.stack([examples[i]["image"] for i in indices])
    return [shapes.full_caption(examples[i]) for i in indices], [scenes[i] for i in indices], images


def shows_prompt(scenes: list[Scene], images: np.ndarray) -> list[bool]:
    """Which images show everything of their prompts. images: (n, h, w, 3) uint8."""
    return [bool(verdict["prompt_accuracy"]) for verdict in prompt_accuracy.scene_verdicts(scenes, images)]


def _verdicts(run: Path) -> Iterator[tuple[tuple[str, int], list[bool]]]:
    """For each method and number of steps, which of the same prompts, from the same seeds, were drawn correctly.

    Batches of an interrupted measurement are read from results/quick/steps.json, and not drawn again.
    """
    model, (captions, scenes, _) = directory.load(run), captioned_test_images(run, PROMPTS)
    file, origin = RESULTS / "quick" / "steps.json", f"{run.name} at step {directory.latest_step(run)}"
    cache = json.loads(file.read_text()) if file.exists() else {}
    cache = cache if cache.get("of") == origin else {"of": origin}
    # Few steps first, so that their accuracies are printed long before those of 1000.
    order = [BEST, *REFERENCES[:1]]
    order += sorted(((name, n) for name, (_, counts) in METHODS.items() for n in counts), key=lambda key: key[1])
    for name, steps in dict.fromkeys(order):
        settings = replace(model.settings, **{"eta": 0.0, **METHODS[name][0]}, steps=steps)
        verdicts = cache.setdefault(f"{name} {steps}", [])
        for first in range(len(verdicts), len(captions), BATCH):
            batch = slice(first, first + BATCH)
            images = model.sample(captions[batch], settings=settings, seed=first, batch_size=BATCH)
            verdicts += shows_prompt(scenes[batch], images)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(cache))
        yield (name, steps), verdicts


def _plot(verdicts: dict[tuple[str, int], np.ndarray]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (_, counts) in METHODS.items():
        steps = [n for n in counts if (name, n) in verdicts]
        accuracy = np.array([verdicts[name, n].mean() for n in steps])
        error = np.sqrt(accuracy * (1 - accuracy) / PROMPTS)
        axes.errorbar(steps, accuracy, error, marker="o", capsize=2, label=name)
    axes.set(xscale="log", xlabel="steps", ylabel="prompt accuracy")
    axes.set_xticks(sorted({n for _, n in verdicts}), labels=sorted({n for _, n in verdicts}))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(Path(__file__).parent.parent / "docs" / "pictures" / "steps.png", dpi=120)
