"""Every key of the configs of diffusers and transformers is used, refused by name, or known to have no effect here."""

import inspect

import diffusers
import pytest
import transformers

from jdiff.interop import clip_weights, diffusers_configs
from jdiff.interop.diffusers_configs import SOLVER_KEYS
from jdiff.interop.foreign_config import TRANSFORMERS_KEYS
from jdiff.interop.safetensors_files import WrongWeights

# Of the networks: in the shapes of the tensors, or without effect on any output in float32.
NO_EFFECT = {
    *("in_channels", "out_channels", "cross_attention_dim", "use_linear_projection", "upcast_attention"),
    *("addition_embed_type_num_heads", "force_upcast", "sample_size of vae", "projection_dim of a tower"),
}


def defaults(class_):
    """The config that a class of diffusers saves."""
    parameters = inspect.signature(class_.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "args", "kwargs")}


def other_value(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return "another"
    if isinstance(value, list | tuple):
        return [other_value(item) for item in value]
    return {key: other_value(item) for key, item in value.items()} if isinstance(value, dict) else 1


def check_every_key(read, content, no_effect):
    """read: (content) -> sections."""
    sections = read(content)
    for key in content:
        if key.startswith("_") or key in no_effect:
            continue
        try:
            assert read({**content, key: other_value(content[key])}) != sections, key
        except WrongWeights as error:
            assert key in str(error)
    with pytest.raises(WrongWeights, match="key_of_the_future"):
        read({**content, "key_of_the_future": 0})


def test_keys_of_a_unet():
    content = defaults(diffusers.UNet2DConditionModel)
    check_every_key(
        lambda content: (diffusers_configs.unet_config(content), diffusers_configs.unet_sample_size(content)),
        content,
        NO_EFFECT,
    )


def test_keys_of_an_autoencoder():
    content = defaults(diffusers.AutoencoderKL)
    check_every_key(diffusers_configs.autoencoder_config, content, NO_EFFECT | {"sample_size"})


SCHEDULERS = {
    name: getattr(diffusers, name)
    for name in dir(diffusers)
    if name.endswith("Scheduler") and "beta_schedule" in inspect.signature(getattr(diffusers, name).__init__).parameters
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_keys_of_a_scheduler(name):
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    content = defaults(SCHEDULERS[name]) | betas | {"_class_name": name}
    try:
        diffusers_configs.scheduler_config(content)
    except WrongWeights as error:
        assert any(f"{key} = " in str(error) for key in content)
        return
    # Without "leading" there is no offset; with "linear" the betas are others.
    no_effect = SOLVER_KEYS | ({"steps_offset"} if content.get("timestep_spacing", "leading") != "leading" else set())
    check_every_key(diffusers_configs.scheduler_config, content, no_effect)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_defaults_of_a_scheduler_are_those_of_its_class(name):
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "_class_name": name}
    try:
        sections = diffusers_configs.scheduler_config(defaults(SCHEDULERS[name]) | betas)
    except WrongWeights:
        return
    spacing = defaults(SCHEDULERS[name]).get("timestep_spacing", "linspace")  # of those without the key
    assert diffusers_configs.scheduler_config(betas) == sections or spacing != sections[1]["spacing"]


def test_most_schedulers_are_read():
    contents = {name: defaults(class_) for name, class_ in SCHEDULERS.items()}
    read_names = []
    for name, content in contents.items():
        try:
            diffusers_configs.scheduler_config(
                content | {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
            )
            read_names.append(name)
        except WrongWeights:
            pass
    assert {"DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"} <= set(read_names)


@pytest.mark.parametrize(("name", "siglip"), [("CLIPTextConfig", False), ("SiglipTextConfig", True)])
def test_keys_of_a_text_tower(name, siglip):
    content = getattr(transformers, name)().to_dict()
    no_effect = TRANSFORMERS_KEYS | {"projection_dim", "projection_size", "max_position_embeddings"}  # read elsewhere
    check_every_key(lambda content: clip_weights.hugging_face_text(content, siglip=siglip), content, no_effect)


PROCESSORS = {"CLIP": transformers.CLIPImageProcessor, "Siglip": transformers.SiglipImageProcessor}


@pytest.mark.parametrize("family", PROCESSORS)
def test_keys_of_a_dual_encoder(family):
    content = getattr(transformers, f"{family}Config")().to_dict()
    processor = PROCESSORS[family]().to_dict()
    check_every_key(
        lambda content: clip_weights.hugging_face_config(content, processor),
        content,
        TRANSFORMERS_KEYS | {"text_config", "vision_config"},  # whose keys are tested by themselves
    )
    vision_no_effect = TRANSFORMERS_KEYS | {"projection_dim"}
    check_every_key(
        lambda vision: clip_weights.hugging_face_config({**content, "vision_config": vision}, {}),
        content["vision_config"],
        vision_no_effect,
    )


@pytest.mark.parametrize("family", PROCESSORS)
def test_keys_of_an_image_processor(family):
    content = getattr(transformers, f"{family}Config")().to_dict()
    processor = PROCESSORS[family]().to_dict()
    check_every_key(
        lambda processor: clip_weights.hugging_face_config(content, processor), processor, {"image_processor_type"}
    )
