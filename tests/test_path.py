"""The commands as a user runs them, without TensorFlow and torch: two training steps of each model, then images.

Each command runs once or more as a process of its own; others, where it does not matter, in this one.
"""

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
from benchmarks import accuracy
from jdiff.commands import flags
from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import Scene, Thing
from jdiff.diffusion.sampler import CHUNK_ROWS
from jdiff.diffusion.schedules import make
from jdiff.inference.calibrate import measure_denoising_mse
from tests.running import jdiff, run_in_process, start

EVALUATE_FLAGS = ("--config.train.evaluate_every=2", "--config.train.evaluate_num=8")
TRAIN_ENCODER = ("train", "--config=demo_clip:tiny", "--workdir=runs/shapes_clip", *EVALUATE_FLAGS)
TRAIN_SAMPLER = ("train", "--config=demo_t2i:tiny", "--workdir=runs/shapes", *EVALUATE_FLAGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both tiny models were trained, and evaluated after the last step."""
    path = tmp_path_factory.mktemp("path")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=path)
    jdiff(*TRAIN_ENCODER, cwd=path)
    jdiff(*TRAIN_SAMPLER, cwd=path)
    (path / "gbk.txt").write_bytes("一只红色的狗".encode("gbk"))
    (path / "co:lon").mkdir()
    shutil.copy(flags.shipped_configs()["demo_clip"], path / "co:lon" / "config.py")
    return path


def log_lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def is_evaluation(line):
    return any(name.startswith("evaluation/") for name in line)


def test_a_run_is_a_directory(folder):
    for name in ("shapes_clip", "shapes"):
        run = folder / "runs" / name
        assert [(line["step"], is_evaluation(line)) for line in log_lines(run)] == [(1, False), (2, False), (2, True)]
        lines = [line for line in log_lines(run) if not is_evaluation(line)]
        assert all(np.isfinite(line["loss"]) for line in lines)
        assert not any("second" in key or "time" in key for key in lines[0])
        assert json.loads((run / "config.json").read_text())["format_version"] == 2
        assert (run / "tokenizer.json").exists()
        assert (run / "samples" / "step_2.png").exists()
        assert list(run.glob("events.*"))
        assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == ["1", "2"]


def test_finished_commands_do_nothing_when_rerun(folder):
    assert "prepared already" in run_in_process("prepare", "--config=demo_clip:tiny", cwd=folder).stdout
    assert "has all its 2 steps already" in run_in_process(*TRAIN_ENCODER, cwd=folder).stdout


SWEEP_OF_SAMPLING = """
from jdiff.sweep import chain, grid, product, seeds
RUN = "runs/shapes"
COMPARE = {"prompt_accuracy": "higher", "diversity": "higher"}
MEASURE = dict(num=4)
def sweep():
    variants = chain(grid({"sample.eta": (0.0, 1.0)}), grid({"measure.ema": ("none",)}))
    return product(seeds(2, "measure.seed"), variants)
"""


@pytest.mark.slow
def test_a_sweep_of_sampling_gives_the_same_results_with_one_job_and_two(folder):
    """Also writes images for each cell."""
    (folder / "drawn.py").write_text(SWEEP_OF_SAMPLING)
    commands = run_in_process("sweep", "drawn.py", "--workdir=apart", "--dry_run", cwd=folder).stdout.splitlines()
    assert commands[1].endswith("sample PROMPT --workdir=runs/shapes --eta=1.0")
    assert commands[5].endswith("sample PROMPT --workdir=runs/shapes --ema=none")
    for jobs, name in ((2, "apart"), (1, "together")):
        output = run_in_process("sweep", "drawn.py", f"--workdir={name}", f"--jobs={jobs}", cwd=folder).stdout
        assert len(re.findall(": done after", output)) == jobs
        assert len(list((folder / name / "pictures").glob("*.png"))) == 6
    results = [(folder / name / "results.csv").read_text() for name in ("apart", "together")]
    assert results[0] == results[1] and len(results[0].splitlines()) == 7
    rows = list(csv.DictReader(results[0].splitlines()))
    assert len({row["diversity"] for row in rows if row["sample.eta"]}) == 4  # all of these drew different images


def test_a_sweep_refuses_an_unfinished_or_third_party_run(folder):
    (folder / "unfinished").mkdir()
    shutil.copy(folder / "runs" / "shapes" / "tokenizer.json", folder / "unfinished")
    config = json.loads((folder / "runs" / "shapes" / "config.json").read_text())
    config["train"]["steps"] = 9
    (folder / "unfinished" / "config.json").write_text(json.dumps(config))
    shutil.copytree(folder / "runs" / "shapes" / "checkpoints", folder / "unfinished" / "checkpoints")
    (folder / "third_party").mkdir()
    (folder / "third_party" / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    for run, message in (
        ("unfinished", "at step 2 of 9"),
        ("third_party", "not a run of jdiff"),
    ):
        (folder / "wrong.py").write_text(SWEEP_OF_SAMPLING.replace("runs/shapes", run))
        process = run_in_process("sweep", "wrong.py", "--workdir=wrong", cwd=folder, check=False)
        assert process.returncode == 2 and message in process.stderr, process.stderr
        assert not (folder / "wrong").exists()


def test_a_dry_run_of_a_sweep_prints_evaluate_for_an_encoder(folder):
    text = SWEEP_OF_SAMPLING.replace("runs/shapes", "runs/shapes_clip").replace("prompt_accuracy", "text_to_image@1")
    variants = 'product(grid({"measure.ema": ("none",)}))'
    (folder / "measured.py").write_text(re.sub("product\\(seeds.*", variants, text))
    commands = run_in_process("sweep", "measured.py", "--workdir=measured", "--dry_run", cwd=folder).stdout.splitlines()
    assert commands == ["jdiff evaluate --workdir=runs/shapes_clip --ema=none"]


def test_an_image_is_reproduced_from_its_json(folder):
    prompts = ("a red circle", "a blue square", "a green star")
    common = ("sample", "--workdir=runs/shapes", "--guidance_scale=3", "--seed=5")
    run_in_process(*common, *prompts, "--trajectory", "--out=three", cwd=folder)
    settings = json.loads((folder / "three" / "000002.json").read_text())
    assert settings["prompt"] == prompts[2]
    assert settings["seed"] == 7
    same_run = ("sample", f"--workdir={settings['workdir']}", f"--guidance_scale={settings['guidance_scale']}")
    run_in_process(*same_run, f"--seed={settings['seed']}", settings["prompt"], "--out=one", cwd=folder)
    first, second = (
        np.asarray(Image.open(folder / name)).astype(int) for name in ("three/000002.png", "one/000000.png")
    )
    assert first.shape == (32, 32, 3)
    assert np.abs(first - second).max() <= 1  # other batch sizes round differently
    assert (folder / "three" / "000000_strip.png").exists()
    with Image.open(folder / "three" / "000000.gif") as animation:
        assert animation.size == (96, 96)  # frames that are equal are written once


def test_sampling_draws_only_missing_images(folder):
    (folder / "prompts.txt").write_text("a red circle\n\na blue ring\n")
    command = (
        "sample",
        "--workdir=runs/shapes",
        "--prompts_file=prompts.txt",
        "--num=5",
        "--batch_size=2",
        "--out=many",
    )
    assert "drawing 5 of 5" in jdiff(*command, cwd=folder).stdout
    image = (folder / "many" / "000004.png").read_bytes()
    (folder / "many" / "000003.png").unlink()
    assert "drawing 1 of 5" in run_in_process(*command, cwd=folder).stdout
    assert (folder / "many" / "000004.png").read_bytes() == image
    assert json.loads((folder / "many" / "000003.json").read_text())["prompt"] == "a blue ring"
    (folder / "many" / "000002.json").write_text('{"prompt": "a')  # truncated by a kill
    assert "drawing 1 of 5" in run_in_process(*command, cwd=folder).stdout
    assert "drawing 5 of 5" in run_in_process(*command, "--trajectory", cwd=folder).stdout
    assert json.loads((folder / "many" / "000003_strip.json").read_text())["prompt"] == "a blue ring"


@pytest.mark.parametrize("run", ["shapes_clip", "shapes"])
def test_evaluate_writes_results_and_reuses_them(folder, run):
    """They are those that training logged after its last step, to the bit."""
    jdiff("evaluate", f"--workdir=runs/{run}", "--num=8", cwd=folder)
    results = json.loads((folder / "runs" / run / "evaluation" / "test" / "results.json").read_text())
    if run == "shapes":
        assert results["overlap"] == 0
        assert results["scales"]["2"]["prompt_accuracy"]["count"] == results["prompts"] == 8
    else:
        assert 0 <= results["text_to_image@1"] <= 1
        assert results["analogies"] == 48 * (7 + 5)
        assert results["analogy_chance"] == 1 / 48
    shares = {name: rate["share"] for name, rate in results["scales"]["2"].items()} if run == "shapes" else results
    (line,) = filter(is_evaluation, log_lines(folder / "runs" / run))
    log = {name.removeprefix("evaluation/"): value for name, value in line.items() if name != "step"}
    assert log == {name: shares[name] for name in log} and len(log) > 3
    assert "measured already" in run_in_process("evaluate", f"--workdir=runs/{run}", "--num=8", cwd=folder).stdout


def test_denoising_mse_of_a_silent_network_is_the_mean_square_of_images(folder):
    """A network with zero weights predicts x0 = 0. ``evaluate`` measures it, and the analytic variance reads it."""
    sampler = package.load(folder / "runs" / "shapes")
    silent = jax.tree.map(jnp.zeros_like, sampler.params["denoiser"])
    sampler = dataclasses.replace(sampler, params={**sampler.params, "denoiser": silent})
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    logsnr, variance = measure_denoising_mse(sampler, images, ["a red circle"] * 4, levels=5)
    assert np.all(np.diff(logsnr) > 0)
    np.testing.assert_allclose(variance, ((images / 127.5 - 1) ** 2).mean(), rtol=1e-4)
    zero_snr_sampler = dataclasses.replace(sampler, schedule=make("cosine", zero_terminal_snr=True))
    logsnr_and_variance = measure_denoising_mse(zero_snr_sampler, images, ["a red circle"] * 4, levels=5, batch_size=3)
    assert np.isfinite(logsnr_and_variance).all()
    np.testing.assert_allclose(logsnr_and_variance[1], variance[0], rtol=1e-4)
    run_in_process("evaluate", "--workdir=runs/shapes", "--num=8", cwd=folder)
    command = ("sample", "runs/shapes", "a red circle", "--solver=ddpm", "--steps=3", "--variance=analytic")
    run_in_process(*command, "--out=analytic", cwd=folder)
    assert json.loads((folder / "analytic" / "000000.json").read_text())["variance"] == "analytic"


def test_negative_prompts_are_measured_on_request(folder):
    common = ("evaluate", "--workdir=runs/shapes", "--split=compositions", "--num=4")
    assert "as the negative prompt" in run_in_process(*common, "--negative_prompts", cwd=folder).stdout
    results = json.loads((folder / "runs" / "shapes" / "evaluation" / "compositions" / "results.json").read_text())
    assert results["negatives"].keys() == {"colour", "blur"}


def test_a_run_loads_in_python(folder):
    sampler = package.load(folder / "runs" / "shapes")
    two = sampler.sample(["a red circle", "a blue ring"], guidance_scale=4, seed=0)
    assert two.shape == (2, 32, 32, 3)
    assert two.dtype == np.uint8
    reverse = sampler.sample(["a blue ring", "a red circle"], guidance_scale=4, seed=[1, 0])
    np.testing.assert_array_equal(two, reverse[::-1])
    plain = sampler.sample(["a red circle"], guidance_scale=1.0, seed=0)
    negative = sampler.sample(["a red circle"], guidance_scale=1.0, negative="blurry", seed=0)
    np.testing.assert_array_equal(plain, negative)  # at scale 1 the negative has no weight
    encoder = package.load(folder / "runs" / "shapes_clip")
    assert encoder.embed_texts(["a red circle"]).shape == (1, 32)


STREAM_SETTINGS = {
    "three_chunks": {"steps": 2 * CHUNK_ROWS + 3, "solver": "ddpm"},
    "less_than_a_chunk": {"steps": CHUNK_ROWS - 6},
    "guidance_interval": {"steps": CHUNK_ROWS - 1, "guidance_from": -3.0, "guidance_to": 3.0},
}


@pytest.mark.parametrize(("name", "chunks"), [*zip(STREAM_SETTINGS, (3, 1, 3))])
def test_stream_yields_images_after_every_chunk_and_last_those_of_sample(folder, name, chunks):
    """A chunk has up to ten rows of one denoiser, so a guidance interval divides the rows in three."""
    sampler = package.load(folder / "runs" / "shapes")
    # After two training steps predictions hardly depend on captions; with random parameters guidance matters.
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    denoiser = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(next(keys), w.shape), sampler.params["denoiser"])
    sampler = dataclasses.replace(sampler, params={**sampler.params, "denoiser": denoiser})
    settings = dataclasses.replace(sampler.settings, **STREAM_SETTINGS[name])
    request = {"prompts": ["a red circle", "a blue ring"], "seed": 3, "settings": settings}
    images = list(sampler.stream(**request))
    assert [(image.shape, image.dtype) for image in images] == [((2, 32, 32, 3), np.uint8)] * chunks
    np.testing.assert_array_equal(images[-1], sampler.sample(**request))
    assert all((image != images[-1]).any() for image in images[:-1])
    first_only = sampler.stream(**request)
    np.testing.assert_array_equal(next(first_only), images[0])
    first_only.close()


WITHOUT_JDIFF = """
import runpy, sys
sys.modules["jdiff"] = sys.modules["flax"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_exported_sampler_draws_with_jax_alone(folder):
    settings = ("--solver=dpmpp_2m", "--steps=3", "--guidance_scale=3")
    jdiff("export", "runs/shapes", "alone", *settings, "--max_rows=10", cwd=folder)
    prompts = ("a red circle", "", "A large blue ring that is left of a small green star and much too long to read")
    options = ("--negative=a star", "--seed=5", "--out=from_alone")
    command = [sys.executable, "-c", WITHOUT_JDIFF, "alone/draw.py", *prompts, *options]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    run_in_process("sample", "runs/shapes", *prompts, *settings, *options[:2], "--out=from_run", cwd=folder)
    for i in range(3):
        image, exported_image = (Image.open(folder / name / f"{i:06d}.png") for name in ("from_run", "from_alone"))
        # The run's program has a thousand rows, and may round differently.
        assert np.abs(np.asarray(image).astype(int) - np.asarray(exported_image)).max() <= 1
    # After two training steps the network hardly depends on captions; with random weights the scale matters.
    generator = np.random.default_rng(0)
    weights = {
        name: array + 0.1 * generator.standard_normal(array.shape).astype(np.float32)
        for name, array in load_file(folder / "alone" / "weights.safetensors").items()
    }
    save_file(weights, folder / "alone" / "weights.safetensors")
    images = {}
    for scale in ("3", "6"):
        arguments = ["alone/draw.py", prompts[0], f"--guidance_scale={scale}", f"--out=scale_{scale}"]
        subprocess.run([sys.executable, "-c", WITHOUT_JDIFF, *arguments], cwd=folder, check=True, capture_output=True)
        images[scale] = np.asarray(Image.open(folder / f"scale_{scale}" / "000000.png"))
    assert (images["3"] != images["6"]).any()


def test_autoguidance_by_the_model_itself_changes_nothing(folder):
    """Guided away from itself, a model draws as without guidance; guided by other weights, it draws something else."""
    sampler = package.load(folder / "runs" / "shapes")
    other = {**sampler.params, "denoiser": jax.tree.map(lambda w: w * 0.9, sampler.params["denoiser"])}
    weaker = dataclasses.replace(sampler, params=other)
    options = {"settings": dataclasses.replace(sampler.settings, steps=5), "seed": 0}

    def images(model, scale):
        return model.sample(["a red circle"], guidance_scale=scale, **options).astype(int)

    plain = images(sampler, 1.0)
    assert np.abs(images(sampler.with_autoguidance(sampler), 4.0) - plain).max() <= 1
    assert (images(sampler.with_autoguidance(weaker), 4.0) != plain).any()
    with pytest.raises(ValueError, match="prediction type is v, .* x0"):
        sampler.with_autoguidance(dataclasses.replace(sampler, prediction_type="v"))
    with pytest.raises(ValueError, match="schedule's log SNRs"):
        sampler.with_autoguidance(dataclasses.replace(sampler, schedule=make("linear", sampler.schedule.timesteps)))
    with pytest.raises(ValueError, match="negative prompts"):
        sampler.with_autoguidance(weaker).sample(["a red circle"], negative="blur", **options)
    run_in_process("sample", "runs/shapes", "a red circle", "--autoguidance=runs/shapes", "--out=guided", cwd=folder)
    assert json.loads((folder / "guided" / "000000.json").read_text())["autoguidance"] == "runs/shapes"


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
            pixels = alpha_bar**0.5 * (value / 127.5 - 1) + (1 - alpha_bar) ** 0.5 * draws
            expected = 127.5 * (pixels.clip(-1, 1).mean() + 1)  # a screen shows no more than 0 to 255
            assert panel[..., 1][clean[..., 1] == value].mean() == pytest.approx(expected, abs=6)


def test_spiral_figure(folder):
    output = run_in_process("figures", "spiral", "--config=spiral:tiny", "--out=figures", cwd=folder).stdout
    assert "DDPM without its noise" in output
    for name in ("spiral_field", "spiral_samples"):
        assert np.asarray(Image.open(folder / "figures" / f"{name}.png")).std() > 10
    results = json.loads((folder / "figures" / "spiral_samples.json").read_text())
    assert results["config"]["train"]["steps"] == 2
    assert results["results"].keys() == {"DDPM", "DDPM without its noise", "DDIM"}


def test_claims_are_measured_on_any_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    evaluate, runs = accuracy._evaluate, Path("runs")
    monkeypatch.setattr(accuracy, "_evaluate", lambda path, **options: evaluate(path, **(options | {"num": 4})))
    claims = [*accuracy._encoders(runs), *accuracy._samplers(runs, quick=False), *accuracy._emoji(runs)]
    texts = {claim.text for claim in claims if claim.value is not None}
    assert texts >= {"demo: prompt accuracy right", "demo, guidance 8: prompt accuracy"}
    assert texts >= {"demo, compositions: prompt accuracy", "demo: analogy accuracy"}
    assert texts >= {"demo: blur shown, as the negative prompt"}
    assert not any(text.startswith(("shapes_t2i", "emoji")) for text in texts)


@pytest.mark.slow  # tests/faults has the like, of a smaller model
def test_resume_after_ctrl_c_is_bit_identical(folder):
    common = ["train", "--config=demo_t2i:tiny", "--config.train.steps=20", "--config.train.save_every=100"]
    common += ["--config.train.sample_every=100", "--config.denoiser.channels=(16,)"]
    common += ["--config.denoiser.attention=(True,)", "--config.denoiser.heads=(1,)"]  # compiled in half the time
    running = start(*common, "--workdir=runs/resumed", cwd=folder)
    lines = folder / "runs" / "resumed" / "metrics.jsonl"
    while running.poll() is None and not (lines.exists() and lines.read_text()):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate()
    assert running.returncode == 130, errors
    assert "saved a checkpoint" in errors
    jdiff(*common, "--workdir=runs/resumed", cwd=folder)
    jdiff(*common, "--workdir=runs/uninterrupted", cwd=folder)
    params = [package.load(folder / "runs" / name).params["denoiser"] for name in ("resumed", "uninterrupted")]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert lines.read_text() == (folder / "runs" / "uninterrupted" / "metrics.jsonl").read_text()


def test_a_run_is_trained_longer_at_another_rate_which_its_history_records(folder):
    run = folder / "runs" / "longer"
    shutil.copytree(folder / "runs" / "shapes_clip", run)
    command = ("train", "--config=demo_clip:tiny", "--workdir=runs/longer", "--config.train.steps=3", *EVALUATE_FLAGS)
    command += ("--config.optimizer.learning_rate=0.002", "--config.train.log_every=3")
    output = run_in_process(*command, cwd=folder).stdout
    assert "config.train.steps = 3, which was 2" in output and "config.train.log_every = 3" in output
    assert [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()] == [
        {"step": 2, "changes": {"train.steps": [2, 3], "optimizer.learning_rate": [0.001, 0.002]}}
    ]
    assert [line["step"] for line in log_lines(run) if not is_evaluation(line)] == [1, 2, 3]
    assert "has all its 3 steps already" in run_in_process(*command, cwd=folder).stdout


def test_home_is_expanded_and_a_value_may_follow_a_space(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flag = "--config.data.directory"
    for i, arguments in enumerate([(f"{flag}=~/0",), (f"{flag}=$HOME/1",), (flag, "~/2"), (f"{flag}=${{HOME}}/3",)]):
        output = run_in_process("prepare", "--config=demo_clip:tiny", *arguments, cwd=tmp_path).stdout
        assert f"{tmp_path}/{i}/captioned_images" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_a_prompt_is_its_words_whatever_is_between_them(folder):
    for images, prompt in (("plain", "a red circle"), ("spaces", "\u00a0a  red\u2028circle\r\n")):
        run_in_process(*SAMPLE[:2], prompt, "--steps=2", f"--out={images}", cwd=folder)
    for file in ("000000.png", "000000.json"):
        assert (folder / "plain" / file).read_bytes() == (folder / "spaces" / file).read_bytes()


ENCODER = ("train", "--config=demo_clip:tiny", "--workdir=x")
SAMPLER = ("train", "--config=demo_t2i:tiny", "--workdir=x")
SAMPLE = ("sample", "--workdir=runs/shapes", "a circle")
# What the error of each command must name: the key, flag or value.
BAD = {
    ("smaple",): "'sample'",
    ("train", "--config=demo_clpi", "--workdir=x"): "'demo_clpi'",
    ("train", "--config=demo_clip:huge", "--workdir=x"): "'huge'",
    ("train", "--config=demo_clip:tiny"): "--workdir",
    ("train", "--config=demo_clip:tiny", "--wrokdir=x"): "--wrokdir",
    ("train", "--config=spiral", "--workdir=x"): "--config is of task 'points'",
    (*ENCODER, "--config.train.step=3"): "config.train.step",
    (*ENCODER, "--config.train.steps=many"): "many",
    (*ENCODER, "--config.train.steps=0"): "config.train.steps",
    (*ENCODER, "--config.train.objective=contrastive"): "config.train.task",
    (*ENCODER, "--config.train.freeze_text_steps=2"): "config.train.freeze_text_steps is 2",
    (*SAMPLER, "--config.train.freeze_text_steps=9"): "config.train.freeze_text_steps",
    (*ENCODER, "--config.train.freeze=('vision/no_.*',)"): "config.train.freeze has 'vision/no_.*'",
    (*ENCODER, "--config.train.freeze=('.*',)"): "config.train.freeze",
    (*ENCODER, "--config.train.freeze=('vision/(',)"): "config.train.freeze has 'vision/('",
    (*ENCODER, "--config.train.freeze=vision/.*"): "config.train.freeze",
    (*ENCODER, "--num_processes=2"): "--num_processes",
    (*ENCODER, "--devices=3"): "--devices is 3",
    (*ENCODER, "--cluster=slum"): "--cluster is slum",
    (*ENCODER, "--config.mesh.slices=2"): "config.mesh.slices is 2",
    (*ENCODER, "--config.mesh.contxt=2"): "config.mesh.contxt",
    (*ENCODER, "--config.data.train=9"): "jdiff prepare",
    (*ENCODER, "--config.data.imagesize=2"): "'image_size'",
    (*ENCODER, "--config.data.directry=x"): "'directory'",
    (*ENCODER, "--config.optimizer.name=adam"): "'adamw'",
    (*ENCODER, "--config.optimizer.learning_rate=-0.1"): "config.optimizer.learning_rate is -0.1",
    (*ENCODER, "superfluous"): "'superfluous'",
    ("prepare", "--config=demo_clip:tiny", "superfluous"): "'superfluous'",
    ("evaluate", "--workdir=runs/shapes", "superfluous"): "'superfluous'",
    ("train", "--config=co:lon/config.py:tiny", "--workdir=x"): "--config: the path co:lon/config.py",
    (*ENCODER, "--config.text.clip_skip=1"): "config.text.clip_skip",
    (*SAMPLER, "--config.text.clip_skip=9"): "config.text.clip_skip is 9",
    (*SAMPLER, "--config.text.init_from=nowhere"): "nowhere",
    (*SAMPLER, "--config.diffusion.schedule=cosin"): "'cosine'",
    (*SAMPLER, "--config.diffusion.schedule.beta_end=0.03"): "config.diffusion.schedule.beta_end",  # none of cosine's
    (*SAMPLER, "--config.diffusion.schedule=linear", "--config.diffusion.schedule.beta_edn=0.03"): "'beta_end'",
    (*SAMPLER, "--config.diffusion.timestep_sampling=risen"): "config.diffusion.timestep_sampling",
    (*SAMPLER, "--config.sample.steps=0"): "config.sample",
    (*SAMPLER, "--config.denoiser.heads=(1,)"): "config.denoiser",
    (*SAMPLER, "--config.denoiser.init_from=runs/shapes_clip"): "config.denoiser.init_from is runs/shapes_clip",
    (*SAMPLER, "--config.unet.blocks=1"): "config.denoiser",
    (*ENCODER, "--config.denoiser.blocks=1"): "config.denoiser",
    (*ENCODER, "--config.contrastive.form=ring", "--config.contrastive.chunk=3"): "config.contrastive.chunk",
    (*TRAIN_ENCODER, "--config.train.seed=1"): "config.train.seed = 0",
    (*TRAIN_ENCODER, "--config.train.batch_size=16"): "config.train.batch_size = ",
    ("train", "--config=demo_t2i:tiny", "--workdir=runs/shapes_clip"): "config.train.task",
    ("sample", "--workdir=nowhere", "a circle"): "nowhere",
    ("sample", "--workdir=runs/shapes"): "--prompts_file",
    ("sample", "--workdir=runs/shapes_clip", "a circle"): "runs/shapes_clip is of task 'contrastive'",
    (*SAMPLE, "--steps=2000"): "1000",
    (*SAMPLE, "--prompts_file=none.txt"): "none.txt",
    (*SAMPLE, "--prompts_file=gbk.txt"): "gbk.txt is neither UTF-8 nor UTF-16",
    ("sample", "--workdir=runs/shapes", "caf\udce9"): "not UTF-8",
    ("sample", "--workdir=runs/shapes", "-1girl, solo"): "write prompts that begin with '-' after --",
    (*SAMPLE, "--out=gbk.txt"): "--out is gbk.txt",
    (*SAMPLE, "--out=/proc/x"): "--out is /proc/x",
    (*SAMPLE, "--seed=5000000000"): "--seed=5000000000",
    (*SAMPLE, "--average=none"): "--ema",
    (*SAMPLE, "--ema=0.5"): "0.5",
    (*SAMPLE, "--autoguidance=runs/shapes_clip"): "runs/shapes_clip is of task 'contrastive'",
    (*SAMPLE, "--autoguidance=runs/shapes", "--negative=b"): "--negative cannot be combined with --autoguidance",
    ("prepare", "--config=emoji_clip", "--config.data.font=nowhere.ttf"): "config.data.font",
    ("prepare", "--config=folder_clip"): "config.data.path",
    ("prepare", "--config=folder_clip", "--config.data.source=tfds:mnits"): "mnist",
    ("evaluate", "--workdir=runs/shapes", "--split=tset"): "'tset'",
    ("evaluate", "--workdir=runs/shapes_clip", "--negative_prompts"): "--negative_prompts",
    ("export", "runs/shapes"): "two paths",
    ("export", "runs/shapes", "runs/shapes_clip"): "runs/shapes_clip",
    ("export", "runs/shapes_clip", "new"): "runs/shapes_clip is of task 'contrastive'",
    ("export", "runs/shapes", "new", "--steps=5000"): "1000",
    ("figures", "backward"): "'backward'",
    ("figures", "spiral", "--config=demo_clip"): "--config is of task 'contrastive'",
    ("figures", "spiral", "--config.mlp.widht=3"): "'width'",
    ("figures", "spiral", "--config.train.save_every=5"): "config.train.save_every",
    ("sweep", "spiral_setps", "--workdir=x"): "'spiral_steps'",
    ("sweep", "spiral_steps", "--workdir=x", "--runs=one"): "--runs is one",
}


# One mistake of each kind, end to end: command, flag, config key, prompt, run.
PROCESSES = [
    ("smaple",),
    ("train", "--config=demo_clip:tiny", "--wrokdir=x"),
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.train.step=3"),
    ("sample", "--workdir=runs/shapes"),
    ("sample", "--workdir=nowhere", "a circle"),
]


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_mistake_exits_with_2_and_one_line_and_writes_nothing(folder, arguments):
    files = modification_times(folder)
    result = run_in_process(*arguments, cwd=folder, check=False)
    assert result.returncode == 2
    assert BAD[arguments] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert files == modification_times(folder)


@pytest.mark.parametrize("arguments", PROCESSES, ids=" ".join)
def test_a_mistake_ends_a_process_with_2_and_one_line(folder, arguments):
    files = modification_times(folder)
    process = jdiff(*arguments, cwd=folder, check=False)
    assert process.returncode == 2
    assert BAD[arguments] in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert files == modification_times(folder)


EARLY_ANSWERS = {
    ("smaple",): 2,
    ("--help",): 0,
    ("train", "--help"): 0,
    ("train", "--confg=x"): 2,
    ("train", "--config=demo_clip", "--config.train.stesp=3"): 2,
    ("train", "--config=demo_t2i", "--config.diffusion.schedule.beta_edn=0.03"): 2,
}
IMPORTS = """
import sys
from jdiff import cli
sys.argv[0] = "jdiff"
try:
    cli.main()
finally:
    print([name for name in ("jax", "jaxlib", "numpy", "flax") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", EARLY_ANSWERS, ids=" ".join)
def test_help_and_misspelt_arguments_are_answered_without_importing_jax_or_numpy(arguments):
    """So they are answered within half a second."""
    process = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True)
    assert process.returncode == EARLY_ANSWERS[arguments], process.stderr
    assert process.stderr.splitlines()[-1] == "[]"
