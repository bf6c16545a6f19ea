"""Every config keeps its promises' form and builds the same from JSON."""

import json

import pytest

from jdiff import build
from jdiff.construct import ConfigError
from jdiff.verbs.prepare import prepare
from jdiff.verbs.train import train
from tests.test_pins import CONFIGS, ENCODERS, get_config, own_images

EXPERIMENTS = [name for name in CONFIGS if name != "spiral"]  # which is of points, and no run


@pytest.mark.parametrize("name", CONFIGS)
def test_docstrings_promise(name):
    _, promise = get_config(name)
    for word in ("Aim ", "Run ", "Takes ", "Expect ", "Seen"):
        assert f"\n{word}" in promise
    assert f"--config={name}" in promise


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_python_and_json_build_the_same(name):
    config, _ = get_config(name)
    built = build.experiment(config)
    again = build.experiment(json.loads(json.dumps(built.config)))
    assert built == again
    assert built.text(300) == again.text(300)
    assert hash(built.text(300)) == hash(again.text(300))
    if "vision" in built.starts:
        return  # a tower that begins as somebody's is known when that is opened
    if built.train.task == "text_to_image":
        assert hash(built.unet()) == hash(again.unet())
        assert built.sample == again.sample
    else:
        assert hash(built.vision()) == hash(again.vision())


def test_the_spirals_config_builds_the_same_from_json_and_refuses_what_it_does_not_know():
    config, _ = get_config("spiral")
    built = build.spiral(config)
    assert built == build.spiral(json.loads(json.dumps(built.config)))
    with pytest.raises(ConfigError, match=r"config.unet is no section of points training"):
        build.spiral(config.to_dict() | {"unet": {}})
    for section, key, value, why in (
        ("data", "turn", 3.0, "did you mean 'turns'"),
        ("train", "steps", 0, "it must be 1 or more"),
        ("ema", "decays", (1.5,), "each must be between 0 and 1"),
        ("ema", "widths", (0.3,), "each must be between 0 and 0.2887"),
        ("ema", "snapshot_every", 5, "nothing that points need"),
        ("diffusion", "schedule", "cosin", "did you mean 'cosine'"),
        ("sample", "steps", 2000, "config.sample cannot be used"),
        ("sample", "guidance_from", "low", "it must be float"),
        ("diffusion", "timesteps", 1, "it must be 2 or more"),
    ):
        wrong = config.to_dict()
        wrong[section] = wrong[section] | {key: value}
        with pytest.raises(ConfigError, match=why):
            build.spiral(wrong)


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if not name.startswith("tune")])
def test_both_models_of_a_world_read_the_same_data(encoder):
    """Configs are files that stand alone; where the two drifted apart, the second would prepare other data."""
    for variant in ("", "tiny"):
        of_encoder, _ = get_config(encoder, variant)
        of_sampler, _ = get_config(encoder.replace("_clip", "_t2i"), variant)
        assert of_encoder.data == of_sampler.data


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match="there is only 'tiny'"):
        get_config(name, "big")


def test_a_folder_without_a_test_split_is_trained_on_and_may_not_change_under_a_run(tmp_path):
    images = own_images(tmp_path / "images")
    config, _ = get_config("folder_clip", "tiny")
    config.mesh.data = 1
    config.data.update(path=str(images), directory=str(tmp_path / "data"), test_fraction=0.0)
    setup = build.experiment(config)
    prepare(setup)
    train(setup, str(tmp_path / "run"))
    assert (tmp_path / "run" / "samples" / "step_2.png").exists()
    (images / "0.txt").write_text("noise of another name\n")
    prepare(setup)
    with pytest.raises(ConfigError, match="files have changed"):
        train(setup, str(tmp_path / "run"))
