"""Stable Diffusion 1.x and 2.x weights: diffusers' folders, and the single file of the latent diffusion repository.

Both versions are configurations of ``models.unet``, ``models.autoencoder`` and ``models.clip``. The two layouts differ
in the names of tensors, and in which linear layers are stored as 1x1 convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jdiff.interop import clip_weights
from jdiff.interop.diffusers_configs import scheduler_config
from jdiff.interop.safetensors_files import StoredTensor, WrongWeights
from jdiff.interop.tensors import Rule

# What a single file holds besides parameters: EMA weights, tables of the noise schedule, unused ends of a text tower.
UNUSED_TENSORS = (
    r"^model_ema\.|^(alphas|betas|sqrt|log|posterior|lvlb|logvar|scale_factor)|^first_stage_model\.loss\."
    r"|^cond_stage_model\.model\.logit_scale$|" + clip_weights.UNUSED_TENSORS
)
UNET_IN_FILE, VAE_IN_FILE = "model.diffusion_model.", "first_stage_model."
TEXT_1_IN_FILE, TEXT_2_IN_FILE = "cond_stage_model.transformer.", "cond_stage_model.model."

ATTENTION: tuple[Rule, ...] = (
    (r"/blocks_(\d)/", r"/transformer_blocks.\1."),
    (r"(attn[12])/([qkv])/", r"\1.to_\2."),
    (r"(attn[12])/out/", r"\1.to_out.0."),
    (r"ff1/", "ff.net.0.proj."),
    (r"ff2/", "ff.net.2."),
)


def diffusers_unet(levels: int) -> tuple[Rule, ...]:
    """Names of a U-Net: diffusers counts up blocks from the coarsest of the levels, jdiff from the finest."""

    def up_block(match: re.Match) -> str:
        return f"up_blocks.{levels - 1 - int(match[1])}."

    return (
        (r"^denoiser/", ""),
        (r"^time(\d)/", r"time_embedding.linear_\1."),
        (r"^down_(\d)_residual_(\d)/", r"down_blocks.\1.resnets.\2."),
        (r"^down_(\d)_transformer_(\d)/", r"down_blocks.\1.attentions.\2./"),
        (r"^down_(\d)_sample/", r"down_blocks.\1.downsamplers.0.conv."),
        (r"^up_(\d)_residual_(\d)/", lambda match: f"{up_block(match)}resnets.{match[2]}."),
        (r"^up_(\d)_transformer_(\d)/", lambda match: f"{up_block(match)}attentions.{match[2]}./"),
        (r"^up_(\d)_sample/", lambda match: f"{up_block(match)}upsamplers.0.conv."),
        (r"^middle_residual_(\d)/", r"mid_block.resnets.\1."),
        (r"^middle_transformer/", "mid_block.attentions.0./"),
        *ATTENTION,
        (r"\./", "."),
        (r"\.time/", ".time_emb_proj."),
        (r"shortcut/", "conv_shortcut."),
        (r"^norm_out/", "conv_norm_out."),
    )


def diffusers_autoencoder(levels: int, *, old: bool) -> tuple[Rule, ...]:
    """Names of an autoencoder. old: whether its attention has the names that diffusers used before 0.17."""
    attention = {"q": "query", "k": "key", "v": "value", "out": "proj_attn"} if old else {}
    attention = attention or {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    return (
        (r"^autoencoder/", ""),
        (r"down_(\d)_residual_(\d)/", r"down_blocks.\1.resnets.\2."),
        (r"down_(\d)_sample/", r"down_blocks.\1.downsamplers.0.conv."),
        (r"up_(\d)_residual_(\d)/", lambda match: f"up_blocks.{levels - 1 - int(match[1])}.resnets.{match[2]}."),
        (r"up_(\d)_sample/", lambda match: f"up_blocks.{levels - 1 - int(match[1])}.upsamplers.0.conv."),
        (r"middle/residual_(\d)/", r"mid_block.resnets.\1."),
        (r"middle/norm/", "mid_block.attentions.0.group_norm."),
        (r"middle/attention/(\w+)/", lambda match: f"mid_block.attentions.0.{attention[match[1]]}."),
        (r"shortcut/", "conv_shortcut."),
        (r"norm_out/", "conv_norm_out."),
        (r"quant/", "quant_conv."),
    )


def single_file_unet(unet: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Names of a U-Net in a single file, which numbers blocks and up- or downsampling layers consecutively.

    unet: the config section.
    """
    levels, blocks = len(unet["channels"]), unet["blocks"]

    def input_block(level: str, i: str | int) -> str:
        return f"input_blocks.{1 + int(level) * (blocks + 1) + int(i)}"

    def output_block(level: str, i: str | int) -> str:
        return f"output_blocks.{(levels - 1 - int(level)) * (blocks + 1) + int(i)}"

    def upsampling(match: re.Match) -> str:
        return f"{output_block(match[1], blocks)}.{2 if unet['attention'][int(match[1])] else 1}.conv."

    return (
        (r"^denoiser/", ""),
        (r"^time(\d)/", lambda match: f"time_embed.{2 * int(match[1]) - 2}."),
        (r"^conv_in/", "input_blocks.0.0."),
        (r"^down_(\d)_residual_(\d)/", lambda match: f"{input_block(match[1], match[2])}.0/"),
        (r"^down_(\d)_transformer_(\d)/", lambda match: f"{input_block(match[1], match[2])}.1/"),
        (r"^down_(\d)_sample/", lambda match: f"{input_block(match[1], blocks)}.0.op."),
        (r"^up_(\d)_residual_(\d)/", lambda match: f"{output_block(match[1], match[2])}.0/"),
        (r"^up_(\d)_transformer_(\d)/", lambda match: f"{output_block(match[1], match[2])}.1/"),
        (r"^up_(\d)_sample/", upsampling),
        (r"^middle_residual_(\d)/", lambda match: f"middle_block.{2 * int(match[1])}/"),
        (r"^middle_transformer/", "middle_block.1/"),
        *ATTENTION,
        (r"/norm1/", ".in_layers.0."),
        (r"/conv1/", ".in_layers.2."),
        (r"/time/", ".emb_layers.1."),
        (r"/norm2/", ".out_layers.0."),
        (r"/conv2/", ".out_layers.3."),
        (r"/shortcut/", ".skip_connection."),
        (r"^norm_out/", "out.0."),
        (r"^conv_out/", "out.2."),
    )


SINGLE_FILE_AUTOENCODER: tuple[Rule, ...] = (
    (r"^autoencoder/", ""),
    (r"(down|up)_(\d)_residual_(\d)/", r"\1.\2.block.\3."),
    (r"(down|up)_(\d)_sample/", r"\1.\2.\1sample.conv."),
    (r"middle/residual_(\d)/", lambda match: f"mid.block_{int(match[1]) + 1}."),
    (r"middle/norm/", "mid.attn_1.norm."),
    (r"middle/attention/([qkv])/", r"mid.attn_1.\1."),
    (r"middle/attention/out/", "mid.attn_1.proj_out."),
    (r"shortcut/", "nin_shortcut."),
    (r"quant/", "quant_conv."),
)


def single_file_config(tensors: Mapping[str, StoredTensor], prediction_type: str | None) -> dict[str, Any]:
    """The config sections of a single file, by the shapes of its tensors and the settings of Stable Diffusion 1 and 2.

    prediction_type: "eps" or "v" for Stable Diffusion 2, whose file does not contain it.
    """
    version_1 = f"{TEXT_1_IN_FILE}text_model.embeddings.token_embedding.weight" in tensors
    if version_1:
        text, positions = _version_1_text(tensors), f"{TEXT_1_IN_FILE}text_model.embeddings.position_embedding.weight"
    else:
        text, positions = _version_2_text(tensors), f"{TEXT_2_IN_FILE}positional_embedding"
        if prediction_type is None:
            raise WrongWeights(
                "it is a Stable Diffusion 2 model, whose file does not contain the prediction type; pass "
                "--prediction_type=v (the model for 768 pixels) or --prediction_type=eps (the base model, for 512)"
            )
    channels, attention, blocks = _unet_levels(tensors)
    unet = {
        "channels": channels,
        "attention": attention,
        "heads": (8,) * len(channels) if version_1 else tuple(max(c // 64, 1) for c in channels),
        "blocks": blocks,
        "attend_to_padding": True,
    }
    down_pattern = rf"{re.escape(VAE_IN_FILE)}encoder\.down\.(\d+)\."
    levels = range(clip_weights.count(tensors, down_pattern))
    widths = (_shape(tensors, f"{VAE_IN_FILE}encoder.down.{level}.block.0.conv1.weight")[0] for level in levels)
    autoencoder = {
        "channels": tuple(widths),
        "blocks": clip_weights.count(tensors, rf"{re.escape(VAE_IN_FILE)}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(tensors, f"{VAE_IN_FILE}post_quant_conv.weight")[0],
    }
    diffusers_type = {"eps": "epsilon", "v": "v_prediction"}[prediction_type or "eps"]
    diffusion, sample = scheduler_config(
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": diffusers_type,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
    )
    return {
        "data": {"image_size": 768 if diffusers_type == "v_prediction" else 512},
        "tokenizer": {"context_length": _shape(tensors, positions)[0]},
        "text": text,
        "denoiser": unet,
        "autoencoder": autoencoder,
        "diffusion": diffusion,
        "sample": sample,
    }


def with_text_model(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """Tensors with the names that Stable Diffusion 1 has today: older files leave ``text_model.`` out."""
    old = re.compile(rf"^{re.escape(TEXT_1_IN_FILE)}(?=embeddings\.|encoder\.|final_layer_norm\.)")
    return {old.sub(f"{TEXT_1_IN_FILE}text_model.", name): tensor for name, tensor in tensors.items()}


def _shape(tensors: Mapping[str, StoredTensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise WrongWeights(f"it has no tensor {name}; expected a Stable Diffusion 1 or 2 model")
    return tensors[name].shape


def _version_1_text(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The text section of Stable Diffusion 1, whose text tower has Hugging Face's names."""
    layers = f"{TEXT_1_IN_FILE}text_model.encoder.layers"
    vocab_size, width = _shape(tensors, f"{TEXT_1_IN_FILE}text_model.embeddings.token_embedding.weight")
    return {
        "vocab_size": vocab_size,
        "width": width,
        "layers": clip_weights.count(tensors, rf"{re.escape(layers)}\.(\d+)\."),
        "heads": width // 64,
        "mlp_ratio": _shape(tensors, f"{layers}.0.mlp.fc1.weight")[0] / width,
        "embed_dim": 0,
    }


def _version_2_text(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The text section of Stable Diffusion 2, which uses the penultimate layer of its text tower."""
    _shape(tensors, f"{TEXT_2_IN_FILE}token_embedding.weight")
    projection = tensors.get(f"{TEXT_2_IN_FILE}text_projection")
    text = clip_weights.openai_text(tensors, activation="gelu", prefix=TEXT_2_IN_FILE)
    return text | {"clip_skip": 1, "embed_dim": projection.shape[1] if projection else 0}


def _unet_levels(tensors: Mapping[str, StoredTensor]) -> tuple[tuple[int, ...], tuple[bool, ...], int]:
    """Per level of a single file's U-Net its channels and whether it has attention; and the blocks of every level."""
    levels, number = [[]], 1
    while True:
        block = f"{UNET_IN_FILE}input_blocks.{number}"
        if f"{block}.0.in_layers.2.weight" in tensors:
            levels[-1].append(block)
        elif f"{block}.0.op.weight" in tensors:
            levels.append([])
        else:
            break
        number += 1
    counts = [len(level) for level in levels]
    if not counts[0] or len(set(counts)) > 1:
        raise WrongWeights(f"its U-Net has {counts} blocks per level; expected the same number at every level")
    channels = tuple(tensors[f"{level[-1]}.0.in_layers.2.weight"].shape[0] for level in levels)
    return channels, tuple(f"{level[-1]}.1.norm.weight" in tensors for level in levels), counts[0]
