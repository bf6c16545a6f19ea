"""Pinned results of every ``:tiny`` config: parameters, losses, an image and an embedding, which no refactoring moves.

``python -m tests.test_pins`` writes ``pins.json`` anew, on purpose and to be reviewed as a diff; with a folder as its
argument it also writes there what it measured without rounding.
"""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jdiff import build, runs
from jdiff.cli import shipped_configs
from jdiff.data.emoji.glyphs import find_font
from jdiff.verbs import spiral
from jdiff.verbs.evaluate import evaluate
from jdiff.verbs.prepare import prepare
from jdiff.verbs.train import train
from tests.interop import toys

CONFIGS = shipped_configs()
ENCODERS = [name for name in CONFIGS if name.endswith("_clip")]
PINS = Path(__file__).parent / "pins.json"
STEPS = 20
# Other processors and other releases of XLA round otherwise, and twenty steps make more of it.
TOLERANCES = {"parameters": 1e-5, "losses": 2e-3, "image": 2.0, "embedding": 5e-3, "points": 1e-2}


def get_config(name, variant=""):
    spec = importlib.util.spec_from_file_location(name, CONFIGS[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant), module.__doc__


def has_font():
    try:
        return bool(find_font())
    except FileNotFoundError:
        return False


def own_images(folder):
    """Somebody's photographs: noise with sidecar captions."""
    folder.mkdir(exist_ok=True)
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"noise number {i}\n")
    return folder


def measure_pair(encoder, folder):
    """Train both models of a world for twenty tiny steps. Returns what is pinned of each, by config."""
    if encoder == "tune_clip":
        toys.clip(folder / "clip")
        toys.stable_diffusion(folder / "stable_diffusion")
    return {name: measure_run(name, encoder, folder) for name in (encoder, encoder.replace("_clip", "_t2i"))}


def measure_run(name, encoder, folder):
    config, _ = get_config(name, "tiny")
    config.mesh.data = 2 if encoder == "demo_clip" else 1
    config.data.directory = str(folder / "data")
    if config.data.source == "folder":
        config.data.path = str(own_images(folder / "images"))
    for part in ("text", "vision", "unet"):
        if "init_from" in config.get(part, {}):
            start = {"tune_clip": "clip", "tune_t2i": "stable_diffusion"}.get(name, encoder)
            config[part].init_from = str(folder / start)
    config.train.update(steps=STEPS, log_every=1, save_every=STEPS, sample_every=STEPS)
    prepare(build.experiment(config))
    run = folder / name
    train(build.experiment(config), str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert (run / "samples" / f"step_{STEPS}.png").exists()
    model = runs.find(run)
    initial = model.setup.initial_weights(model.tokenizer)
    found = {"parameters": norms(initial), "losses": [lines[0]["loss"], lines[-1]["loss"]]}
    loaded = runs.load(run)
    if name.endswith("_t2i"):
        found["image"] = loaded.sample(["a red circle"], guidance_scale=2, seed=0)[0]
    else:
        found["embedding"] = np.asarray(loaded.embed_texts(["a red circle"]))[0]
    if config.data.source != "shapes":  # whose evaluation tests/test_path.py runs
        assert evaluate(str(run), num=2)["num"] == 2
        assert (run / "evaluation" / "test" / "results.json").exists()
    return found


def measure_points():
    config, _ = get_config("spiral", "tiny")
    config.train.steps = STEPS
    setup = build.spiral(config)
    initial, state = setup.initial_state(), spiral.learnt(setup)
    tableau = setup.sample.tableau(setup.schedule(), setup.diffusion.prediction_type)
    drawn = spiral.draw(spiral.network(setup, state), setup, tableau, np.arange(4))
    return {"parameters": norms(initial.params) | {"trained": norms(state.params)["mlp"]}, "points": drawn}


def norms(params):
    """The norm of each network's parameters, or of a lone one its value."""
    flat = {name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for name, tree in params.items()}
    return {name: float(np.linalg.norm(x.astype(np.float64))) for name, x in flat.items()}


def rounded(found):
    """What pins.json keeps: numbers to seven digits, of an image the means of 8 x 8 squares."""
    kept = json.loads(json.dumps(found, default=lambda array: np.asarray(array, np.float64).tolist()))
    if "image" in found:
        side = len(found["image"]) // 8
        kept["image"] = found["image"].reshape(8, side, 8, side, 3).mean((1, 3)).tolist()
    return json.loads(json.dumps(kept), parse_float=lambda text: float(f"{float(text):.7g}"))


def compare(name, found):
    pinned, now = json.loads(PINS.read_text())[name], rounded(found)
    assert pinned.keys() == now.keys()
    for kind, value in pinned.items():
        if kind == "parameters":
            assert now[kind] == pytest.approx(value, rel=TOLERANCES[kind])
        else:
            np.testing.assert_allclose(now[kind], value, atol=TOLERANCES[kind])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_twenty_tiny_steps_of_every_config_give_what_is_pinned(encoder, tmp_path):
    if encoder.startswith("emoji") and not has_font():
        pytest.skip("the Noto Color Emoji font is not installed")
    for name, found in measure_pair(encoder, tmp_path).items():
        compare(name, found)


def test_twenty_tiny_steps_of_points_give_what_is_pinned():
    compare("spiral", measure_points())


def main():
    import tempfile

    found = {"spiral": measure_points()}
    for encoder in ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            found |= measure_pair(encoder, Path(folder))
    if sys.argv[1:]:
        rows = [(f"{name}/{kind}", value) for name, of in found.items() for kind, value in of.items()]
        np.savez(sys.argv[1], **{key: list(v.values()) if isinstance(v, dict) else v for key, v in rows})
    PINS.write_text(json.dumps({name: rounded(of) for name, of in sorted(found.items())}, indent=1) + "\n")


if __name__ == "__main__":
    from tests import conftest  # noqa: F401, for as many devices

    main()
