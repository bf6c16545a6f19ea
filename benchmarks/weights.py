"""``python -m benchmarks weights``: other people's weights do here what they do where they come from."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import published, references
from benchmarks.claims import Claim, settle
from jdiff import runs
from jdiff.interop import diffusers_weights, tensors
from jdiff.interop.pretrained import NO_HINTS, Hints
from jdiff.models.unet import UNet
from jdiff.training.steps import images_of

Errors = dict[str, float]  # of each output, |ours - theirs| / |theirs|

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


def relative(ours, theirs: torch.Tensor) -> float:
    theirs = theirs.detach().numpy()
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))


def _open(path: Path, hints: Hints = NO_HINTS):
    """A model, and its weights on the first device."""
    model = runs.find(path, hints)
    return model, model.weights(runs.first_device())


def _images(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)


def _normalised(images: np.ndarray, mean, std) -> torch.Tensor:
    """Images as transformers' models take them."""
    pixels = (images / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def _compare_encoder(model, weights, reference, *, penultimate: bool = False) -> Errors:
    """Embeddings, scaled similarities, and the states of all positions, padding included."""
    network = model.setup.encoder(model.tokenizer.vocab_size)
    tokens, mask = model.tokenizer.encode(list(references.PROMPTS))
    images = _images(model.setup.image_size)
    vision = network.vision
    with torch.no_grad():
        theirs = reference(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            pixel_values=_normalised(images, vision.mean, vision.std),
            output_hidden_states=True,
        )
    inputs = jnp.asarray(tokens), jnp.asarray(mask), images_of({"image": jnp.asarray(images)})
    text, image, scale, bias = jax.jit(network.apply)({"params": weights}, *inputs)
    hidden, _ = jax.jit(network.text.apply)({"params": weights["text"]}, *inputs[:2])
    found = {
        "text embedding": relative(text, theirs.text_embeds),
        "image embedding": relative(image, theirs.image_embeds),
        "similarities": relative(scale * image @ text.T + bias, theirs.logits_per_image),
        "text states": relative(hidden, theirs.text_model_output.last_hidden_state),
        "image states": relative(
            jax.jit(vision.apply)({"params": weights["vision"]}, inputs[2])[0],
            theirs.vision_model_output.last_hidden_state,
        ),
    }
    if penultimate:
        cut = network.text.clone(clip_skip=1).apply({"params": weights["text"]}, *inputs[:2])[0]
        with torch.no_grad():
            states = reference.text_model.final_layer_norm(theirs.text_model_output.hidden_states[-2])
        found["penultimate text states"] = relative(cut, states)
    return found


def clip_of_hugging_face(folder: Path, *, text=SMALL_TEXT, vision=SMALL_VISION, activation="quick_gelu") -> Errors:
    reference = references.clip(text, vision, activation=activation, projection=64)
    reference.save_pretrained(folder)
    references.write_vocabulary(folder)
    return _compare_encoder(*_open(folder), reference)


def clip_of_openai(folder: Path) -> Errors:
    reference = references.clip(SMALL_TEXT, SMALL_VISION, activation="quick_gelu", projection=64)
    references.save(references.openai_layout(reference.state_dict()), folder / "ViT.safetensors")
    references.write_vocabulary(folder)
    return _compare_encoder(*_open(folder / "ViT.safetensors", Hints(activation="quick_gelu")), reference)


def clip_of_open_clip(folder: Path) -> Errors:
    """H/14's form: heads that are not of 64 numbers, the exact GELU, and text cut at its penultimate layer."""
    vision = {**SMALL_VISION, "hidden_size": 160, "intermediate_size": 640}
    reference = references.clip(SMALL_TEXT, vision, activation="gelu", projection=64)
    references.save(references.openai_layout(reference.state_dict()), folder / "open_clip_model.safetensors")
    references.write_vocabulary(folder)
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
    reference = references.siglip(text, {**SMALL_VISION, "intermediate_size": 300})
    reference.save_pretrained(folder)
    references.write_siglip_tokenizer(folder)
    return _compare_encoder(*_open(folder), reference)


def clip_resnet(
    folder: Path, *, layers=(1, 2, 1, 1), width: int = 32, embed_dim: int = 64, image_size: int = 64
) -> Errors:
    reference = references.clip(SMALL_TEXT, SMALL_VISION, activation="quick_gelu", projection=embed_dim)
    text = {k: v for k, v in references.openai_layout(reference.state_dict()).items() if not k.startswith("visual.")}
    tower = references.resnet_weights(layers, width, embed_dim, image_size)
    references.save(text | tower, folder / "RN.safetensors")
    references.write_vocabulary(folder)
    model, weights = _open(folder / "RN.safetensors", Hints(activation="quick_gelu"))
    vision = model.setup.vision()
    images = _images(image_size)
    theirs = references.resnet_forward(tower, _normalised(images, vision.mean, vision.std), width // 2)
    ours = jax.jit(vision.apply)({"params": weights["vision"]}, images_of({"image": jnp.asarray(images)}))[1]
    return {"image embedding": relative(ours, torch.nn.functional.normalize(theirs, dim=-1))}


def unet(folder: Path, *, second: bool, side: int = 16, **sizes) -> Errors:
    """A U-Net alone, on two timesteps and captions of seven states."""
    reference = references.unet(second=second, **sizes)
    reference.save_pretrained(folder)
    section = diffusers_weights.unet_config(json.loads((folder / "config.json").read_text()))
    network = UNet(**section)
    generator = np.random.default_rng(0)
    xt = generator.standard_normal((2, 4, side, side)).astype(np.float32)
    context = generator.standard_normal((2, 7, reference.config.cross_attention_dim)).astype(np.float32)
    timestep = np.array([3.0, 981.0], np.float32)
    with torch.no_grad():
        theirs = reference(torch.tensor(xt), torch.tensor(timestep), torch.tensor(context)).sample
    inputs = [jnp.asarray(a) for a in (xt.transpose(0, 2, 3, 1), timestep, context)]
    like = {"unet": published.shapes(network, inputs)}
    stored = tensors.scan_folder(folder, ("diffusion_pytorch_model",))
    file = tensors.WeightFile(stored, ("unet",), diffusers_weights.diffusers_unet(len(section["channels"])))
    params = tensors.read(like, [file], runs.first_device(), source=folder)["unet"]
    ours = jax.jit(network.apply)({"params": params}, *inputs)
    return {"prediction": relative(ours.transpose(0, 3, 1, 2), theirs)}


def _compare_pipeline(model, weights, pipeline) -> Errors:
    """Each network of a Stable Diffusion on its own."""
    setup = model.setup
    tokens, mask = model.tokenizer.encode(list(references.PROMPTS))
    hidden, _ = setup.text(model.tokenizer.vocab_size).apply({"params": weights["text"]}, tokens, mask)
    images = images_of({"image": jnp.asarray(_images(16))})
    latents = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    autoencoder, scale = setup.autoencoder(), setup.autoencoder().scale
    mean, deviation = autoencoder.apply({"params": weights["autoencoder"]}, images, method="encode")
    decoded = autoencoder.apply({"params": weights["autoencoder"]}, latents * scale, method="decode")
    timestep = np.array([3.0, 981.0], np.float32)
    predicted = setup.unet().apply({"params": weights["unet"]}, latents, timestep, hidden, mask)
    channels_first = [torch.tensor(np.asarray(a).transpose(0, 3, 1, 2)) for a in (images, latents)]
    with torch.no_grad():
        states = pipeline.text_encoder(torch.tensor(tokens, dtype=torch.long)).last_hidden_state
        posterior = pipeline.vae.encode(channels_first[0]).latent_dist
        pixels = pipeline.vae.decode(channels_first[1]).sample
        theirs = pipeline.unet(channels_first[1], torch.tensor(timestep), states).sample
    return {
        "text states": relative(hidden, states),
        "encoded mean": relative(mean.transpose(0, 3, 1, 2) / scale, posterior.mean),
        "encoded deviation": relative(deviation.transpose(0, 3, 1, 2) / scale, posterior.std),
        "decoded image": relative(decoded.transpose(0, 3, 1, 2), pixels),
        "prediction": relative(predicted.transpose(0, 3, 1, 2), theirs),
    }


def stable_diffusion(folder: Path, *, second: bool) -> Errors:
    pipeline = references.stable_diffusion(folder, second=second)
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
    """The largest difference of a pixel between diffusers' images and ours, of the same latents.

    20 steps of DDIM with the spacing as shipped, guidance 3 and a negative prompt.
    """
    pipeline = references.stable_diffusion(folder, second=second)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    theirs = pipeline(
        list(references.PROMPTS),
        negative_prompt=["dog"] * 2,
        num_inference_steps=20,
        guidance_scale=3.0,
        latents=torch.tensor(noise.transpose(0, 3, 1, 2)),
        output_type="np",
    ).images
    sampler = runs.load(folder)
    settings = dataclasses.replace(sampler.settings, steps=20)
    ours = sampler.sample(list(references.PROMPTS), negative="dog", guidance_scale=3.0, noise=noise, settings=settings)
    return int(np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max())


def measure(*, quick: bool, runs: str) -> int:
    """Parity, published tables, whole pipelines; without --quick also full sizes and what loading one costs."""
    return settle("weights", _claims(quick))


def _claims(quick: bool) -> Iterator[Claim]:
    with tempfile.TemporaryDirectory() as root:
        for i, (name, errors) in enumerate(PARITY.items()):
            found = errors(Path(root) / f"parity_{i}")
            worst = max(found, key=found.get)
            text = f"{name}: relative error of {len(found)} outputs"
            yield Claim(text, found[worst], 1e-5, at_most=True, note=f"({worst})")
        for second in (False, True):
            largest = images_differ(Path(root) / f"images_{second}", second=second)
            text = f"Stable Diffusion {1 + second}, tiny: largest difference of a pixel, of 255"
            yield Claim(text, largest, 2, at_most=True)
    for name, table in published.PUBLISHED.items():
        wrong, count = published.problems(name)
        yield Claim(f"{name}: of {len(table['shapes'])} tensors without a place", len(wrong), 0, at_most=True)
        yield Claim(f"{name}: parameters beyond {table['params']:,}", abs(count - table["params"]), 0, at_most=True)
    for name, (_, _, count) in published.COUNTS.items():
        yield Claim(f"{name}: parameters beyond {count:,}", abs(published.counted(name) - count), 0, at_most=True)
    if not quick:
        for name, errors in FULL_SIZE.items():
            with tempfile.TemporaryDirectory() as root:
                found = errors(Path(root))
            worst = max(found, key=found.get)
            yield Claim(f"{name}, full size: relative error", found[worst], 1e-4, at_most=True, note=f"({worst})")
        yield from _loading()


# Its own process, so that its peak is that of loading alone; the file's pages are dropped before each reading.
LOADING = """
import json, os, sys, time
import jax
from benchmarks import published
from jdiff.interop import tensors
path, (model, inputs, parts, rules) = sys.argv[1], published.TABLES["sd15_unet"]
def forget():
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
like = {"unet": published.shapes(model, inputs)}
one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
jax.block_until_ready(jax.device_put(1.0, one))
def plainly():
    forget()
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        block = bytearray(2**24)
        while file.readinto(block):
            pass
    return time.perf_counter() - began
def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))
plain = plainly()
forget()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted from here
before, began = memory("VmRSS"), time.perf_counter()
file = tensors.WeightFile(tensors.scan(path), parts, rules)
weights = tensors.read(like, [file], one, source=path)
seconds = time.perf_counter() - began
peak = memory("VmHWM")
print(json.dumps({"plain": min(plain, plainly()), "seconds": seconds, "before": before, "peak": peak}))
"""


def _loading() -> Iterator[Claim]:
    """What reading Stable Diffusion 1.5's U-Net takes, against reading its bytes. Linux only."""
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "unet.safetensors"
        shapes = published.PUBLISHED["sd15_unet"]["shapes"].items()
        references.save({name: torch.randn(shape, generator=generator) for name, shape in shapes}, path)
        os.sync()
        size = path.stat().st_size
        done = subprocess.run([sys.executable, "-c", LOADING, str(path)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    grown, gigabytes = found["peak"] - found["before"], size / 1e9
    name = "Stable Diffusion 1.5's U-Net"
    note = f"({grown / 1e9:.2f} GB of {gigabytes:.2f}; the process {found['peak'] / 1e9:.2f})"
    yield Claim(f"{name}: peak memory of loading, by its size", grown / size, 1.3, at_most=True, note=note)
    note = f"({found['seconds']:.1f} s; the disk reads {gigabytes / found['plain']:.2f} GB/s)"
    yield Claim(f"{name}: time of loading, by that of reading the file", found["seconds"] / found["plain"], note=note)
