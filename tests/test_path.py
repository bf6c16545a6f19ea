"""The whole path as its user walks it, with TensorFlow and torch absent: two steps of each model, then pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.running import jdiff


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
        assert found["analogies_chance"] == 1 / 48
    assert "measured already" in jdiff("evaluate", f"--workdir=runs/{run}", "--num=8", cwd=folder).stdout


def test_negative_prompts_are_measured_on_request(folder):
    common = ("evaluate", "--workdir=runs/shapes", "--split=compositions", "--num=4")
    assert "as the negative prompt" in jdiff(*common, "--negatives", cwd=folder).stdout
    found = json.loads((folder / "runs" / "shapes" / "evaluation" / "compositions" / "results.json").read_text())
    assert found["negatives"].keys() == {"colour", "blur"}


def test_load_in_python(folder):
    import jdiff as package

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


def test_forward_figure(folder):
    jdiff("figures", "forward", "--out=figures", cwd=folder)
    picture = np.asarray(Image.open(folder / "figures" / "forward.png")).astype(float)
    clean, half, noise = np.split(picture[2:-2, 2:], 3, axis=1)
    assert np.abs(noise[:, :128].mean() - 127.5) < 6  # noise about mid-grey


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
    ("train", "--config=demo_clip:tiny", "--workdir=x", "--config.data.train=9"): "run `jdiff prepare`",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.diffusion.schedule=cosin"): "did you mean 'cosine'?",
    ("train", "--config=demo_t2i:tiny", "--workdir=x", "--config.text.run=nowhere"): "nowhere is not a run",
    (
        "train",
        "--config=demo_clip:tiny",
        "--workdir=runs/shapes_clip",
        "--config.train.seed=1",
    ): "config.train.seed = 0",
    ("sample", "--workdir=nowhere", "a circle"): "nowhere is not a run",
    ("sample", "--workdir=runs/shapes"): "there is no prompt",
    ("sample", "--workdir=runs/shapes_clip", "a circle"): "is a dual encoder, which cannot draw",
    ("sample", "--workdir=runs/shapes", "a circle", "--steps=2000"): "it must be from 1 to 1000",
    ("sample", "--workdir=runs/shapes", "a circle", "--prompts_file=none.txt"): "none.txt",
    ("evaluate", "--workdir=runs/shapes", "--split=tset"): "there is no split 'tset'",
    ("figures", "backward"): "there is no figure 'backward'",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_mistake_gets_one_sentence(folder, arguments):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = jdiff(*arguments, cwd=folder, check=False)
    assert done.returncode == 1
    assert BAD[arguments] in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
