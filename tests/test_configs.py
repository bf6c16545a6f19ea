"""Every config keeps its promises' form and builds the same from JSON."""

import json
import shutil
from types import SimpleNamespace

import pytest

from jdiff.commands.evaluate import evaluate
from jdiff.config.construct import ConfigError
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.tasks import make_task
from tests.test_pins import CONFIGS, ENCODERS, get_config, write_image_folder

IMAGE_TEXT_CONFIGS = [name for name in CONFIGS if name != "spiral"]  # which is of points


@pytest.mark.parametrize("name", CONFIGS)
def test_docstrings_promise(name):
    _, promise = get_config(name)
    for word in ("Aim ", "Run ", "Takes ", "Expect ", "Seen"):
        assert f"\n{word}" in promise
    assert f"--config={name}" in promise


@pytest.mark.parametrize("name", IMAGE_TEXT_CONFIGS)
def test_python_and_json_build_the_same(name):
    config, _ = get_config(name)
    task = make_task(config)
    json_task = make_task(json.loads(json.dumps(task.config.raw)))
    assert task == json_task
    texts = [t.with_tokenizer(SimpleNamespace(vocab_size=300)).text() for t in (task, json_task)]
    assert texts[0] == texts[1] and hash(texts[0]) == hash(texts[1])
    if "vision" in task.init_from:
        return  # a tower that is initialized from a model is known when that is opened
    if task.name == "text_to_image":
        assert hash(task.denoiser()) == hash(json_task.denoiser())
        assert hash(task.config.sample) == hash(json_task.config.sample)
    else:
        assert hash(task.encoder()) == hash(json_task.encoder())


def test_the_spirals_config_builds_the_same_from_json_and_refuses_unknown_keys_and_values():
    config, _ = get_config("spiral")
    task = make_task(config)
    assert task == make_task(json.loads(json.dumps(task.config.raw)))
    with pytest.raises(ConfigError, match=r"config\.denoiser .*'points'"):
        make_task(config.to_dict() | {"denoiser": {}})
    for section, key, value, message in (
        ("data", "turn", 3.0, "config.data.turn .*'turns'"),
        ("train", "steps", 0, "config.train.steps is 0"),
        ("train", "evaluate_every", 5, "config.train.evaluate_every .*'points'"),
        ("ema", "decays", (1.5,), r"config.ema.decays is .*1\.5"),
        ("ema", "widths", (0.3,), r"config.ema.widths is .*0\.3"),
        ("ema", "snapshot_every", 0, "config.ema.snapshot_every .*'points'"),
        ("diffusion", "schedule", "cosin", "config.diffusion.schedule .*'cosine'"),
        (
            "diffusion",
            "schedule",
            {"name": "linear", "beta_edn": 0.03},
            "config.diffusion.schedule.beta_edn .*'beta_end'",
        ),
        ("sample", "steps", 2000, "config.sample .*1000"),
        ("sample", "guidance_from", "low", "config.sample.guidance_from is 'low'"),
        ("diffusion", "timesteps", 1, "config.diffusion.timesteps is 1"),
        ("diffusion", "timesteps", 10**10, "config.diffusion.timesteps is .* 1000000 or less"),
        ("mlp", "width", 2**24, "config.mlp.width is .* 65536 or less"),
    ):
        wrong_config = config.to_dict()
        wrong_config[section] = wrong_config[section] | {key: value}
        with pytest.raises(ConfigError, match=message):
            make_task(wrong_config)
    for wrong_config in (7, {"train": 7}, [1], {"train": {"task": "points"}, "mlp": None}):
        with pytest.raises(ConfigError, match="not an object"):
            make_task(wrong_config)


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if not name.startswith("tune")])
def test_both_models_of_a_world_read_the_same_data(encoder):
    """Configs are files that stand alone; where the two drifted apart, the second would prepare other data."""
    for variant in ("", "tiny"):
        encoder_config, _ = get_config(encoder, variant)
        sampler_config, _ = get_config(encoder.replace("_clip", "_t2i"), variant)
        assert encoder_config.data == sampler_config.data


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match="there is only 'tiny'"):
        get_config(name, "big")


def test_a_run_continues_on_its_records_and_without_its_folder(tmp_path, capsys):
    images, data = write_image_folder(tmp_path / "images"), tmp_path / "data"
    config, _ = get_config("folder_clip", "tiny")
    config.mesh.data = 1
    config.data.update(path=str(images), directory=str(data), test_fraction=0.0)
    prepare(make_task(config))
    train(make_task(config), str(tmp_path / "run"))
    assert (tmp_path / "run" / "samples" / "step_2.png").exists()  # of the train split, as there is no test split
    (images / "0.txt").write_text("noise of another name\n")
    prepare(make_task(config))
    name = json.loads((tmp_path / "run" / "data.json").read_text())["name"]
    assert name in {path.name for path in (data / "captioned_images").iterdir()}
    config.train.steps = 3
    capsys.readouterr()
    train(make_task(config), str(tmp_path / "run"))
    assert f"it continues on {name}" in capsys.readouterr().out
    shutil.rmtree(images)
    config.train.steps = 4
    train(make_task(config), str(tmp_path / "run"))
    assert evaluate(str(tmp_path / "run"), split="train", num=2)["num"] == 2
    shutil.rmtree(data / "captioned_images" / name)
    config.train.steps = 5
    with pytest.raises(ConfigError, match=f"was started on the data set {name}, which is gone"):
        train(make_task(config), str(tmp_path / "run"))
