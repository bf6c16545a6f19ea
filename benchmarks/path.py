"""The claims of the whole path: the reader, the dual encoders, and prompts drawn right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from benchmarks.claims import Claim, settle
from jdiff.data.shapes.adversary import SCENE_PICTURES, measure_reader
from jdiff.runs import latest_step, saved_experiment
from jdiff.verbs.evaluate import evaluate

# The README's word on each run: recall@1 both ways and analogies; what of unseen prompts is drawn, at the config's
# guidance. Of the emoji nothing is promised.
ENCODERS = {
    "shapes_clip": ("demo", 0.80, 0.80),
    "shapes_clip_full": ("shapes_clip", 0.95, 0.80),
    "emoji_clip": ("emoji_clip", None, None),
}
SAMPLERS = {
    "shapes": ("demo", {"shape_and_colour": 0.95, "prompt_accuracy": 0.90}),
    "shapes_t2i": ("shapes_t2i", {"both_objects": 0.90, "pair_prompt_accuracy": 0.75}),
}
SCALES = (1.0, 2.0, 4.0, 8.0)  # of guidance, whatever the config's own


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim whose run exists. Returns the exit status."""
    path = Path(runs)
    return settle("path", chain(_reader(quick), _encoders(path), _samplers(path, quick=quick), _emoji(path)))


def _reader(quick: bool) -> Iterator[Claim]:
    found = measure_reader(100 if quick else 1000, 0)
    if not quick:
        found["clean"] = measure_reader(10_000, 1, kinds=("clean",))["clean"]
    for name, (right, total) in found.items():
        verb = "reads" if name in SCENE_PICTURES else "refuses"
        bound = 0.98 if name == "imperfect" else 0.999
        yield Claim(f"the reader {verb} {name} pictures", right / total, bound, note=f"of {total}")


def _encoders(runs: Path) -> Iterator[Claim]:
    for run, (config, recall, analogies) in ENCODERS.items():
        found = _evaluated(runs / run)
        for way in ("text_to_image@1", "image_to_text@1"):
            yield Claim(f"{config}: {way} among {found.get('compared', 128)}", found.get(way), recall)
        chance = f"chance {found['analogy_chance']:.2g}" if found else ""
        yield Claim(f"{config}: arithmetic of meanings", found.get("analogy_accuracy"), analogies, note=chance)
        for name, share in found.items():
            if name.endswith("_accuracy") and name != "analogy_accuracy":
                note = f"of up to {found['pairs']} pairs, nearer to their caption than to one with this exchanged"
                yield Claim(f"{config}: {name.replace('_', ' ')}", share, note=note)


def _samplers(runs: Path, *, quick: bool) -> Iterator[Claim]:
    for run, (config, bounds) in SAMPLERS.items():
        path, found, rows = runs / run, {}, {}
        if _trained(path):
            own = saved_experiment(path).sample.guidance_scale
            scales = [own] if quick else sorted({own, *SCALES})
            found = _evaluated(path, num=64 if quick else 256, guidance_scales=scales, negatives=not quick)
            rows = found["scales"][f"{own:g}"]
        for name, bound in bounds.items():
            yield _share(f"{config}: {name.replace('_', ' ')}", rows.get(name), bound, few=quick)
        yield Claim(f"{config}: asked scenes that training showed", found.get("overlap"), 0, at_most=True)
        if found and not quick:
            unseen = _evaluated(path, split="compositions")
            yield from _stated(config, bounds, found, next(iter(unseen["scales"].values())))


def _emoji(runs: Path) -> Iterator[Claim]:
    """Of professions in skin tones that training never showed: what the drawing's nearest glyph is right in."""
    names = ("nearest_glyph", "nearest_profession", "nearest_gender", "nearest_tone")
    found = _evaluated(runs / "emoji")
    rows = next(iter(found["scales"].values())) if found else {}
    for name in names:
        yield _share(f"emoji_t2i: {name.replace('_', ' ')} is right", rows.get(name))


def _stated(config: str, names: Iterable[str], found: dict, compositions: dict) -> Iterator[Claim]:
    """What comes out where nothing is promised: other scales of guidance, negative prompts, unseen pairs."""
    for scale, rows in found["scales"].items():
        for name in (*names, "missing_object_rate"):
            if name in rows:
                yield _share(f"{config}, guidance {scale}: {name.replace('_', ' ')}", rows[name])
    for name, (without, against) in found["negatives"].items():
        yield _share(f"{config}: {name} shown, no negative prompt", without)
        yield _share(f"{config}: {name} shown, as the negative prompt", against)
    for name in names:
        yield _share(f"{config}, compositions: {name.replace('_', ' ')}", compositions[name])


def _share(text: str, row: dict | None, bound: float | None = None, *, few: bool = False) -> Claim:
    """few: so few pictures that the claim fails only where its interval lies below the bound."""
    if row is None:
        return Claim(text, None, bound)
    note = f"({row['low']:.3f} to {row['high']:.3f}, {row['count']} pictures)"
    return Claim(text, row["share"], bound, at_best=row["high"] if few else None, note=note)


def _trained(run: Path) -> bool:
    return (run / "config.json").exists() and latest_step(run) is not None


def _evaluated(run: Path, **options) -> dict:
    """What a run shows now; nothing where there is no trained one."""
    return evaluate(str(run), again=True, **options) if _trained(run) else {}
