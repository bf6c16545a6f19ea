"""Pinned results of every ``:tiny`` config: parameters, losses, an image, an embedding, which no refactoring changes.

``python -m tests.test_pins`` rewrites ``pins.json``, on purpose and to be reviewed as a diff; with a path it also
writes the measurements without rounding to this .npz file.
"""

import importlib.util
import json
import sys
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import pytest
from PIL import Image

from jdiff.commands.evaluate import evaluate
from jdiff.commands.flags import shipped_configs
from jdiff.data.emoji.glyphs import find_font
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.tasks import make_task
from jdiff.tasks.task import ImageTextTask
from jdiff.tasks.text_to_image import TextToImage
from tests.interop import toys
from tests.trees import norm

CONFIGS = shipped_configs()
ENCODERS = [name for name in CONFIGS if name.endswith("_clip")]
PINS = Path(__file__).parent / "pins.json"
STEPS = 20
# Other processors and other releases of XLA round differently, and twenty steps amplify it.
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


def write_image_folder(folder):
    """A folder of images of noise, with captions beside them."""
    folder.mkdir(exist_ok=True)
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"noise number {i}\n")
    return folder


def measure_pair(encoder, folder):
    """Train both models of a world for twenty tiny steps. Returns the measurement of each, by config."""
    if encoder == "tune_clip":
        toys.clip(folder / "clip")
        toys.stable_diffusion(folder / "stable_diffusion")
    return {name: measure_run(name, encoder, folder) for name in (encoder, encoder.replace("_clip", "_t2i"))}


def measure_run(name, encoder, folder):
    jax.clear_caches()  # of the run before, for memory
    config, _ = get_config(name, "tiny")
    config.mesh.data = 2 if encoder == "demo_clip" else 1
    config.data.directory = str(folder / "data")
    if config.data.source == "folder":
        config.data.path = str(write_image_folder(folder / "images"))
        config.data.image_size = 48
    for part in ("text", "vision", "denoiser"):
        if "init_from" in config.get(part, {}):
            start = {"tune_clip": "clip", "tune_t2i": "stable_diffusion"}.get(name, encoder)
            config[part].init_from = str(folder / start)
    config.train.update(steps=STEPS, log_every=1, save_every=STEPS, sample_every=STEPS)
    prepare(make_task(config))
    run = folder / name
    initial_state, norms_at_start = ImageTextTask.initial_state, {}

    def measure_initial_state(task, mesh, pretrained):
        state = initial_state(task, mesh, pretrained)
        norms_at_start.update(norms({**state.frozen, **state.params}))
        return state

    with (
        patch.object(ImageTextTask, "initial_state", measure_initial_state),
        patch.object(TextToImage, "preview_num", 2),  # one sampling program for previews, image and evaluation
    ):
        train(make_task(config), str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert (run / "samples" / f"step_{STEPS}.png").exists()
    measurement = {"parameters": norms_at_start, "losses": [lines[0]["loss"], lines[-1]["loss"]]}
    model = directory.load(run)
    if name.endswith("_t2i"):
        measurement["image"] = model.sample(["a red circle", "a blue square"], guidance_scale=2, seed=0)[0]
    else:
        measurement["embedding"] = np.asarray(model.embed_texts(["a red circle"]))[0]
    if config.data.source != "shapes":  # whose evaluation tests/test_path.py runs
        assert evaluate(str(run), num=2)["num"] == 2
        assert (run / "evaluation" / "test" / "results.json").exists()
    return measurement


def measure_points():
    config, _ = get_config("spiral", "tiny")
    config.train.steps = STEPS
    task = make_task(config)
    initial, state = task.first_state(), task.train()
    points = task.draw(task.model(state), task.tableau(), np.arange(4))
    return {"parameters": norms(initial.params) | {"trained": norms(state.params)["mlp"]}, "points": points}


def norms(params):
    """The norm of each network's parameters; of a single parameter, its size."""
    return {name: norm(tree) for name, tree in params.items()}


def rounded(measurement):
    """A measurement as pins.json keeps it: numbers to seven digits, of an image the means of 8 x 8 squares."""
    content = json.loads(json.dumps(measurement, default=lambda array: np.asarray(array, np.float64).tolist()))
    if "image" in measurement:
        side = len(measurement["image"]) // 8
        content["image"] = measurement["image"].reshape(8, side, 8, side, 3).mean((1, 3)).tolist()
    return json.loads(json.dumps(content), parse_float=lambda text: float(f"{float(text):.7g}"))


def compare(name, measurement):
    pins, numbers = json.loads(PINS.read_text())[name], rounded(measurement)
    assert pins.keys() == numbers.keys()
    for kind, value in pins.items():
        if kind == "parameters":
            assert numbers[kind] == pytest.approx(value, rel=TOLERANCES[kind])
        else:
            np.testing.assert_allclose(numbers[kind], value, atol=TOLERANCES[kind])


def slow_unless(name, *quick):
    return pytest.param(name, marks=() if name in quick else pytest.mark.slow)


@pytest.mark.parametrize("encoder", [slow_unless(name, "demo_clip", "tune_clip") for name in ENCODERS])
def test_twenty_tiny_steps_of_every_config_give_the_pins(encoder, tmp_path):
    if encoder.startswith("emoji") and not has_font():
        pytest.skip("the Noto Color Emoji font is not installed")
    for name, measurement in measure_pair(encoder, tmp_path).items():
        compare(name, measurement)


def test_twenty_tiny_steps_of_points_give_the_pins():
    compare("spiral", measure_points())


def main():
    import tempfile

    measurements = {"spiral": measure_points()}
    for encoder in ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            measurements |= measure_pair(encoder, Path(folder))
    if sys.argv[1:]:
        rows = [(f"{name}/{kind}", value) for name, row in measurements.items() for kind, value in row.items()]
        np.savez(sys.argv[1], **{key: list(v.values()) if isinstance(v, dict) else v for key, v in rows})
    PINS.write_text(json.dumps({name: rounded(row) for name, row in sorted(measurements.items())}, indent=1) + "\n")


if __name__ == "__main__":
    from tests import conftest  # noqa: F401, for its eight devices

    main()
