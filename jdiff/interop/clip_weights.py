"""CLIP and SigLIP as others store them: OpenAI's and open_clip's layout, and Hugging Face's.

All are configurations of ``models.clip``. Theirs fuse query, key and value, keep two projections as (in, out),
and call the same tensors otherwise; nothing is computed on the way, but for position embeddings at another size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jdiff.interop.tensors import Rule, Stored, WrongWeights

QKV = {"q": 0, "k": 1, "v": 2}
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
CROPS = {"shortest": "clip", "squash": "squash"}
# Buffers and scalars that are no weights.
IGNORED = r"(^|\.)(position_ids|num_batches_tracked|attn_mask|input_resolution|context_length|vocab_size)$"

# A file does not tell how many heads share its width: 64 numbers each, but for these widths of vision towers.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


def _fused(found: re.Match) -> str:
    return f"in_proj_{found[2].replace('kernel', 'weight')}#{QKV[found[1]]}"


BLOCKS: tuple[Rule, ...] = (
    (r"/transformer/layers_(\d+)/", r"/transformer.resblocks.\1."),
    (r"attention/([qkv])/(kernel|bias)$", lambda found: "attn." + _fused(found)),
    (r"attention/out/", "attn.out_proj."),
    (r"norm_([12])/", r"ln_\1."),
    (r"mlp_1/", "mlp.c_fc."),
    (r"mlp_2/", "mlp.c_proj."),
)
OPENAI: tuple[Rule, ...] = (
    *BLOCKS,
    (r"^text/projection/kernel$", "text_projection="),
    (r"^text/tokens/", "token_embedding."),
    (r"^text/positions$", "positional_embedding"),
    (r"^text/norm/", "ln_final."),
    (r"^text/", ""),
    (r"^vision/projection/kernel$", "visual.proj="),
    (r"^vision/class_token$", "visual.class_embedding"),
    (r"^vision/positions$", "visual.positional_embedding"),
    (r"^vision/pool/([qkv])/", r"visual.attnpool.\1_proj."),
    (r"^vision/pool/out/", "visual.attnpool.c_proj."),
    (r"^vision/patches/", "visual.conv1."),
    (r"^vision/norm_in/", "visual.ln_pre."),
    (r"^vision/norm_out/", "visual.ln_post."),
    (r"^vision/stage_(\d)_(\d+)/", lambda found: f"visual.layer{int(found[1]) + 1}.{found[2]}."),
    (r"conv_shortcut/", "downsample.0."),
    (r"norm_shortcut/", "downsample.1."),
    (r"norm(\d)/", r"bn\1."),
    (r"\.mean$", ".running_mean"),
    (r"\.variance$", ".running_var"),
    (r"^vision/", "visual."),
)
OPENAI_RESNET: tuple[Rule, ...] = ((r"^vision/positions$", "visual.attnpool.positional_embedding"), *OPENAI)
HUGGING_FACE: tuple[Rule, ...] = (
    (r"^text/projection/", "text_projection."),
    (r"^vision/projection/", "visual_projection."),
    (r"^(text|vision)/", r"\1_model."),
    (r"transformer/layers_(\d+)/", r"encoder.layers.\1."),
    (r"attention/(q|k|v|out)/", r"self_attn.\1_proj."),
    (r"norm_([12])/", r"layer_norm\1."),
    (r"mlp_([12])/", r"mlp.fc\1."),
    (r"tokens/", "embeddings.token_embedding."),
    (r"positions$", "embeddings.position_embedding.weight"),
    (r"class_token$", "embeddings.class_embedding"),
    (r"patches/", "embeddings.patch_embedding."),
    (r"norm_in/", "pre_layrnorm."),
    (r"norm_out/", "post_layernorm."),
    (r"^text_model\.norm/", "text_model.final_layer_norm."),
)
SIGLIP: tuple[Rule, ...] = (
    (r"^text/projection/", "text_model.head."),
    (r"^vision/pool/query$", "vision_model.head.probe"),
    (r"^vision/pool/attention/([qkv])/(kernel|bias)$", lambda found: "vision_model.head.attention." + _fused(found)),
    (r"^vision/pool/attention/out/", "vision_model.head.attention.out_proj."),
    (r"^vision/pool/norm/", "vision_model.head.layernorm."),
    (r"^vision/pool/mlp_([12])/", r"vision_model.head.mlp.fc\1."),
    *HUGGING_FACE,
)


@dataclass(frozen=True)
class _Defaults:
    """What a Hugging Face config.json leaves out where it is as usual."""

    width: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


_TEXT, _VISION = _Defaults(512, 8), _Defaults(768, 12)
_SIGLIP = _Defaults(768, 12, "gelu_pytorch_tanh", 1e-6)


def hugging_face_config(given: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Our sections for a Hugging Face config.json of model_type "clip" or "siglip" and its preprocessor_config.json."""
    siglip = given["model_type"] == "siglip"
    texts, visions = (
        {**given.get(f"{name}_config", {}), **(given.get(f"{name}_config_dict") or {})} for name in ("text", "vision")
    )
    text, vision = hugging_face_text(texts, siglip=siglip), _tower(visions, _SIGLIP if siglip else _VISION)
    vision["patch_size"] = visions.get("patch_size", 16 if siglip else 32)
    if siglip:
        text |= {"embed_dim": texts.get("projection_size", text["width"]), "projection_bias": True}
        text |= {"causal": False, "attend_to_padding": True}
        vision |= {"embed_dim": vision["width"], "pooling": "attention"}
    else:
        text["embed_dim"] = vision["embed_dim"] = given.get("projection_dim", 512)
    vision["mean"] = tuple(preprocessor.get("image_mean", HALF if siglip else OPENAI_MEAN))
    vision["std"] = tuple(preprocessor.get("image_std", HALF if siglip else OPENAI_STD))
    return {
        "data": {"image_size": visions.get("image_size", 224), "crop": "squash" if siglip else "clip"},
        "tokenizer": {"context_length": texts.get("max_position_embeddings", 64 if siglip else 77)},
        "text": text,
        "vision": vision,
        "encoder": {"use_logit_bias": siglip},
    }


def hugging_face_text(given: Mapping[str, Any], *, siglip: bool = False) -> dict[str, Any]:
    """Our text section for their text_config."""
    return {
        "vocab_size": given.get("vocab_size", 32000 if siglip else 49408),
        **_tower(given, _SIGLIP if siglip else _TEXT),
    }


def _tower(given: Mapping[str, Any], usual: _Defaults) -> dict[str, Any]:
    width = given.get("hidden_size", usual.width)
    return {
        "width": width,
        "layers": given.get("num_hidden_layers", 12),
        "heads": given.get("num_attention_heads", usual.heads),
        "mlp_ratio": given.get("intermediate_size", 4 * usual.width) / width,
        "activation": activation(given.get("hidden_act", usual.activation)),
        "epsilon": given.get("layer_norm_eps", usual.epsilon),
    }


def activation(name: str) -> str:
    """Our name for theirs."""
    if name not in ACTIVATIONS:
        raise WrongWeights(f"its config.json has hidden_act '{name}'; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def open_clip_config(given: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Any]:
    """Our sections for an open_clip_config.json; what it does not say, the tensors' shapes do."""
    model, pixels = given["model_cfg"], given.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    other = [key for key in ("timm_model_name", "hf_model_name") if {**vision, **text}.get(key)]
    if other:
        raise WrongWeights(
            f"its open_clip_config.json has a {other[0]}, a tower of another library, which cannot be read here; "
            "Hugging Face's copy of the same model may be"
        )
    crop, filtering = pixels.get("resize_mode", "shortest"), pixels.get("interpolation", "bicubic")
    if crop not in CROPS or filtering != "bicubic":
        raise WrongWeights(f"its open_clip_config.json resizes by '{crop}', '{filtering}'; known is bicubic, {CROPS}")
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    found = openai_config(stored, activation=act)
    found["text"]["heads"] = text.get("heads", found["text"]["heads"])
    if "head_width" in vision:
        found["vision"]["heads"] = vision["width"] // vision["head_width"]
    found["vision"] |= {"mean": tuple(pixels.get("mean", OPENAI_MEAN)), "std": tuple(pixels.get("std", OPENAI_STD))}
    found["data"]["crop"] = CROPS[crop]
    return found


def openai_config(stored: Mapping[str, Stored], *, activation: str) -> dict[str, Any]:
    """Our sections for tensors in OpenAI's layout, from their shapes alone."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in stored:
            raise WrongWeights(f"it has no tensor {name}, so it is no CLIP in OpenAI's layout")
        return stored[name].shape

    text = openai_text(stored, activation=activation)
    text["embed_dim"] = embed_dim = shape("text_projection")[1]
    if "visual.layer1.0.conv1.weight" in stored:
        width = shape("visual.layer1.0.conv1.weight")[0]
        side = 32 * math.isqrt(shape("visual.attnpool.positional_embedding")[0] - 1)
        layers = tuple(count(stored, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        vision = {"kind": "resnet", "layers": layers, "width": width, "heads": width // 2, "embed_dim": embed_dim}
    else:
        width, _, patch, _ = shape("visual.conv1.weight")
        side = patch * math.isqrt(shape("visual.positional_embedding")[0] - 1)
        vision = {
            "patch_size": patch,
            "width": width,
            "layers": count(stored, r"visual\.transformer\.resblocks\.(\d+)\."),
            "heads": width // HEAD_WIDTHS.get(width, 64),
            "embed_dim": embed_dim,
            "mlp_ratio": shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
            "activation": activation,
        }
    return {
        "data": {"image_size": side, "crop": "clip"},
        "tokenizer": {"context_length": shape("positional_embedding")[0]},
        "text": text,
        "vision": {**vision, "mean": OPENAI_MEAN, "std": OPENAI_STD},
    }


def openai_text(stored: Mapping[str, Stored], *, activation: str, prefix: str = "") -> dict[str, Any]:
    """Our text section for tensors in OpenAI's layout."""
    vocab_size, width = stored[f"{prefix}token_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "width": width,
        "layers": count(stored, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        "heads": width // 64,
        "mlp_ratio": stored[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        "activation": activation,
    }


def count(stored: Mapping[str, Stored], pattern: str) -> int:
    """How many numbers stand where the pattern has its group: one more than the last of them."""
    return 1 + max((int(found[1]) for name in stored if (found := re.match(pattern, name))), default=-1)
