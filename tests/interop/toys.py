"""Tiny models in third-party layouts, with random weights, written without the third-party libraries.

tests/parity compares them with those libraries.
"""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from jdiff.data import tokenizer as tokenizers
from jdiff.interop import clip_weights, diffusers_configs, diffusers_weights, tensors
from jdiff.tasks import make_task

MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
TOKENIZER = tokenizers.clip(MERGES, dialect="hugging_face")
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}


def write_vocabulary(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(TOKENIZER._model.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]) + "\n")


def toy_task(name, sections):
    train = {"task": name, "batch_size": 1, "steps": 1}
    return make_task({**sections, "train": train}).with_tokenizer(TOKENIZER)


def random_weights(shapes, seed=0):
    generator = np.random.default_rng(seed)

    def normal(leaf):
        return 0.1 * generator.standard_normal(leaf.shape).astype(np.float32)

    # The denoiser last, as the pinned numbers were drawn.
    return {
        name: jax.tree.map(normal, shapes[name]) for name in sorted(shapes, key=lambda name: (name == "denoiser", name))
    }


def to_source_layout(weights, rules, prefix=""):
    """Parameters as source tensors by their source names; thirds of a fused tensor are concatenated."""
    source_tensors, thirds = {}, {}
    for path, value in tensors.flat(weights).items():
        source = tensors.source_tensor(path, rules)
        if path.endswith("/kernel") and not source.flax_layout:
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        if source.part is None:
            source_tensors[prefix + source.name] = np.ascontiguousarray(value)
        else:
            thirds.setdefault(prefix + source.name, {})[source.part] = np.ascontiguousarray(value)
    return source_tensors | {name: np.concatenate([parts[i] for i in range(3)]) for name, parts in thirds.items()}


def clip_sections():
    config = {
        "model_type": "clip",
        "text_config": {**TOWER, "vocab_size": TOKENIZER.vocab_size},
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8},
        "projection_dim": 16,
    }
    return config, clip_weights.hugging_face_config(config, {})


def clip(folder):
    """A CLIP in Hugging Face's layout. Returns its parameters."""
    config, sections = clip_sections()
    weights = random_weights(toy_task("contrastive", sections).param_shapes())
    write_vocabulary(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(to_source_layout(weights, clip_weights.HUGGING_FACE), folder / "model.safetensors")
    return weights


def openai_clip(path):
    """A CLIP as one file in OpenAI's layout. Returns its parameters."""
    _, sections = clip_sections()
    weights = random_weights(toy_task("contrastive", sections).param_shapes())
    write_vocabulary(path.parent)
    save_file(to_source_layout(weights, clip_weights.OPENAI), path)
    return weights


def stable_diffusion(folder):
    """A Stable Diffusion in diffusers' layout, whose latents have half the size of images. Returns its parameters."""
    text = {**TOWER, "vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 77}
    unet = {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 64,
        "sample_size": 8,
    }
    vae = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    }
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    diffusion, sample = diffusers_configs.scheduler_config(scheduler)
    sections = {
        "data": {"image_size": 16},
        "tokenizer": {"context_length": 77},
        "text": clip_weights.hugging_face_text(text) | {"embed_dim": 0},
        "denoiser": diffusers_configs.unet_config(unet),
        "autoencoder": diffusers_configs.autoencoder_config(vae),
        "diffusion": diffusion,
        "sample": sample,
    }
    weights = random_weights(toy_task("text_to_image", sections).param_shapes())
    write_vocabulary(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for part, config, rules, name in (
        ("text", text, clip_weights.HUGGING_FACE, "text_encoder/model"),
        ("denoiser", unet, diffusers_weights.diffusers_unet(2), "unet/diffusion_pytorch_model"),
        ("autoencoder", vae, diffusers_weights.diffusers_autoencoder(2, old=False), "vae/diffusion_pytorch_model"),
    ):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True)
        (path.parent / "config.json").write_text(json.dumps(config))
        save_file(to_source_layout({part: weights[part]}, rules), path)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return weights
