"""The whole path as its user walks it, with TensorFlow and torch absent: two steps of each model, then pictures."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.stats import norm

import jdiff as package
from benchmarks import path
from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import Scene, Thing
from jdiff.diffusion.schedules import make
from tests.running import jdiff, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both tiny models were trained."""
    path = tmp_path_factory.mktemp("path")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=path)
    jdiff("train", "--config=demo_clip:tiny", "--workdir=runs/shapes_clip", cwd=path)
    jdiff("train", "--config=demo_t2i:tiny", "--workdir=runs/shapes", cwd=path)
    return path


def test_a_run_is_a_directory(folder):
    for name in ("shapes_clip", "shapes"):
        run = folder / "runs" / name
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        assert all(np.isfinite(line["loss"]) for line in lines)
        assert not any("second" in key or "time" in key for key in lines[0])
        assert (run / "config.json").exists()
        assert (run / "tokenizer.json").exists()
        assert (run / "samples" / "step_2.png").exists()
        assert list(run.glob("events.*"))
        assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == ["1", "2"]


def test_what_is_done_is_not_done_again(folder):
    assert "prepared already" in jdiff("prepare", "--config=demo_clip:tiny", cwd=folder).stdout
    again = jdiff("train", "--config=demo_clip:tiny", "--workdir=runs/shapes_clip", cwd=folder)
    assert "has all its 2 steps already" in again.stdout


DRAWN_BY_A_RUN = """
from jdiff.sweep import chain, grid, product, seeds
RUN = "runs/shapes"
COMPARE = {"whole": "higher", "diversity": "higher"}
MEASURE = dict(num=4)
def sweep():
    variants = chain(grid({"sample.eta": (0.0, 1.0)}), grid({"measure.average": ("none",)}))
    return product(seeds(2, "measure.seed"), variants)
"""


def test_a_sweep_of_what_one_run_draws(folder):
    """Its variants shared out among jobs, or all by one: with the same results, and pictures of each cell."""
    (folder / "drawn.py").write_text(DRAWN_BY_A_RUN)
    commands = jdiff("sweep", "drawn.py", "--workdir=apart", "--dry_run", cwd=folder).stdout.splitlines()
    assert commands[1].endswith("sample PROMPT --workdir=runs/shapes --eta=1.0")
    assert commands[5].endswith("sample PROMPT --workdir=runs/shapes --ema=none")
    for jobs, name in ((2, "apart"), (1, "together")):
        done = jdiff("sweep", "drawn.py", f"--workdir={name}", f"--jobs={jobs}", cwd=folder).stdout
        assert len(re.findall(": done after", done)) == jobs
        assert len(list((folder / name / "pictures").glob("*.png"))) == 6
    results = [(folder / name / "results.csv").read_text() for name in ("apart", "together")]
    assert results[0] == results[1] and len(results[0].splitlines()) == 7
    rows = list(csv.DictReader(results[0].splitlines()))
    assert len({row["diversity"] for row in rows if row["sample.eta"]}) == 4  # no two of these drew the same


def test_a_run_that_sweeps_cannot_draw_by_is_named(folder):
    (folder / "goes_on").mkdir()
    shutil.copy(folder / "runs" / "shapes" / "tokenizer.json", folder / "goes_on")
    config = json.loads((folder / "runs" / "shapes" / "config.json").read_text())
    config["train"]["steps"] = 9
    (folder / "goes_on" / "config.json").write_text(json.dumps(config))
    shutil.copytree(folder / "runs" / "shapes" / "checkpoints", folder / "goes_on" / "checkpoints")
    (folder / "theirs").mkdir()
    (folder / "theirs" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    for run, why in (("goes_on", "which is at step 2 of 9; end it first"), ("theirs", "which is no run of ours")):
        (folder / "wrong.py").write_text(DRAWN_BY_A_RUN.replace("runs/shapes", run))
        done = jdiff("sweep", "wrong.py", "--workdir=wrong", cwd=folder, check=False)
        assert done.returncode == 2 and why in done.stderr, done.stderr
        assert not (folder / "wrong").exists()


def test_a_dry_run_of_what_an_encoder_is_measured_by(folder):
    text = DRAWN_BY_A_RUN.replace("runs/shapes", "runs/shapes_clip").replace("whole", "text_to_image@1")
    variants = 'product(grid({"measure.average": ("none",)}))'
    (folder / "measured.py").write_text(re.sub("product\\(seeds.*", variants, text))
    commands = jdiff("sweep", "measured.py", "--workdir=measured", "--dry_run", cwd=folder).stdout.splitlines()
    assert commands == ["jdiff evaluate --workdir=runs/shapes_clip --ema=none"]


def test_sampling_writes_images_that_their_json_reproduces(folder):
    prompts = ("a red circle", "a blue square", "a green star")
    common = ("sample", "--workdir=runs/shapes", "--guidance_scale=3", "--seed=5")
    jdiff(*common, *prompts, "--trajectory", "--out=three", cwd=folder)
    about = json.loads((folder / "three" / "000002.json").read_text())
    assert about["prompt"] == prompts[2]
    assert about["seed"] == 7
    alone = ("sample", f"--workdir={about['workdir']}", f"--guidance_scale={about['guidance_scale']}")
    jdiff(*alone, f"--seed={about['seed']}", about["prompt"], "--out=one", cwd=folder)
    first, second = (
        np.asarray(Image.open(folder / name)).astype(int) for name in ("three/000002.png", "one/000000.png")
    )
    assert first.shape == (32, 32, 3)
    assert np.abs(first - second).max() <= 1  # other batch sizes round differently
    assert (folder / "three" / "000000_strip.png").exists()
    with Image.open(folder / "three" / "000000.gif") as animation:
        assert animation.size == (96, 96)  # frames that are equal are written once


def test_many_samples_go_on_where_they_stopped(folder):
    (folder / "prompts.txt").write_text("a red circle\n\na blue ring\n")
    many = ("sample", "--workdir=runs/shapes", "--prompts_file=prompts.txt", "--num=5", "--batch_size=2", "--out=many")
    assert "drawing 5 of 5" in jdiff(*many, cwd=folder).stdout
    kept = (folder / "many" / "000004.png").read_bytes()
    (folder / "many" / "000003.png").unlink()
    assert "drawing 1 of 5" in jdiff(*many, cwd=folder).stdout
    assert (folder / "many" / "000004.png").read_bytes() == kept
    assert json.loads((folder / "many" / "000003.json").read_text())["prompt"] == "a blue ring"
    (folder / "many" / "000002.json").write_text('{"prompt": "a')  # as a kill leaves it
    assert "drawing 1 of 5" in jdiff(*many, cwd=folder).stdout
    assert "drawing 5 of 5" in jdiff(*many, "--trajectory", cwd=folder).stdout
    assert json.loads((folder / "many" / "000003_strip.json").read_text())["prompt"] == "a blue ring"


@pytest.mark.parametrize("run", ["shapes_clip", "shapes"])
def test_evaluating(folder, run):
    jdiff("evaluate", f"--workdir=runs/{run}", "--num=8", cwd=folder)
    found = json.loads((folder / "runs" / run / "evaluation" / "test" / "results.json").read_text())
    if run == "shapes":
        assert found["overlap"] == 0
        assert found["scales"]["2"]["whole"]["count"] == found["prompts"] == 8
    else:
        assert 0 <= found["text_to_image@1"] <= 1
        assert found["analogies"] == 48 * (7 + 5)
        assert found["analogy_chance"] == 1 / 48
    assert "measured already" in jdiff("evaluate", f"--workdir=runs/{run}", "--num=8", cwd=folder).stdout


def test_what_is_unknown_of_an_image_is_measured_for_the_analytic_variance(folder):
    """A network that has learnt nothing says x0 = 0, and what it does not know is the mean square of an image."""
    sampler = package.load(folder / "runs" / "shapes")
    silent = jax.tree.map(jnp.zeros_like, sampler.weights["unet"])
    sampler = dataclasses.replace(sampler, weights={**sampler.weights, "unet": silent})
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    logsnr, variance = sampler.measure_denoising_mse(images, ["a red circle"] * 4, levels=5)
    assert np.all(np.diff(logsnr) > 0)
    np.testing.assert_allclose(variance, ((images / 127.5 - 1) ** 2).mean(), rtol=1e-4)
    in_parts = dataclasses.replace(sampler, schedule=make("cosine", zero_terminal_snr=True))
    found = in_parts.measure_denoising_mse(images, ["a red circle"] * 4, levels=5, batch_size=3)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1], variance[0], rtol=1e-4)
    jdiff("evaluate", "--workdir=runs/shapes", "--num=8", cwd=folder)
    said = ("sample", "runs/shapes", "a red circle", "--solver=ddpm", "--steps=3", "--variance=analytic")
    jdiff(*said, "--out=analytic", cwd=folder)
    assert json.loads((folder / "analytic" / "000000.json").read_text())["variance"] == "analytic"


def test_negative_prompts_are_measured_on_request(folder):
    common = ("evaluate", "--workdir=runs/shapes", "--split=compositions", "--num=4")
    assert "as the negative prompt" in jdiff(*common, "--negative_prompts", cwd=folder).stdout
    found = json.loads((folder / "runs" / "shapes" / "evaluation" / "compositions" / "results.json").read_text())
    assert found["negatives"].keys() == {"colour", "blur"}


def test_load_in_python(folder):
    sampler = package.load(folder / "runs" / "shapes")
    two = sampler.sample(["a red circle", "a blue ring"], guidance_scale=4, seed=0)
    assert two.shape == (2, 32, 32, 3)
    assert two.dtype == np.uint8
    filled = sampler.sample(["a blue ring", "a red circle"], guidance_scale=4, seed=[1, 0])
    np.testing.assert_array_equal(two, filled[::-1])
    plain = sampler.sample(["a red circle"], guidance_scale=1.0, seed=0)
    negative = sampler.sample(["a red circle"], guidance_scale=1.0, negative="blurry", seed=0)
    np.testing.assert_array_equal(plain, negative)  # at scale 1 the negative has no weight
    encoder = package.load(folder / "runs" / "shapes_clip")
    assert encoder.embed_texts(["a red circle"]).shape == (1, 32)


ALONE = """
import runpy, sys
sys.modules["jdiff"] = sys.modules["flax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_exported_sampler_draws_with_jax_alone(folder):
    said = ("--solver=dpmpp_2m", "--steps=3", "--guidance_scale=3")
    jdiff("export", "runs/shapes", "alone", *said, "--max_rows=10", cwd=folder)
    prompts = ("a red circle", "", "A large blue ring that is left of a small green star and much too long to read")
    more = ("--negative=a star", "--seed=5", "--out=from_alone")
    command = [sys.executable, "-c", ALONE, "alone/draw.py", *prompts, *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jdiff("sample", "runs/shapes", *prompts, *said, *more[:2], "--out=from_run", cwd=folder)
    for i in range(3):
        ours, theirs = (Image.open(folder / name / f"{i:06d}.png") for name in ("from_run", "from_alone"))
        # The run's program has rows for a thousand, and rounds as it may.
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    # Two steps of training leave it all but deaf to captions; with other weights, the scale is seen.
    generator = np.random.default_rng(0)
    weights = {
        name: array + 0.1 * generator.standard_normal(array.shape).astype(np.float32)
        for name, array in load_file(folder / "alone" / "weights.safetensors").items()
    }
    save_file(weights, folder / "alone" / "weights.safetensors")
    seen = {}
    for scale in ("3", "6"):
        said = ["alone/draw.py", prompts[0], f"--guidance_scale={scale}", f"--out=scale_{scale}"]
        subprocess.run([sys.executable, "-c", ALONE, *said], cwd=folder, check=True, capture_output=True)
        seen[scale] = np.asarray(Image.open(folder / f"scale_{scale}" / "000000.png"))
    assert (seen["3"] != seen["6"]).any()


def test_a_weaker_model_in_place_of_a_negative_prompt(folder):
    """Led away from itself, a model draws as if not guided; from one of other weights it draws something else."""
    sampler = package.load(folder / "runs" / "shapes")
    other = {**sampler.weights, "unet": jax.tree.map(lambda w: w * 0.9, sampler.weights["unet"])}
    weaker = dataclasses.replace(sampler, weights=other)
    few = {"settings": dataclasses.replace(sampler.settings, steps=5), "seed": 0}

    def drawn(model, scale):
        return model.sample(["a red circle"], guidance_scale=scale, **few).astype(int)

    plain = drawn(sampler, 1.0)
    assert np.abs(drawn(sampler.with_autoguidance(sampler), 4.0) - plain).max() <= 1
    assert (drawn(sampler.with_autoguidance(weaker), 4.0) != plain).any()
    with pytest.raises(ValueError, match="prediction type is v, but must be this one's, x0"):
        sampler.with_autoguidance(dataclasses.replace(sampler, prediction_type="v"))
    with pytest.raises(ValueError, match="schedule's log SNRs"):
        sampler.with_autoguidance(dataclasses.replace(sampler, schedule=make("linear", sampler.schedule.timesteps)))
    with pytest.raises(ValueError, match="negative is said"):
        sampler.with_autoguidance(weaker).sample(["a red circle"], negative="blur", **few)
    jdiff("sample", "runs/shapes", "a red circle", "--autoguidance=runs/shapes", "--out=led", cwd=folder)
    assert json.loads((folder / "led" / "000000.json").read_text())["weaker"] == "runs/shapes"


def test_forward_figure(folder):
    jdiff("figures", "forward", "--out=figures", cwd=folder)
    picture = np.asarray(Image.open(folder / "figures" / "forward.png")).astype(float)
    clean, half, noise = (panel[:, :128] for panel in np.split(picture[2:-2, 2:], 3, axis=1))
    scene = Scene((Thing("star", "red", "large"),), place="centre")
    np.testing.assert_array_equal(clean, render(scene, np.random.default_rng(0), 128))
    draws = norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    betas = np.linspace(1e-4, 0.02, 1000)  # [ddpm sec. 4]
    for panel, steps in ((half, 500), (noise, 1000)):
        alpha_bar = np.prod(1 - betas[:steps])
        for value in (25, 255):  # the green of the star, and paper
            seen = alpha_bar**0.5 * (value / 127.5 - 1) + (1 - alpha_bar) ** 0.5 * draws
            expected = 127.5 * (seen.clip(-1, 1).mean() + 1)  # a screen shows no more than 0 to 255
            assert panel[..., 1][clean[..., 1] == value].mean() == pytest.approx(expected, abs=6)


def test_spiral_figure(folder):
    said = jdiff("figures", "spiral", "--config=spiral:tiny", "--out=figures", cwd=folder).stdout
    assert "DDPM, its noise left out" in said
    for name in ("spiral_field", "spiral_samples"):
        assert np.asarray(Image.open(folder / "figures" / f"{name}.png")).std() > 10
    about = json.loads((folder / "figures" / "spiral_samples.json").read_text())
    assert about["config"]["train"]["steps"] == 2
    assert about["found"].keys() == {"DDPM", "DDPM, its noise left out", "DDIM"}


def test_claims_are_measured_on_any_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    claims = [*path._encoders(Path("runs")), *path._samplers(Path("runs"), quick=False), *path._emoji(Path("runs"))]
    measured = {claim.text for claim in claims if claim.value is not None}
    assert measured >= {"demo: whole right", "demo, guidance 8: whole", "demo, compositions: whole"}
    assert measured >= {"demo: blur shown, as the negative prompt", "demo: arithmetic of meanings"}
    assert not any(text.startswith(("shapes_t2i", "emoji")) for text in measured)


def test_ctrl_c_saves_and_the_same_command_ends_with_the_same_bits(folder):
    common = ["train", "--config=demo_t2i:tiny"]
    common += [f"--config.train.{key}" for key in ("steps=20", "save_every=100", "sample_every=100")]
    running = start(*common, "--workdir=runs/parts", cwd=folder)
    lines = folder / "runs" / "parts" / "metrics.jsonl"
    while running.poll() is None and not (lines.exists() and lines.read_text()):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert "saved; the same command goes on from there" in said
    jdiff(*common, "--workdir=runs/parts", cwd=folder)
    jdiff(*common, "--workdir=runs/whole", cwd=folder)
    parts, whole = (package.load(folder / "runs" / run) for run in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, parts.weights["unet"], whole.weights["unet"])
    assert lines.read_text() == (folder / "runs" / "whole" / "metrics.jsonl").read_text()


BAD = {
    ("smaple",): "'smaple' is no verb of jdiff; did you mean 'sample'?",
    (
        "train",
        "--config=demo_clpi",
        "--workdir=x",
    ): "there is no config 'demo_clpi', as a file",
    ("train", "--config=demo_clip:huge", "--workdir=x"): "'huge' is no variant of this config",
    ("train", "--config=demo_clip:tiny"): "--workdir is missing",
    (
        "train",
        "--config=demo_clip:tiny",
        "--wrokdir=x",
    ): "--wrokdir is no flag of `jdiff train`; did you mean",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.train.step=3"): "config.train.step",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.train.steps=many"): "many",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.train.steps=0"): "must be 1 or more",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--num_processes=2"): "say all three, or none",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--devices=3"): "but --devices is 3",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--cluster=slum"): "--cluster is slum, of which nothing is",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.mesh.slices=2"): "config.mesh.slices is 2",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.data.train=9"): "run `jdiff prepare`",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.diffusion.schedule=cosin"): "did you mean 'cosine'?",
    (
        "train",
        "--config=demo_t2i:tiny",
        "--workdir=x",
        "--config.diffusion.timestep_sampling=risen",
    ): "did you mean 'linear'?",
    (
        "train",
        "--config=demo_t2i:tiny",
        "--workdir=x",
        "--config.train.freeze_text_steps=9",
    ): "config.train.freeze_text_steps is set",
    (
        "train",
        "--config=demo_clip:tiny",
        "--workdir=x",
        "--config.train.freeze_text_steps=2",
    ): "config.train.freeze_text_steps is 2",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.text.clip_skip=9"): "config.text.clip_skip is 9",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.text.clip_skip=1"): "config.text.clip_skip is set",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.sample.steps=0"): "config.sample cannot be used",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.unet.heads=(1,)"): "config.unet cannot be a network",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.text.init_from=nowhere"): "nowhere is neither a run",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.unet.init_from=runs/shapes_clip"): "which has no unet",
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.unet.blocks=1"): "unet",
    (
        "train",
        "--config=demo_clip:tiny",
        "--workdir=runs/shapes_clip",
        "--config.train.seed=1",
    ): "config.train.seed = 0",
    ("sample", "--workdir=nowhere", "a circle"): "nowhere is neither a run",
    ("sample", "--workdir=runs/shapes"): "there is no prompt",
    ("sample", "--workdir=runs/shapes_clip", "a circle"): "is a dual encoder, which cannot draw",
    ("sample", "--workdir=runs/shapes", "a circle", "--steps=2000"): "it must be from 1 to 1000",
    ("sample", "--workdir=runs/shapes", "a circle", "--prompts_file=none.txt"): "none.txt",
    ("sample", "--workdir=runs/shapes", "a circle", "--seed=5000000000"): "--seed=5000000000",
    ("prepare", "--config=emoji_clip", "--config.data.font=nowhere.ttf"): "config.data.font is nowhere.ttf",
    ("prepare", "--config=folder_clip"): "config.data.path is missing",
    ("prepare", "--config=folder_clip", "--config.data.source=tfds:mnits"): "near it: mnist",
    ("evaluate", "--workdir=runs/shapes", "--split=tset"): "there is no split 'tset'",
    ("sample", "--workdir=runs/shapes", "a circle", "--autoguidance=runs/shapes_clip"): "is a dual encoder",
    (
        "sample",
        "--workdir=runs/shapes",
        "a",
        "--autoguidance=runs/shapes",
        "--negative=b",
    ): "--negative and --autoguidance",
    ("export", "runs/shapes"): "two paths; found 1",
    ("export", "runs/shapes", "runs/shapes_clip"): "runs/shapes_clip is there already",
    ("export", "runs/shapes_clip", "new"): "is a dual encoder, which cannot draw",
    ("export", "runs/shapes", "new", "--steps=5000"): "it must be from 1 to 1000",
    ("figures", "backward"): "there is no figure 'backward'",
    ("figures", "spiral", "--config.mlp.widht=3"): "did you mean 'width'?",
    ("figures", "spiral", "--config.train.save_every=5"): "config.train.save_every is nothing that points need",
    (
        "train",
        "--config=demo_clip:tiny",
        "--workdir=runs/new",
        "--config.contrastive.form=ring",
        "--config.contrastive.chunk=3",
    ): "must divide a device's",
    ("train", "--config=spiral", "--workdir=x"): "known are contrastive, diffusion",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_mistake_gets_one_sentence(folder, arguments):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = jdiff(*arguments, cwd=folder, check=False)
    assert done.returncode == 2
    assert BAD[arguments] in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
