"""The claims of the whole path: the reader, the dual encoders, and prompts drawn right."""

from __future__ import annotations

from pathlib import Path

from benchmarks.claims import Claim, settle
from jdiff.data.shapes.adversary import SHOWN, measure_reader
from jdiff.verbs.evaluate import evaluate

# The README's word on each run: recall@1 both ways; what of unseen prompts is drawn, at the config's guidance.
ENCODERS = {"shapes_clip": ("demo", 0.80), "shapes_clip_full": ("shapes_clip", 0.95)}
SAMPLERS = {
    "shapes": ("demo", {"shape_and_colour": 0.95, "whole": 0.90}),
    "shapes_t2i": ("shapes_t2i", {"both_objects": 0.90, "whole_pair": 0.75}),
}
SCALES = (1.0, 2.0, 4.0, 8.0)  # of guidance


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim whose run exists. Returns the exit status."""
    place, num = Path(runs), 64 if quick else 256
    claims = [*_reader(quick), *_encoders(place), *_samplers(place, num)]
    return settle("path", claims if quick else claims + _stated(place, num))


def _reader(quick: bool) -> list[Claim]:
    found = measure_reader(100 if quick else 1000, 0)
    if not quick:
        found["clean"] = measure_reader(10_000, 1, kinds=("clean",))["clean"]
    claims = []
    for name, (right, total) in found.items():
        verb = "reads" if name in SHOWN else "refuses"
        bound = 0.98 if name == "imperfect" else 0.999
        claims.append(Claim(f"the reader {verb} {name} pictures", right / total, bound, note=f"of {total}"))
    return claims


def _encoders(runs: Path) -> list[Claim]:
    claims = []
    for run, (config, bound) in ENCODERS.items():
        found = evaluate(str(runs / run)) if (runs / run / "config.json").exists() else {}
        for way in ("text_to_image@1", "image_to_text@1"):
            claims.append(Claim(f"{config}: {way} among {found.get('compared', 128)}", found.get(way), bound))
        chance = f"chance {found['analogies_chance']:.3f}" if found else ""
        claims.append(Claim(f"{config}: arithmetic of meanings", found.get("analogies_right"), 0.80, note=chance))
    return claims


def _samplers(runs: Path, num: int) -> list[Claim]:
    claims = []
    for run, (config, bounds) in SAMPLERS.items():
        found = evaluate(str(runs / run), num=num) if (runs / run / "config.json").exists() else {}
        rows = next(iter(found["scales"].values())) if found else {}
        for name, bound in bounds.items():
            claims.append(_share(f"{config}: {name.replace('_', ' ')} right", rows.get(name), bound))
        claims.append(Claim(f"{config}: asked scenes that training showed", found.get("overlap"), 0, at_most=True))
    return claims


def _stated(runs: Path, num: int) -> list[Claim]:
    """What comes out where nothing is promised: other scales of guidance, unseen pairs, negative prompts."""
    claims = []
    for run, (config, bounds) in SAMPLERS.items():
        if not (runs / run / "config.json").exists():
            continue
        wide = evaluate(str(runs / run), num=num, guidance_scales=SCALES, negatives=True)
        for scale, rows in wide["scales"].items():
            names = [name for name in (*bounds, "something_left_out") if name in rows]
            claims += [_share(f"{config}, guidance {scale}: {name.replace('_', ' ')}", rows[name]) for name in names]
        for name, (without, against) in wide["negatives"].items():
            claims.append(_share(f"{config}: {name} shown, no negative prompt", without))
            claims.append(_share(f"{config}: {name} shown, as the negative prompt", against))
        unseen = evaluate(str(runs / run), split="compositions", num=num)
        rows = next(iter(unseen["scales"].values()))
        claims += [_share(f"{config}, compositions: {name.replace('_', ' ')}", rows[name]) for name in bounds]
    return claims


def _share(text: str, row: dict | None, bound: float | None = None) -> Claim:
    note = f"({row['low']:.3f} to {row['high']:.3f}, {row['count']} pictures)" if row else ""
    return Claim(text, row and row["share"], bound, note=note)
