"""jdiff's networks against PyTorch's of the same configuration, on the same random weights, in float32.

As for a user, the weights are written by the third-party library and loaded from their folder.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jdiff.interop import diffusers_configs, diffusers_weights, safetensors_files, tensors
from jdiff.interop.pretrained import NO_HINTS, Hints
from jdiff.models.unet import UNet
from jdiff.runs import directory
from jdiff.training.update import images_of
from reference import torch_models
from tests.interop.published_networks import parameter_shapes

Errors = dict[str, float]  # of each output, |jdiff - torch| / |torch|

SMALL_TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL_VISION = {**SMALL_TEXT, "image_size": 32, "patch_size": 8}
L14 = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
)


def relative_error(actual, expected: torch.Tensor) -> float:
    expected = expected.detach().numpy()
    return float(np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected))


def _open(path: Path, hints: Hints = NO_HINTS):
    """A model's task, and its parameters on the first device."""
    model = directory.open_model(path, hints)
    return model.task, model.params(directory.first_device())


def _images(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)


def _normalize(images: np.ndarray, mean, std) -> torch.Tensor:
    """Images as transformers' models take them."""
    pixels = (images / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def _compare_encoder(task, params, reference, *, penultimate: bool = False) -> Errors:
    """Embeddings, scaled similarities, and the states of all positions, padding included."""
    network = task.encoder()
    tokens, mask = task.tokenizer.encode(list(torch_models.PROMPTS))
    images = _images(task.image_size)
    vision = network.vision
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            pixel_values=_normalize(images, vision.mean, vision.std),
            output_hidden_states=True,
        )
    inputs = jnp.asarray(tokens), jnp.asarray(mask), images_of({"image": jnp.asarray(images)})
    text, image, scale, bias = jax.jit(network.apply)({"params": params}, *inputs)
    hidden, _ = jax.jit(network.text.apply)({"params": params["text"]}, *inputs[:2])
    errors = {
        "text embedding": relative_error(text, expected.text_embeds),
        "image embedding": relative_error(image, expected.image_embeds),
        "similarities": relative_error(scale * image @ text.T + bias, expected.logits_per_image),
        "text states": relative_error(hidden, expected.text_model_output.last_hidden_state),
        "image states": relative_error(
            jax.jit(vision.apply)({"params": params["vision"]}, inputs[2])[0],
            expected.vision_model_output.last_hidden_state,
        ),
    }
    if penultimate:
        penultimate_states = network.text.clone(clip_skip=1).apply({"params": params["text"]}, *inputs[:2])[0]
        with torch.no_grad():
            states = reference.text_model.final_layer_norm(expected.text_model_output.hidden_states[-2])
        errors["penultimate text states"] = relative_error(penultimate_states, states)
    return errors


def clip_of_hugging_face(folder: Path, *, text=SMALL_TEXT, vision=SMALL_VISION, activation="quick_gelu") -> Errors:
    reference = torch_models.clip(text, vision, activation=activation, projection=64)
    reference.save_pretrained(folder)
    torch_models.write_vocabulary(folder)
    return _compare_encoder(*_open(folder), reference)


def clip_of_openai(folder: Path) -> Errors:
    reference = torch_models.clip(SMALL_TEXT, SMALL_VISION, activation="quick_gelu", projection=64)
    torch_models.save(torch_models.openai_layout(reference.state_dict()), folder / "ViT.safetensors")
    torch_models.write_vocabulary(folder)
    return _compare_encoder(*_open(folder / "ViT.safetensors", Hints(activation="quick_gelu")), reference)


def clip_of_open_clip(folder: Path) -> Errors:
    """H/14's form: heads that are not of 64 numbers, the exact GELU, and text cut at its penultimate layer."""
    vision = {**SMALL_VISION, "hidden_size": 160, "intermediate_size": 640}
    reference = torch_models.clip(SMALL_TEXT, vision, activation="gelu", projection=64)
    torch_models.save(torch_models.openai_layout(reference.state_dict()), folder / "open_clip_model.safetensors")
    torch_models.write_vocabulary(folder)
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 32, "layers": 3, "width": 160, "head_width": 80, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 521, "width": 128, "heads": 2, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return _compare_encoder(*_open(folder), reference, penultimate=True)


def clip_of_siglip(folder: Path) -> Errors:
    text = {**SMALL_TEXT, "intermediate_size": 300, "max_position_embeddings": 16, "projection_size": 128}
    reference = torch_models.siglip(text, {**SMALL_VISION, "intermediate_size": 300})
    reference.save_pretrained(folder)
    torch_models.write_siglip_tokenizer(folder)
    return _compare_encoder(*_open(folder), reference)


def clip_resnet(
    folder: Path, *, layers=(1, 2, 1, 1), width: int = 32, embed_dim: int = 64, image_size: int = 64
) -> Errors:
    reference = torch_models.clip(SMALL_TEXT, SMALL_VISION, activation="quick_gelu", projection=embed_dim)
    text = {k: v for k, v in torch_models.openai_layout(reference.state_dict()).items() if not k.startswith("visual.")}
    tower = torch_models.resnet_weights(layers, width, embed_dim, image_size)
    torch_models.save(text | tower, folder / "RN.safetensors")
    torch_models.write_vocabulary(folder)
    task, params = _open(folder / "RN.safetensors", Hints(activation="quick_gelu"))
    vision = task.vision()
    images = _images(image_size)
    expected = torch_models.resnet_forward(tower, _normalize(images, vision.mean, vision.std), width // 2)
    actual = jax.jit(vision.apply)({"params": params["vision"]}, images_of({"image": jnp.asarray(images)}))[1]
    return {"image embedding": relative_error(actual, torch.nn.functional.normalize(expected, dim=-1))}


def unet(folder: Path, *, second: bool, side: int = 16, **sizes) -> Errors:
    """A U-Net alone, on two timesteps and captions of seven states."""
    reference = torch_models.unet(second=second, **sizes)
    reference.save_pretrained(folder)
    section = diffusers_configs.unet_config(json.loads((folder / "config.json").read_text()))
    network = UNet(**section)
    generator = np.random.default_rng(0)
    xt = generator.standard_normal((2, 4, side, side)).astype(np.float32)
    context = generator.standard_normal((2, 7, reference.config.cross_attention_dim)).astype(np.float32)
    timestep = np.array([3.0, 981.0], np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(xt), torch.tensor(timestep), torch.tensor(context)).sample
    inputs = [jnp.asarray(a) for a in (xt.transpose(0, 2, 3, 1), timestep, context)]
    shapes = {"denoiser": parameter_shapes(network, inputs)}
    weights = safetensors_files.scan_folder(folder, ("diffusion_pytorch_model",))
    file = tensors.WeightFile(weights, ("denoiser",), diffusers_weights.diffusers_unet(len(section["channels"])))
    params = tensors.read_params(shapes, [file], directory.first_device(), source=folder)["denoiser"]
    actual = jax.jit(network.apply)({"params": params}, *inputs)
    return {"prediction": relative_error(actual.transpose(0, 3, 1, 2), expected)}


def _compare_pipeline(task, params, pipeline) -> Errors:
    """Each network of a Stable Diffusion on its own."""
    tokens, mask = task.tokenizer.encode(list(torch_models.PROMPTS))
    hidden, _ = task.text().apply({"params": params["text"]}, tokens, mask)
    images = images_of({"image": jnp.asarray(_images(16))})
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    autoencoder, scale = task.autoencoder(), task.autoencoder().scale
    mean, deviation = autoencoder.apply({"params": params["autoencoder"]}, images, method="encode")
    decoded = autoencoder.apply({"params": params["autoencoder"]}, latents * scale, method="decode")
    timestep = np.array([3.0, 981.0], np.float32)
    predicted = task.denoiser().apply({"params": params["denoiser"]}, latents, timestep, hidden, mask)
    channels_first = [torch.tensor(np.asarray(a).transpose(0, 3, 1, 2)) for a in (images, latents)]
    with torch.no_grad():
        states = pipeline.text_encoder(torch.tensor(tokens, dtype=torch.long)).last_hidden_state
        posterior = pipeline.vae.encode(channels_first[0]).latent_dist
        pixels = pipeline.vae.decode(channels_first[1]).sample
        expected = pipeline.unet(channels_first[1], torch.tensor(timestep), states).sample
    return {
        "text states": relative_error(hidden, states),
        "encoded mean": relative_error(mean.transpose(0, 3, 1, 2) / scale, posterior.mean),
        "encoded deviation": relative_error(deviation.transpose(0, 3, 1, 2) / scale, posterior.std),
        "decoded image": relative_error(decoded.transpose(0, 3, 1, 2), pixels),
        "prediction": relative_error(predicted.transpose(0, 3, 1, 2), expected),
    }


def stable_diffusion(folder: Path, *, second: bool) -> Errors:
    pipeline = torch_models.stable_diffusion(folder, second=second)
    return _compare_pipeline(*_open(folder), pipeline)


PARITY: dict[str, Callable[[Path], Errors]] = {
    "CLIP B/32's form, Hugging Face, QuickGELU": clip_of_hugging_face,
    "CLIP L/14's form, Hugging Face, GELU": lambda folder: clip_of_hugging_face(
        folder, vision={**SMALL_VISION, "image_size": 42, "patch_size": 14}, activation="gelu"
    ),
    "CLIP, OpenAI's layout": clip_of_openai,
    "CLIP H/14's form, open_clip": clip_of_open_clip,
    "CLIP ResNet": clip_resnet,
    "SigLIP": clip_of_siglip,
    "Stable Diffusion 1": lambda folder: stable_diffusion(folder, second=False),
    "Stable Diffusion 2": lambda folder: stable_diffusion(folder, second=True),
    "U-Net with modulation": lambda folder: unet(folder, second=True, resnet_time_scale_shift="scale_shift"),
}
FULL_SIZE: dict[str, Callable[[Path], Errors]] = {
    "CLIP B/32": lambda folder: clip_of_hugging_face(folder, text={}, vision={}),
    "CLIP L/14": lambda folder: clip_of_hugging_face(folder, text=L14[0], vision=L14[1]),
    "CLIP RN50": lambda folder: clip_resnet(folder, layers=(3, 4, 6, 3), width=64, embed_dim=1024, image_size=224),
    "Stable Diffusion 1.5's U-Net": lambda folder: unet(
        folder, second=False, side=64, channels=(320, 640, 1280, 1280), context=768, attention_head_dim=8
    ),
}


def images_differ(folder: Path, *, second: bool) -> int:
    """The largest difference of a pixel between diffusers' images and jdiff's, from the same latents.

    20 steps of DDIM with the spacing as shipped, guidance 3 and a negative prompt.
    """
    pipeline = torch_models.stable_diffusion(folder, second=second)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    expected = pipeline(
        list(torch_models.PROMPTS),
        negative_prompt=["dog"] * 2,
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
        output_type="np",
    ).images
    sampler = directory.load(folder)
    settings = dataclasses.replace(sampler.settings, steps=20)
    actual = sampler.sample(
        list(torch_models.PROMPTS), negative="dog", guidance_scale=3.0, noise=noise, settings=settings
    )
    return int(np.abs(actual.astype(int) - np.round(expected * 255).astype(int)).max())
