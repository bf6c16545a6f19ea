"""Pretrained third-party weights in place of a run: loaded, sampled, evaluated, converted, fine-tuned."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jdiff as jdiff_package
from jdiff.commands.convert import convert
from jdiff.commands.evaluate import evaluate_folder
from jdiff.config.construct import ConfigError
from jdiff.data.tokenizer import load_tokenizer
from jdiff.diffusion.settings import Settings
from jdiff.interop import positions, pretrained
from jdiff.interop.diffusers_weights import with_text_model
from jdiff.interop.pretrained import Hints
from jdiff.interop.safetensors_files import WrongWeights, scan
from jdiff.runs import directory
from jdiff.runs.init_from import load_params, resolve_init_from
from jdiff.tasks import make_task
from tests.interop import toys
from tests.running import jdiff, run_in_process

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Toy models on disk, and their parameters."""
    root = tmp_path_factory.mktemp("models")
    weights = {
        "clip": toys.clip(root / "clip"),
        "openai/ViT.safetensors": toys.openai_clip(root / "openai" / "ViT.safetensors"),
        "sd": toys.stable_diffusion(root / "sd"),
    }
    return root, weights


HINTS = {"openai/ViT.safetensors": Hints(activation="quick_gelu")}


@pytest.mark.parametrize("name", ["clip", "openai/ViT.safetensors", "sd"])
def test_model_loads_exactly_and_converts_to_an_equal_run(name, models, tmp_path):
    root, weights = models
    model = directory.open_model(root / name, HINTS.get(name, Hints()))
    jax.tree.map(np.testing.assert_array_equal, model.params(SHARDING), weights[name])
    convert(str(root / name), str(tmp_path / "run"), HINTS.get(name, Hints()))
    run = directory.open_model(tmp_path / "run")
    assert run.step == 0
    assert run.task.config == model.task.config
    jax.tree.map(np.testing.assert_array_equal, run.params(SHARDING), weights[name])
    captions = ["a cat", "a DOG é", ""]
    jax.tree.map(
        np.testing.assert_array_equal, run.task.tokenizer.encode(captions), model.task.tokenizer.encode(captions)
    )
    with pytest.raises(ConfigError, match="exists already"):
        convert(str(root / name), str(tmp_path / "run"), Hints())


def test_load_in_python(models):
    encoder = jdiff_package.load(models[0] / "openai" / "ViT.safetensors", activation="quick_gelu")
    vectors = encoder.embed_texts(["a cat"] * 300)  # more than one batch
    assert vectors.shape == (300, 16)
    np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-6)


def test_one_network_can_be_read_without_the_others(models):
    root, weights = models
    assert directory.open_model(root / "sd").params(SHARDING, networks=("text",)).keys() == {"text"}


def test_latents_are_decoded_and_an_image_depends_on_its_seed_only(models):
    sampler = directory.load(models[0] / "sd")
    settings = dataclasses.replace(sampler.settings, steps=3)
    images, path = sampler.sample(["a cat", "a dog"], settings=settings, seed=4, trajectory=True)
    assert images.shape == (2, 16, 16, 3) and path.xt.shape == path.x0.shape == (3, 2, 16, 16, 3)
    np.testing.assert_array_equal(sampler.sample(["a dog"], settings=settings, seed=5)[0], images[1])
    noise = np.zeros((1, *sampler.shape), np.float32)
    assert (sampler.sample(["a dog"], settings=settings, noise=noise)[0] != images[1]).any()
    with pytest.raises(ValueError, match="noise is of shape"):
        sampler.sample(["a dog"], settings=settings, noise=noise[:, 1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompts"),
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
def test_arguments_of_another_length_than_the_prompts_are_refused(models, arguments, message):
    """A missing image, or one drawn from its neighbour's seed, would be hard to notice."""
    with pytest.raises(ValueError, match=message):
        directory.load(models[0] / "sd").sample(**{"prompts": ["a cat", "a dog"], **arguments})


def test_sampling_uses_the_timesteps_of_the_scheduler_config(models):
    """Leading timesteps from 981 to 1, and the last step ends at timestep 0, not at the clean image."""
    task = directory.open_model(models[0] / "sd").task
    settings, schedule = dataclasses.replace(task.config.sample, steps=50), task.schedule()
    tableau = settings.tableau(schedule)
    assert (tableau.timestep[0], tableau.timestep[-1]) == (981, 1)
    np.testing.assert_allclose(tableau.x0_coef[-1], schedule.alpha_bar[0] ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(tableau.eps_coef[-1], (1 - schedule.alpha_bar[0]) ** 0.5, rtol=1e-5)
    assert not settings.clip
    with pytest.raises(ValueError, match="steps_offset is 20"):
        dataclasses.replace(settings, steps=50, steps_offset=20).tableau(schedule)


def test_unet_attends_to_padding(models):
    """The U-Net of Stable Diffusion attends to all 77 states, so the padding of a caption matters."""
    sampler = directory.load(models[0] / "sd")
    text = jax.jit(sampler.text.apply)({"params": sampler.params["text"]}, *sampler.tokenizer.encode(["a cat"]))[0]
    mask = sampler.tokenizer.encode(["a cat"])[1]
    latents, time = np.ones((1, *sampler.shape), np.float32), np.array([500.0])
    altered_text = np.where(mask[..., None], text, text + 1)
    for attends in (True, False):
        unet = sampler.denoiser.clone(attend_to_padding=attends)
        apply = jax.jit(unet.apply)
        a, b = (apply({"params": sampler.params["denoiser"]}, latents, time, t, mask) for t in (text, altered_text))
        assert (np.abs(a - b).max() > 1e-6) == attends


def test_sample_command_accepts_a_folder_of_weights(models, tmp_path):
    jdiff("convert", str(models[0] / "sd"), "run", cwd=tmp_path)
    process = jdiff("sample", str(models[0] / "sd"), "a cat", "--negative=a dog", "--steps=2", cwd=tmp_path)
    assert "PNDMScheduler" in process.stdout
    with Image.open(tmp_path / "images" / "000000.png") as image:
        assert image.size == (16, 16)
    assert json.loads((tmp_path / "images" / "000000.json").read_text())["workdir"] == str(models[0] / "sd")


USER_MISTAKES = {
    ("sample", "clip", "a cat"): "which cannot draw",
    ("convert", "openai/ViT.safetensors", "x"): "--activation=quick_gelu",
    ("convert", "clip"): "two paths",
    ("convert", "clip/vocab.json", "x"): "SOURCE is clip/vocab.json, which cannot be converted",
    ("convert", "nowhere", "x"): "SOURCE is nowhere, which does not exist",
    ("evaluate", "--workdir=sd", "--images=openai"): "--images needs a dual encoder",
    ("evaluate", "--workdir=clip", "--images=nowhere"): "--images is nowhere, which is not a folder",
    ("convert", "clip/model.safetensors", "x"): "pass its folder",
}


@pytest.mark.parametrize("arguments", USER_MISTAKES, ids=" ".join)
def test_a_mistake_gives_one_sentence(arguments, models):
    process = run_in_process(*arguments, cwd=models[0], check=False)
    assert process.returncode == 2
    assert USER_MISTAKES[arguments] in process.stderr and "Traceback" not in process.stderr
    assert not (models[0] / "x").exists()


def edit_json(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"freq_shift": 1}, "freq_shift = 1"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule = 'sigmoid'"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "beta_end = 0.02"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("unet/config.json", {"time_embedding_act_fn": "silu"}, "time_embedding_act_fn = 'silu'"),
        ("unet/config.json", {"sample_size": [8, 16]}, r"sample_size = \[8, 16\]"),
        ("unet/config.json", {"a_key_of_the_future": 0}, "a_key_of_the_future"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
    ],
)
def test_unsupported_settings_are_refused(file, values, message, tmp_path):
    toys.stable_diffusion(tmp_path / "sd")
    edit_json(tmp_path / "sd", file, **values)
    with pytest.raises(WrongWeights, match=message):
        pretrained.find(tmp_path / "sd")


@pytest.mark.parametrize(
    "values",
    [
        {"resample": 2},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_resize": False},
        {"do_center_crop": False},
        {"size": {"shortest_edge": 64}},
        {"crop_size": {"height": 16, "width": 16}},
        {"do_convert_rgb": False},
    ],
    ids=str,
)
def test_preprocessing_of_other_pixels_is_refused(values, tmp_path):
    toys.clip(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(WrongWeights, match=rf"preprocessor_config.json has {next(iter(values))} = "):
        pretrained.find(tmp_path / "clip")


def test_preprocessing_without_normalization_is_followed(tmp_path):
    toys.clip(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "resample": 3}))
    vision = pretrained.find(tmp_path / "clip").config["vision"]
    assert (vision["mean"], vision["std"]) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("content", [b"", b'{"model_type": "cl', b"[]", b"\xff\xfe\x00"])
def test_a_corrupt_config_is_named(content, tmp_path):
    toys.clip(tmp_path / "clip")
    (tmp_path / "clip" / "config.json").write_bytes(content)
    with pytest.raises(WrongWeights, match=r"clip/config\.json"):
        pretrained.find(tmp_path / "clip")


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    toys.clip(tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert pretrained.find(tmp_path / "clip") is not None


EXTRA_TOKENS = ("<cat-toy>", "<second>")


def in_tokenizer_json(folder, number):
    content = json.loads(toys.TOKENIZER.text)
    content["added_tokens"] += [{"id": number + i, "content": token} for i, token in enumerate(EXTRA_TOKENS)]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def in_added_tokens_json(folder, number):
    (folder / "added_tokens.json").write_text(json.dumps({token: number + i for i, token in enumerate(EXTRA_TOKENS)}))


def in_tokenizer_config(folder, number):
    tokens = {str(number + i): {"content": token, "special": False} for i, token in enumerate(EXTRA_TOKENS)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))


@pytest.mark.parametrize("write_tokens", [in_tokenizer_json, in_added_tokens_json, in_tokenizer_config])
def test_tokens_added_to_a_vocabulary_are_tokens(write_tokens, tmp_path):
    """As those of textual inversion are."""
    toys.clip(tmp_path / "clip")
    number = pretrained.find(tmp_path / "clip").tokenizer.vocab_size
    write_tokens(tmp_path / "clip", number)
    tokenizer = pretrained.find(tmp_path / "clip").tokenizer
    ids = tokenizer.ids("a <cat-toy> by <second>, a <CAT-TOY>")
    assert [i for i in ids if i >= number] == [number, number + 1, number] and tokenizer.vocab_size == number + 2
    tokenizer.save(tmp_path / "tokenizer.json")
    copy = load_tokenizer(tmp_path / "tokenizer.json", context_length=77, dialect="hugging_face")
    assert copy.ids("a <cat-toy>") == tokenizer.ids("a <cat-toy>")


def test_an_added_token_with_a_gap_before_it_is_refused(tmp_path):
    toys.clip(tmp_path / "clip")
    number = pretrained.find(tmp_path / "clip").tokenizer.vocab_size
    in_added_tokens_json(tmp_path / "clip", number + 1)
    with pytest.raises(ValueError, match=rf"'<cat-toy>' has id {number + 1}, expected {number}"):
        pretrained.find(tmp_path / "clip")


def test_older_names_of_stable_diffusions_text_tower_are_todays():
    prefix = "cond_stage_model.transformer."
    names = ["embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "final_layer_norm.bias"]
    expected = [f"{prefix}text_model.{name}" for name in names]
    assert list(with_text_model(dict.fromkeys(f"{prefix}{name}" for name in names))) == expected
    assert list(with_text_model(dict.fromkeys(expected))) == expected


def test_wrong_weights_are_listed_with_their_file(tmp_path):
    toys.clip(tmp_path / "clip")
    arrays = {name: tensor.read() for name, tensor in scan(tmp_path / "clip" / "model.safetensors").items()}
    del arrays["logit_scale"]
    save_file({**arrays, "extra": np.zeros(2, np.float32)}, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(WrongWeights, match=r"(?s)2 tensors of .*clip.*missing     logit_scale.*unexpected  extra"):
        directory.open_model(tmp_path / "clip").params(SHARDING)


def test_a_tower_at_another_size_has_resized_positions(models):
    root, weights = models
    old = weights["clip"]["vision"]["positions"]
    for name, antialias in (("clip", False), ("openai/ViT.safetensors", True)):
        hints = dataclasses.replace(HINTS.get(name, Hints()), image_size=48)
        new = directory.open_model(root / name, hints).params(SHARDING)["vision"]["positions"]
        assert new.shape == (37, 64)
        np.testing.assert_allclose(new, positions.resize(old, 37, num_prefix_tokens=1, antialias=antialias), rtol=1e-6)


@pytest.mark.parametrize(("old_side", "new_side"), [(7, 12), (12, 7), (16, 16), (24, 9)])
def test_antialiased_positions_are_those_of_jax(old_side, new_side):
    """JAX's own cubic resampling widens and normalises its kernel as PyTorch's antialiased one does."""
    rows = np.random.default_rng(0).standard_normal((old_side * old_side, 5))
    grid = jax.image.resize(rows.reshape(old_side, old_side, 5), (new_side, new_side, 5), "cubic", antialias=True)
    result = positions.resize(rows, new_side * new_side, num_prefix_tokens=0, antialias=True)
    np.testing.assert_allclose(result, grid.reshape(-1, 5), atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
def test_positions_of_a_line_stay_on_it(antialias):
    """Cubic convolution reproduces straight lines away from the edges [keys sec. III]."""
    line = np.repeat(np.arange(16.0), 16)[:, None]
    result = positions.resize(line, 32 * 32, num_prefix_tokens=0, antialias=antialias).reshape(32, 32)
    expected = (np.arange(32) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(result[6:-6, 16], expected[6:-6], atol=1e-9 if antialias else 0.08)


def task_of(**sections):
    base = {
        "data": {"source": "folder", "path": "x", "image_size": 16},
        "train": {"task": "text_to_image", "batch_size": 2, "steps": 2},
    }
    return make_task({**base, **sections})


def test_init_from_also_sets_what_belongs_to_a_network(models, tmp_path):
    """A text tower brings its tokenizer; a denoiser its autoencoder, prediction type and sampling settings."""
    source = str(models[0] / "sd")
    task, init_models = resolve_init_from(task_of(text={"init_from": source}, denoiser={"init_from": source}), tmp_path)
    source_task = directory.open_model(source).task
    assert task.with_tokenizer(source_task.tokenizer).make_networks() == source_task.make_networks()
    assert task.autoencoder() == source_task.autoencoder()
    assert task.config.diffusion == source_task.config.diffusion and task.config.sample == source_task.config.sample
    assert task.config.tokenizer == source_task.config.tokenizer
    assert task.frozen_networks == {"text", "autoencoder"}
    assert load_params(init_models, SHARDING).keys() == {"text", "denoiser", "autoencoder"}


@pytest.mark.parametrize(
    ("text", "denoiser", "trained_networks"),
    [
        pytest.param({}, {}, {"denoiser"}, marks=pytest.mark.slow),
        pytest.param({"frozen": False}, {}, {"text", "denoiser"}, marks=pytest.mark.slow),
        ({"frozen": False}, {"frozen": True}, {"text"}),
    ],
)
def test_only_networks_that_are_not_frozen_are_trained(text, denoiser, trained_networks, models, tmp_path):
    source = str(models[0] / "sd")
    other_sections = {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}, "mesh": {"data": 1}}
    task = task_of(text={"init_from": source, **text}, denoiser={"init_from": source, **denoiser}, **other_sections)
    task, init_models = resolve_init_from(task, tmp_path)
    tokenizer, mesh = init_models["text"].task.tokenizer, task.config.mesh.make()
    task = task.with_tokenizer(tokenizer)
    state = task.initial_state(mesh, load_params(init_models, SHARDING))
    old_params = jax.tree.map(np.asarray, state.inference_params)
    tokens, mask = tokenizer.encode(["a cat", "a dog"])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    rows = {"image": images, "tokens": tokens, "mask": mask, "index": np.arange(2, dtype=np.int32)}
    new_params = task.compiled_step(mesh)(state, rows)[0].inference_params
    assert old_params.keys() == new_params.keys() == {"text", "denoiser", "autoencoder"}
    for network in old_params:
        differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), old_params[network], new_params[network])
        assert any(jax.tree.leaves(differs)) == (network in trained_networks), network


def test_frozen_towers_need_init_from():
    with pytest.raises(ConfigError, match=r"config.vision.frozen is set, but no config.vision.init_from"):
        make_task(
            {
                "data": {"image_size": 16},
                "tokenizer": {"vocab_size": 300, "context_length": 8},
                "vision": {"patch_size": 8, "frozen": True},
                "train": {"task": "contrastive", "batch_size": 2, "steps": 2},
            }
        )


def write_images(folder, kinds):
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")


def test_pretrained_clip_classifies_folders_of_images(models, tmp_path):
    write_images(tmp_path / "kinds", ("cat", "big_dog"))
    (tmp_path / "kinds" / "cat" / "broken.png").write_bytes(b"?")
    options = {"hints": Hints(), "templates": None, "num": None, "output_file": str(tmp_path / "results.json")}
    metrics = evaluate_folder(str(models[0] / "clip"), str(tmp_path / "kinds"), **options)
    assert (metrics["compared"], metrics["classes"], metrics["templates"], metrics["top5"]) == (6, 2, 80, 1.0)
    assert json.loads((tmp_path / "results.json").read_text())["top1"] == metrics["top1"]
    (tmp_path / "mine.txt").write_text("a {}\nno place\n")
    with pytest.raises(ValueError, match=r"mine\.txt must have one \{\}"):
        evaluate_folder(
            str(models[0] / "clip"), str(tmp_path / "kinds"), **options | {"templates": str(tmp_path / "mine.txt")}
        )


def test_pretrained_clip_retrieves_captioned_images(models, tmp_path):
    write_images(tmp_path, ("all",))
    for i in range(3):
        (tmp_path / "all" / f"{i}.txt").write_text("a cat\na dog\n")
    options = {"hints": Hints(), "templates": None, "num": 2, "output_file": str(tmp_path / "results.json")}
    metrics = evaluate_folder(str(models[0] / "clip"), str(tmp_path / "all"), **options)
    assert (metrics["compared"], metrics["captions"]) == (2, 4)
