"""The README's claims of accuracy: the shapes reader, retrieval by dual encoders, and prompts drawn correctly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from benchmarks.claims import Claim, report
from jdiff.commands.evaluate import evaluate
from jdiff.data.shapes.adversary import SCENE_PICTURES, measure_reader
from jdiff.runs import directory

# The README's bounds for each run: recall@1 in both directions and analogies; shares of unseen prompts drawn correctly
# at the config's guidance scale. The README promises nothing of the emoji models.
ENCODERS = {
    "shapes_clip": ("demo", 0.80, 0.80),
    "shapes_clip_full": ("shapes_clip", 0.95, 0.80),
    "emoji_clip": ("emoji_clip", None, None),
}
SAMPLERS = {
    "shapes": ("demo", {"shape_and_colour": 0.95, "prompt_accuracy": 0.90}),
    "shapes_t2i": ("shapes_t2i", {"both_objects": 0.90, "pair_prompt_accuracy": 0.75}),
}
SCALES = (1.0, 2.0, 4.0, 8.0)  # guidance scales, beside the config's


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim whose run exists. Returns the exit status."""
    path = Path(runs)
    claims = chain(_reader(quick), _encoders(path), _samplers(path, quick=quick), _emoji(path))
    return report("accuracy", claims, quick=quick)


def _reader(quick: bool) -> Iterator[Claim]:
    readings = measure_reader(100 if quick else 1000, 0)
    if not quick:
        readings["clean"] = measure_reader(10_000, 1, kinds=("clean",))["clean"]
    for name, (right, total) in readings.items():
        verb = "reads" if name in SCENE_PICTURES else "refuses"
        bound = 0.98 if name == "imperfect" else 0.999
        text = f"the reader {verb} {name.replace('_', ' ')} pictures"
        yield Claim(text, right / total, bound, note=f"({total:,} pictures)")


def _encoders(runs: Path) -> Iterator[Claim]:
    for run, (config, recall, analogies) in ENCODERS.items():
        results = _evaluate(runs / run)
        for name in ("text_to_image@1", "image_to_text@1"):
            yield Claim(f"{config}: {name} among {results.get('compared', 128)}", results.get(name), recall)
        chance = f"(chance {results['analogy_chance']:.2g})" if results else ""
        yield Claim(f"{config}: analogy accuracy", results.get("analogy_accuracy"), analogies, note=chance)
        for name, share in results.items():
            if name.endswith("_accuracy") and name != "analogy_accuracy":
                note = (
                    f"(of up to {results['pairs']} pairs, those nearer to their caption than to one with this swapped)"
                )
                yield Claim(f"{config}: {name.replace('_', ' ')}", share, note=note)


def _samplers(runs: Path, *, quick: bool) -> Iterator[Claim]:
    for run, (config, bounds) in SAMPLERS.items():
        path, results, rows = runs / run, {}, {}
        if _is_trained(path):
            config_scale = directory.saved_task(path).config.sample.guidance_scale
            scales = [config_scale] if quick else sorted({config_scale, *SCALES})
            results = _evaluate(path, num=64 if quick else 256, guidance_scales=scales, negative_prompts=not quick)
            rows = results["scales"][f"{config_scale:g}"]
        for name, bound in bounds.items():
            yield _share(f"{config}: {name.replace('_', ' ')} right", rows.get(name), bound)
        yield Claim(f"{config}: scenes that are in the training set", results.get("overlap"), 0, at_most=True)
        if results and not quick:
            unseen = _evaluate(path, split="compositions")
            yield from _claims_without_bounds(config, bounds, results, next(iter(unseen["scales"].values())))


def _emoji(runs: Path) -> Iterator[Claim]:
    """Professions in skin tones held out from training: how often the glyph nearest to the image is correct."""
    names = ("nearest_glyph", "nearest_profession", "nearest_gender", "nearest_tone")
    results = _evaluate(runs / "emoji")
    rows = next(iter(results["scales"].values())) if results else {}
    for name in names:
        yield _share(f"emoji_t2i: {name.replace('_', ' ')} is right", rows.get(name))


def _claims_without_bounds(config: str, names: Iterable[str], results: dict, compositions: dict) -> Iterator[Claim]:
    """Figures without a bound: other guidance scales, negative prompts, held-out compositions."""
    for scale, rows in results["scales"].items():
        for name in (*names, "missing_object_rate"):
            if name in rows:
                yield _share(f"{config}, guidance {scale}: {name.replace('_', ' ')}", rows[name])
    for name, (plain_share, negative_share) in results["negatives"].items():
        yield _share(f"{config}: {name} shown, no negative prompt", plain_share)
        yield _share(f"{config}: {name} shown, as the negative prompt", negative_share)
    for name in names:
        yield _share(f"{config}, compositions: {name.replace('_', ' ')}", compositions[name])


def _share(text: str, row: dict | None, bound: float | None = None) -> Claim:
    if row is None:
        return Claim(text, None, bound)
    return Claim(text, row["share"], bound, interval=(row["low"], row["high"]), note=f"({row['count']} images)")


def _is_trained(run: Path) -> bool:
    return (run / "config.json").exists() and directory.latest_step(run) is not None


def _evaluate(run: Path, **options) -> dict:
    """The results of `jdiff evaluate`, measured now; empty without a trained run."""
    return evaluate(str(run), recompute=True, **options) if _is_trained(run) else {}
