"""Somebody's weights, used as a run is: found, drawn with, measured, converted, trained from."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jdiff as jdiff_package
from jdiff import build, runs
from jdiff.construct import ConfigError
from jdiff.diffusion.settings import Settings
from jdiff.interop import foreign, positions
from jdiff.interop.foreign import Hints
from jdiff.interop.tensors import WrongWeights, scan
from jdiff.verbs.convert import convert
from jdiff.verbs.evaluate_folder import evaluate_folder
from tests.interop import toys
from tests.running import jdiff

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of toys, and their weights in our names."""
    root = tmp_path_factory.mktemp("models")
    weights = {
        "clip": toys.clip(root / "clip"),
        "openai/ViT.safetensors": toys.openai_clip(root / "openai" / "ViT.safetensors"),
        "sd": toys.stable_diffusion(root / "sd"),
    }
    return root, weights


HINTS = {"openai/ViT.safetensors": Hints(activation="quick_gelu")}


@pytest.mark.parametrize("name", ["clip", "openai/ViT.safetensors", "sd"])
def test_what_was_written_is_found_and_converts_to_an_equal_run(name, models, tmp_path):
    root, weights = models
    model = runs.find(root / name, HINTS.get(name, Hints()))
    jax.tree.map(np.testing.assert_array_equal, model.weights(ONE), weights[name])
    convert(str(root / name), str(tmp_path / "run"), HINTS.get(name, Hints()))
    again = runs.find(tmp_path / "run")
    assert again.step == 0
    assert again.setup == model.setup
    jax.tree.map(np.testing.assert_array_equal, again.weights(ONE), weights[name])
    said = ["a cat", "a DOG é", ""]
    for ours, theirs in zip(again.tokenizer.encode(said), model.tokenizer.encode(said)):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match="there already"):
        convert(str(root / name), str(tmp_path / "run"), Hints())


def test_in_python(models):
    encoder = jdiff_package.load(models[0] / "openai" / "ViT.safetensors", activation="quick_gelu")
    found = encoder.embed_texts(["a cat"] * 300)  # more than are embedded at a time
    assert found.shape == (300, 16)
    np.testing.assert_allclose(found[0], found[-1], atol=1e-6)


def test_one_part_alone_is_read(models):
    root, weights = models
    assert runs.find(root / "sd").weights(ONE, only=("text",)).keys() == {"text"}


def test_latents_are_decoded_and_an_image_is_its_seeds_own(models):
    sampler = runs.load(models[0] / "sd")
    settings = dataclasses.replace(sampler.settings, steps=3)
    images, path = sampler.sample(["a cat", "a dog"], settings=settings, seed=4, trajectory=True)
    assert images.shape == (2, 16, 16, 3) and path.shape == (3, 2, 16, 16, 3)
    np.testing.assert_array_equal(sampler.sample(["a dog"], settings=settings, seed=5)[0], images[1])
    noise = np.zeros((1, *sampler.shape), np.float32)
    assert (sampler.sample(["a dog"], settings=settings, noise=noise)[0] != images[1]).any()
    with pytest.raises(ValueError, match="noise is of shape"):
        sampler.sample(["a dog"], settings=settings, noise=noise[:, 1:])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"prompts": "a cat"}, "must be a list"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"settings": [Settings()]}, "settings has 1 values, but there are 2 prompts"),
        ({"guidance_scale": [1, 2, 3]}, "guidance_scale has 3 values"),
        ({"negative": ["", "", ""]}, "negative has 3 values"),
        ({"seed": [7]}, "seed has 1 values"),
        ({"seed": -1}, "seeds are from -1 to 0"),
        ({"seed": 2**32 - 1}, "but must be from 0 to 4294967295"),
    ],
    ids=str,
)
def test_what_is_not_said_for_each_image_is_refused(models, said, why):
    """An image left out, or drawn by its neighbour's seed, would otherwise never be noticed."""
    with pytest.raises(ValueError, match=why):
        runs.load(models[0] / "sd").sample(**{"prompts": ["a cat", "a dog"], **said})


def test_sampling_is_as_shipped(models):
    """Leading timesteps from 981 to 1, and the last step ends at timestep 0, not at the clean image."""
    setup = runs.find(models[0] / "sd").setup
    settings, schedule = dataclasses.replace(setup.sample, steps=50), setup.schedule()
    tableau = settings.tableau(schedule)
    assert (tableau.timestep[0], tableau.timestep[-1]) == (981, 1)
    np.testing.assert_allclose(tableau.x0_coef[-1], schedule.alpha_bar[0] ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(tableau.eps_coef[-1], (1 - schedule.alpha_bar[0]) ** 0.5, rtol=1e-5)
    assert not settings.clip
    with pytest.raises(ValueError, match="steps_offset is 20"):
        dataclasses.replace(settings, steps=50, steps_offset=20).tableau(schedule)


def test_padding_is_read_where_it_was_trained_to_be(models):
    """The U-Net of Stable Diffusion looks at all 77 states, so a caption's padding matters."""
    sampler = runs.load(models[0] / "sd")
    text = sampler.text.apply({"params": sampler.weights["text"]}, *sampler.tokenizer.encode(["a cat"]))[0]
    mask = sampler.tokenizer.encode(["a cat"])[1]
    latents, time = np.ones((1, *sampler.shape), np.float32), np.array([500.0])
    changed = np.where(mask[..., None], text, text + 1)
    for reads in (True, False):
        unet = sampler.unet.clone(attend_to_padding=reads)
        a, b = (unet.apply({"params": sampler.weights["unet"]}, latents, time, t, mask) for t in (text, changed))
        assert (np.abs(a - b).max() > 1e-6) == reads


def test_the_command_line_draws_from_a_folder(models, tmp_path):
    done = jdiff("sample", str(models[0] / "sd"), "a cat", "--negative=a dog", "--steps=2", cwd=tmp_path)
    assert "PNDMScheduler" in done.stdout
    with Image.open(tmp_path / "images" / "000000.png") as image:
        assert image.size == (16, 16)
    assert json.loads((tmp_path / "images" / "000000.json").read_text())["workdir"] == str(models[0] / "sd")


BAD = {
    ("sample", "clip", "a cat"): "is a dual encoder, which cannot draw",
    ("convert", "openai/ViT.safetensors", "x"): "--activation=quick_gelu",
    ("convert", "clip"): "two paths",
    ("convert", "clip/vocab.json", "x"): "nothing that can be converted",
    ("convert", "nowhere", "x"): "there is no nowhere",
    ("evaluate", "--workdir=sd", "--images=openai"): "measures a dual encoder",
    ("evaluate", "--workdir=clip", "--images=nowhere"): "there is no folder nowhere",
    ("convert", "clip/model.safetensors", "x"): "name its folder",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_mistake_gets_one_sentence(arguments, models):
    done = jdiff(*arguments, cwd=models[0], check=False)
    assert done.returncode == 2
    assert BAD[arguments] in done.stderr and "Traceback" not in done.stderr
    assert not (models[0] / "x").exists()


def changed(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        ("unet/config.json", {"freq_shift": 1}, "freq_shift = 1"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_start and beta_end"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(file, values, why, tmp_path):
    toys.stable_diffusion(tmp_path / "sd")
    changed(tmp_path / "sd", file, **values)
    with pytest.raises(WrongWeights, match=why):
        foreign.find(tmp_path / "sd")


def test_wrong_weights_are_listed_with_their_file(tmp_path):
    toys.clip(tmp_path / "clip")
    found = {name: tensor.read() for name, tensor in scan(tmp_path / "clip" / "model.safetensors").items()}
    del found["logit_scale"]
    save_file({**found, "extra": np.zeros(2, np.float32)}, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(WrongWeights, match=r"(?s)2 tensors of .*clip.*missing     logit_scale.*unexpected  extra"):
        runs.find(tmp_path / "clip").weights(ONE)


def test_a_tower_at_another_size_has_resized_positions(models):
    root, weights = models
    old = weights["clip"]["vision"]["positions"]
    for name, antialias in (("clip", False), ("openai/ViT.safetensors", True)):
        hints = dataclasses.replace(HINTS.get(name, Hints()), image_size=48)
        new = runs.find(root / name, hints).weights(ONE)["vision"]["positions"]
        assert new.shape == (37, 64)
        np.testing.assert_allclose(new, positions.resize(old, 37, first=1, antialias=antialias), rtol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(7, 12), (12, 7), (16, 16), (24, 9)])
def test_antialiased_positions_are_those_of_jax(before, after):
    """JAX's own cubic resampling widens and normalises its kernel as PyTorch's antialiased one does."""
    rows = np.random.default_rng(0).standard_normal((before * before, 5))
    grid = jax.image.resize(rows.reshape(before, before, 5), (after, after, 5), "cubic", antialias=True)
    np.testing.assert_allclose(
        positions.resize(rows, after * after, first=0, antialias=True), grid.reshape(-1, 5), atol=1e-5
    )


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_of_a_line_stay_on_it(antialias):
    """Cubic convolution reproduces straight lines away from the edges [keys sec. III]."""
    line = np.repeat(np.arange(16.0), 16)[:, None]
    found = positions.resize(line, 32 * 32, first=0, antialias=antialias).reshape(32, 32)
    wanted = (np.arange(32) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(found[6:-6, 16], wanted[6:-6], atol=1e-9 if antialias else 0.08)


def config(**sections):
    base = {
        "data": {"source": "folder", "path": "x", "image_size": 16},
        "train": {"task": "text_to_image", "batch_size": 2, "steps": 2},
    }
    return build.experiment({**base, **sections})


def test_what_comes_with_a_network(models, tmp_path):
    """A text tower brings its tokenizer; a U-Net its autoencoder, what it predicts and how it is sampled."""
    start = str(models[0] / "sd")
    setup, starts = runs.with_starts(config(text={"init_from": start}, unet={"init_from": start}), tmp_path)
    theirs = runs.find(start).setup
    assert setup.unet() == theirs.unet() and setup.autoencoder() == theirs.autoencoder()
    assert setup.diffusion == theirs.diffusion and setup.sample == theirs.sample
    assert setup.config["tokenizer"] == theirs.config["tokenizer"]
    assert setup.frozen == {"text", "autoencoder"}
    assert runs.starting_weights(starts, ONE).keys() == {"text", "unet", "autoencoder"}


@pytest.mark.parametrize(
    ("text", "unet", "trained"),
    [({}, {}, {"unet"}), ({"frozen": False}, {}, {"text", "unet"}), ({"frozen": False}, {"frozen": True}, {"text"})],
)
def test_only_what_is_not_frozen_moves(text, unet, trained, models, tmp_path):
    start = str(models[0] / "sd")
    more = {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}, "mesh": {"data": 1}}
    setup = config(text={"init_from": start, **text}, unet={"init_from": start, **unet}, **more)
    setup, starts = runs.with_starts(setup, tmp_path)
    tokenizer, mesh = starts["text"].tokenizer, setup.mesh()
    state = setup.initial_state(tokenizer, mesh, runs.starting_weights(starts, ONE))
    before = jax.tree.map(np.asarray, state.inference_params)
    tokens, mask = tokenizer.encode(["a cat", "a dog"])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    rows = {"image": images, "tokens": tokens, "mask": mask, "index": np.arange(2, dtype=np.int32)}
    after = setup.step(tokenizer)(state, rows)[0].inference_params
    for part in before:
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), before[part], after[part]))
        assert any(moved) == (part in trained), part


def test_frozen_towers_need_a_start():
    with pytest.raises(ConfigError, match=r"config.vision.frozen is set, but no config.vision.init_from"):
        build.experiment(
            {
                "data": {"image_size": 16},
                "tokenizer": {"vocab_size": 300, "context_length": 8},
                "vision": {"patch_size": 8, "frozen": True},
                "train": {"task": "contrastive", "batch_size": 2, "steps": 2},
            }
        )


def pictures(folder, kinds):
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")


def test_a_loaded_clip_tells_kinds_apart(models, tmp_path):
    pictures(tmp_path / "kinds", ("cat", "big_dog"))
    (tmp_path / "kinds" / "cat" / "broken.png").write_bytes(b"?")
    options = {"hints": Hints(), "templates": None, "num": None, "out": str(tmp_path / "found.json")}
    found = evaluate_folder(str(models[0] / "clip"), str(tmp_path / "kinds"), **options)
    assert (found["compared"], found["classes"], found["templates"], found["top5"]) == (6, 2, 80, 1.0)
    assert json.loads((tmp_path / "found.json").read_text())["top1"] == found["top1"]
    (tmp_path / "mine.txt").write_text("a {}\nno place\n")
    with pytest.raises(ValueError, match="where the name goes"):
        evaluate_folder(
            str(models[0] / "clip"), str(tmp_path / "kinds"), **options | {"templates": str(tmp_path / "mine.txt")}
        )


def test_a_loaded_clip_looks_pictures_up(models, tmp_path):
    pictures(tmp_path, ("all",))
    for i in range(3):
        (tmp_path / "all" / f"{i}.txt").write_text("a cat\na dog\n")
    options = {"hints": Hints(), "templates": None, "num": 2, "out": str(tmp_path / "found.json")}
    found = evaluate_folder(str(models[0] / "clip"), str(tmp_path / "all"), **options)
    assert (found["compared"], found["captions"]) == (2, 4)
