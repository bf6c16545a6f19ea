"""Stable Diffusion 1.x and 2.x as others store it: diffusers' folders, and the single file of latent diffusion.

Both are configurations of ``models.unet``, ``models.autoencoder`` and ``models.clip``; their tensors differ in
names, and in where 1x1 convolutions stand for linear layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jdiff.diffusion.spacing import SPACINGS
from jdiff.interop import clip_weights
from jdiff.interop.tensors import Rule, Stored, WrongWeights

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# {name: (our name, its beta_start and beta_end)}; other ends make another schedule.
SCHEDULES = {
    "linear": ("linear", (1e-4, 0.02)),
    "scaled_linear": ("scaled_linear", (0.00085, 0.012)),
    "squaredcos_cap_v2": ("cosine", None),
}
BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}

# What a single file holds besides weights: averages, tables of its schedule, a text tower's unused end.
IGNORED = (
    r"^model_ema\.|^(alphas|betas|sqrt|log|posterior|lvlb|logvar|scale_factor)|^first_stage_model\.loss\."
    r"|^cond_stage_model\.model\.logit_scale$|" + clip_weights.IGNORED
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
    """Names of a U-Net of so many levels: theirs count blocks on the way up from the coarsest level, ours name it."""

    def up(found: re.Match) -> str:
        return f"up_blocks.{levels - 1 - int(found[1])}."

    return (
        (r"^unet/", ""),
        (r"^time(\d)/", r"time_embedding.linear_\1."),
        (r"^down_(\d)_residual_(\d)/", r"down_blocks.\1.resnets.\2."),
        (r"^down_(\d)_transformer_(\d)/", r"down_blocks.\1.attentions.\2./"),
        (r"^down_(\d)_sample/", r"down_blocks.\1.downsamplers.0.conv."),
        (r"^up_(\d)_residual_(\d)/", lambda found: f"{up(found)}resnets.{found[2]}."),
        (r"^up_(\d)_transformer_(\d)/", lambda found: f"{up(found)}attentions.{found[2]}./"),
        (r"^up_(\d)_sample/", lambda found: f"{up(found)}upsamplers.0.conv."),
        (r"^middle_residual_(\d)/", r"mid_block.resnets.\1."),
        (r"^middle_transformer/", "mid_block.attentions.0./"),
        *ATTENTION,
        (r"\./", "."),
        (r"\.time/", ".time_emb_proj."),
        (r"shortcut/", "conv_shortcut."),
        (r"^norm_out/", "conv_norm_out."),
    )


def diffusers_autoencoder(levels: int, *, old: bool) -> tuple[Rule, ...]:
    """Names of an autoencoder. old: whether its attention's are those of before diffusers 0.17."""
    attention = {"q": "query", "k": "key", "v": "value", "out": "proj_attn"} if old else {}
    attention = attention or {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    return (
        (r"^autoencoder/", ""),
        (r"down_(\d)_residual_(\d)/", r"down_blocks.\1.resnets.\2."),
        (r"down_(\d)_sample/", r"down_blocks.\1.downsamplers.0.conv."),
        (r"up_(\d)_residual_(\d)/", lambda found: f"up_blocks.{levels - 1 - int(found[1])}.resnets.{found[2]}."),
        (r"up_(\d)_sample/", lambda found: f"up_blocks.{levels - 1 - int(found[1])}.upsamplers.0.conv."),
        (r"middle/residual_(\d)/", r"mid_block.resnets.\1."),
        (r"middle/norm/", "mid_block.attentions.0.group_norm."),
        (r"middle/attention/(\w+)/", lambda found: f"mid_block.attentions.0.{attention[found[1]]}."),
        (r"shortcut/", "conv_shortcut."),
        (r"norm_out/", "conv_norm_out."),
        (r"quant/", "quant_conv."),
    )


def single_file_unet(unet: Mapping[str, Any]) -> tuple[Rule, ...]:
    """Names of a U-Net of this section in a single file, which counts blocks and samplings through."""
    levels, blocks = len(unet["channels"]), unet["blocks"]

    def on_the_way_down(level: str, i: str | int) -> str:
        return f"input_blocks.{1 + int(level) * (blocks + 1) + int(i)}"

    def on_the_way_up(level: str, i: str | int) -> str:
        return f"output_blocks.{(levels - 1 - int(level)) * (blocks + 1) + int(i)}"

    def upsampling(found: re.Match) -> str:
        return f"{on_the_way_up(found[1], blocks)}.{2 if unet['attention'][int(found[1])] else 1}.conv."

    return (
        (r"^unet/", ""),
        (r"^time(\d)/", lambda found: f"time_embed.{2 * int(found[1]) - 2}."),
        (r"^conv_in/", "input_blocks.0.0."),
        (r"^down_(\d)_residual_(\d)/", lambda found: f"{on_the_way_down(found[1], found[2])}.0/"),
        (r"^down_(\d)_transformer_(\d)/", lambda found: f"{on_the_way_down(found[1], found[2])}.1/"),
        (r"^down_(\d)_sample/", lambda found: f"{on_the_way_down(found[1], blocks)}.0.op."),
        (r"^up_(\d)_residual_(\d)/", lambda found: f"{on_the_way_up(found[1], found[2])}.0/"),
        (r"^up_(\d)_transformer_(\d)/", lambda found: f"{on_the_way_up(found[1], found[2])}.1/"),
        (r"^up_(\d)_sample/", upsampling),
        (r"^middle_residual_(\d)/", lambda found: f"middle_block.{2 * int(found[1])}/"),
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
    (r"middle/residual_(\d)/", lambda found: f"mid.block_{int(found[1]) + 1}."),
    (r"middle/norm/", "mid.attn_1.norm."),
    (r"middle/attention/([qkv])/", r"mid.attn_1.\1."),
    (r"middle/attention/out/", "mid.attn_1.proj_out."),
    (r"shortcut/", "nin_shortcut."),
    (r"quant/", "quant_conv."),
)


def unet_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Our unet section for a U-Net's config.json."""
    channels = tuple(given["block_out_channels"])
    levels = len(channels)
    down = [_known("down_block_types", name, BLOCKS) for name in given["down_block_types"]]
    up = [_known("up_block_types", name, BLOCKS) for name in given["up_block_types"]]
    _must("up_block_types", up, down[::-1])
    for key, usual in {
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "downsample_padding": 1,
        "center_input_sample": False,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": 1,
        "only_cross_attention": False,
        "dual_cross_attention": False,
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "encoder_hid_dim": None,
        "time_embedding_type": "positional",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
    }.items():
        _must(key, given.get(key, usual), usual)
    # Their "attention_head_dim" is the number of heads, by a mistake that files must keep.
    heads = given.get("num_attention_heads") or given.get("attention_head_dim", 8)
    return {
        "channels": channels,
        "attention": tuple(down),
        "heads": tuple(heads) if isinstance(heads, list | tuple) else (heads,) * levels,
        "blocks": given.get("layers_per_block", 2),
        "groups": given.get("norm_num_groups", 32),
        "scale_shift_norm": _known(
            "resnet_time_scale_shift",
            given.get("resnet_time_scale_shift", "default"),
            {"default": False, "scale_shift": True},
        ),
        "attend_to_padding": True,
    }


def autoencoder_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Our autoencoder section for a VAE's config.json."""
    channels = tuple(given["block_out_channels"])
    for key, usual in {
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "act_fn": "silu",
        "in_channels": 3,
        "out_channels": 3,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "shift_factor": None,
        "latents_mean": None,
    }.items():
        found = given.get(key, usual)
        _must(key, list(found) if isinstance(found, tuple) else found, usual)
    return {
        "channels": channels,
        "blocks": given.get("layers_per_block", 1),
        "groups": given.get("norm_num_groups", 32),
        "latent_channels": given.get("latent_channels", 4),
        "scale": given.get("scaling_factor", 0.18215),
    }


def scheduler_config(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our diffusion and sample sections for a scheduler_config.json, of whatever solver: sampling is by DDIM."""
    name, ends = _known("beta_schedule", given.get("beta_schedule", "linear"), SCHEDULES)
    if ends:
        found = given.get("beta_start", 1e-4), given.get("beta_end", 0.02)
        _must("beta_start and beta_end", tuple(found), ends)
    for key, usual in {"trained_betas": None, "thresholding": False}.items():
        _must(key, given.get(key, usual), usual)
    if name != "cosine":  # whose betas, unlike ours, are not brought to another number of timesteps
        _must("num_train_timesteps", given.get("num_train_timesteps", 1000), 1000)
    predicted = _known("prediction_type", given.get("prediction_type", "epsilon"), PREDICTIONS)
    spacing = given.get("timestep_spacing", "leading")
    _known("timestep_spacing", spacing, SPACINGS)
    diffusion = {
        "schedule": name,
        "timesteps": given.get("num_train_timesteps", 1000),
        "prediction_type": predicted,
        "zero_terminal_snr": given.get("rescale_betas_zero_snr", False),
    }
    sample = {
        "solver": "ddim",
        "steps": 50,
        "spacing": spacing,
        "steps_offset": given.get("steps_offset", 0) if spacing == "leading" else 0,
        "final_step_to_zero": given.get("set_alpha_to_one", True),
        "guidance_scale": 7.5,
        "clip": given.get("clip_sample", given.get("_class_name") == "DDIMScheduler"),
    }
    return diffusion, sample


def single_file_config(stored: Mapping[str, Stored], prediction_type: str | None) -> dict[str, Any]:
    """Our sections for a single file, from its tensors' shapes and what is known of Stable Diffusion 1 and 2.

    prediction_type: of a Stable Diffusion 2, whose file does not tell.
    """
    first = f"{TEXT_1_IN_FILE}text_model.embeddings.token_embedding.weight" in stored
    if first:
        text, positions = _first_text(stored), f"{TEXT_1_IN_FILE}text_model.embeddings.position_embedding.weight"
    else:
        text, positions = _second_text(stored), f"{TEXT_2_IN_FILE}positional_embedding"
        if prediction_type is None:
            raise WrongWeights(
                "it is a Stable Diffusion 2, and does not tell what it predicts; say --prediction_type=v (the one for "
                "768 pixels) or --prediction_type=eps (the base, for 512)"
            )
    channels, attention, blocks = _unet_levels(stored)
    unet = {
        "channels": channels,
        "attention": attention,
        "heads": (8,) * len(channels) if first else tuple(max(c // 64, 1) for c in channels),
        "blocks": blocks,
        "attend_to_padding": True,
    }
    down = rf"{re.escape(VAE_IN_FILE)}encoder\.down\.(\d+)\."
    levels = range(clip_weights.count(stored, down))
    widths = (_shape(stored, f"{VAE_IN_FILE}encoder.down.{level}.block.0.conv1.weight")[0] for level in levels)
    autoencoder = {
        "channels": tuple(widths),
        "blocks": clip_weights.count(stored, rf"{re.escape(VAE_IN_FILE)}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": _shape(stored, f"{VAE_IN_FILE}post_quant_conv.weight")[0],
    }
    predicted = {"eps": "epsilon", "v": "v_prediction"}[prediction_type or "eps"]
    diffusion, sample = scheduler_config(
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": predicted,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        }
    )
    return {
        "data": {"image_size": 768 if predicted == "v_prediction" else 512},
        "tokenizer": {"context_length": _shape(stored, positions)[0]},
        "text": text,
        "unet": unet,
        "autoencoder": autoencoder,
        "diffusion": diffusion,
        "sample": sample,
    }


def _shape(stored: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    if name not in stored:
        raise WrongWeights(f"it has no tensor {name}, so it is no Stable Diffusion 1 or 2")
    return stored[name].shape


def _first_text(stored: Mapping[str, Stored]) -> dict[str, Any]:
    """The text section of a first version, whose tower is named as Hugging Face does."""
    layers = f"{TEXT_1_IN_FILE}text_model.encoder.layers"
    vocab_size, width = _shape(stored, f"{TEXT_1_IN_FILE}text_model.embeddings.token_embedding.weight")
    return {
        "vocab_size": vocab_size,
        "width": width,
        "layers": clip_weights.count(stored, rf"{re.escape(layers)}\.(\d+)\."),
        "heads": width // 64,
        "mlp_ratio": _shape(stored, f"{layers}.0.mlp.fc1.weight")[0] / width,
        "embed_dim": 0,
    }


def _second_text(stored: Mapping[str, Stored]) -> dict[str, Any]:
    """The text section of a second version, whose tower is whole, and read before its last layer."""
    _shape(stored, f"{TEXT_2_IN_FILE}token_embedding.weight")
    projection = stored.get(f"{TEXT_2_IN_FILE}text_projection")
    text = clip_weights.openai_text(stored, activation="gelu", prefix=TEXT_2_IN_FILE)
    return text | {"clip_skip": 1, "embed_dim": projection.shape[1] if projection else 0}


def _unet_levels(stored: Mapping[str, Stored]) -> tuple[tuple[int, ...], tuple[bool, ...], int]:
    """Channels of each level of a single file's U-Net, whether it has attention, and the blocks of every level."""
    levels, number = [[]], 1
    while True:
        block = f"{UNET_IN_FILE}input_blocks.{number}"
        if f"{block}.0.in_layers.2.weight" in stored:
            levels[-1].append(block)
        elif f"{block}.0.op.weight" in stored:
            levels.append([])
        else:
            break
        number += 1
    counts = [len(level) for level in levels]
    if not counts[0] or len(set(counts)) > 1:
        raise WrongWeights(f"its U-Net has {counts} blocks at its levels, so it is no Stable Diffusion 1 or 2")
    channels = tuple(stored[f"{level[-1]}.0.in_layers.2.weight"].shape[0] for level in levels)
    return channels, tuple(f"{level[-1]}.1.norm.weight" in stored for level in levels), counts[0]


def _known(key: str, name: Any, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise WrongWeights(f"its config has {key} = {name!r}; known are {', '.join(table)}")
    return table[name]


def _must(key: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise WrongWeights(f"its config has {key} = {found!r}, which cannot be read here; expected is {wanted!r}")
