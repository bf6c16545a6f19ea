"""CLIP and SigLIP weights in the layout of OpenAI and open_clip, and in that of Hugging Face.

All are configurations of ``models.clip``. OpenAI's layout fuses query, key and value and stores two projections as
(in, out); all layouts use other names for the same tensors. Loading computes nothing, except for position embeddings at
another image size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jdiff.interop.foreign_config import TRANSFORMERS_KEYS, ForeignConfig
from jdiff.interop.safetensors_files import StoredTensor, WrongWeights
from jdiff.interop.tensors import Rule

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
# Buffers and scalars that hold no parameter.
UNUSED_TENSORS = r"(^|\.)(position_ids|num_batches_tracked|attn_mask|input_resolution|context_length|vocab_size)$"

# Features per attention head, by the width of a vision tower; 64 for all other widths. Tensor shapes do not show it.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


def _in_proj(match: re.Match) -> str:
    return f"in_proj_{match[2].replace('kernel', 'weight')}#{QKV[match[1]]}"


BLOCKS: tuple[Rule, ...] = (
    (r"/transformer/layers_(\d+)/", r"/transformer.resblocks.\1."),
    (r"attention/([qkv])/(kernel|bias)$", lambda match: "attn." + _in_proj(match)),
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
    (r"^vision/stage_(\d)_(\d+)/", lambda match: f"visual.layer{int(match[1]) + 1}.{match[2]}."),
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
    (r"^vision/pool/attention/([qkv])/(kernel|bias)$", lambda match: "vision_model.head.attention." + _in_proj(match)),
    (r"^vision/pool/attention/out/", "vision_model.head.attention.out_proj."),
    (r"^vision/pool/norm/", "vision_model.head.layernorm."),
    (r"^vision/pool/mlp_([12])/", r"vision_model.head.mlp.fc\1."),
    *HUGGING_FACE,
)


@dataclass(frozen=True)
class _Defaults:
    """Values of the keys that a Hugging Face config.json leaves out."""

    width: int
    heads: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


_TEXT, _VISION = _Defaults(512, 8), _Defaults(768, 12)
_SIGLIP = _Defaults(768, 12, "gelu_pytorch_tanh", 1e-6)


def hugging_face_config(content: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The config sections of a Hugging Face model. Raises ``WrongWeights`` where jdiff would compute otherwise.

    content: its config.json, of model_type "clip" or "siglip".   preprocessor: its preprocessor_config.json.
    """
    config = ForeignConfig(content, "config.json")
    siglip = config.required("model_type", "") == "siglip"
    text_content, vision_content = (
        {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
        for name in ("text", "vision")
    )
    vision_config = ForeignConfig(vision_content, "config.json, vision_config,")
    text, vision = hugging_face_text(text_content, siglip=siglip), _tower(vision_config, _SIGLIP if siglip else _VISION)
    vision["patch_size"] = vision_config.get("patch_size", 16 if siglip else 32)
    vision_config.require({"num_channels": 3, "vision_use_head": True})
    size = vision_config.get("image_size", 224)
    if siglip:
        text |= {"embed_dim": text_content.get("projection_size", text["width"]), "projection_bias": True}
        text |= {"causal": False, "attend_to_padding": True}
        vision |= {"embed_dim": vision["width"], "pooling": "attention"}
    else:
        text["embed_dim"] = vision["embed_dim"] = config.get("projection_dim", 512)
    values = {key: value for key, value in preprocessor.items() if value is not None}  # null is the default
    vision["mean"], vision["std"] = _normalization(ForeignConfig(values, "preprocessor_config.json"), size, siglip)
    vision_config.finish({"projection_dim"} | TRANSFORMERS_KEYS)
    config.finish({"projection_dim"} | TRANSFORMERS_KEYS)
    return {
        "data": {"image_size": size, "crop": "squash" if siglip else "clip"},
        "tokenizer": {"context_length": text_content.get("max_position_embeddings", 64 if siglip else 77)},
        "text": text,
        "vision": vision,
        "encoder": {"use_logit_bias": siglip},
    }


def _normalization(preprocessor: ForeignConfig, size: int, siglip: bool) -> tuple[tuple, tuple]:
    """Mean and standard deviation of a preprocessor_config.json.

    Raises ``WrongWeights`` where its images differ from those that the data sections of ``hugging_face_config`` make.
    """
    preprocessor.require({"do_resize": True, "do_rescale": True, "do_convert_rgb": True})
    preprocessor.lookup("resample", 3, {3: "bicubic"})
    if abs(preprocessor.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        preprocessor.require({"rescale_factor": 1 / 255})
    names = ["size"] if siglip else ["size", "crop_size"]
    for name in names:
        sides = preprocessor.get(name) or size
        sides = set(sides.values()) if isinstance(sides, Mapping) else {sides}
        if sides != {size}:
            raise WrongWeights(
                f"its preprocessor_config.json has {name} = {preprocessor.get(name)!r}, which is not supported; "
                f"expected {size}, the image_size of its config.json"
            )
    preprocessor.require({"do_center_crop": not siglip})
    mean = preprocessor.get("image_mean", HALF if siglip else OPENAI_MEAN)
    std = preprocessor.get("image_std", HALF if siglip else OPENAI_STD)
    normalizes = preprocessor.get("do_normalize", True)
    # Who wrote it, with what; and how a processor passes tensors on.
    preprocessor.finish(
        {"feature_extractor_type", "image_processor_type", "processor_class", "data_format", "input_data_format"}
        | {"device", "return_tensors", "default_to_square", "disable_grouping", "crop_size", "image_seq_length"}
    )
    return (tuple(mean), tuple(std)) if normalizes else ((0.0,) * 3, (1.0,) * 3)


def hugging_face_text(content: Mapping[str, Any], *, siglip: bool = False) -> dict[str, Any]:
    """The text section of a Hugging Face text_config. Raises ``WrongWeights``."""
    config = ForeignConfig(content, "config.json of the text tower")
    text = {
        "vocab_size": config.get("vocab_size", 32000 if siglip else 49408),
        **_tower(config, _SIGLIP if siglip else _TEXT),
    }
    # The dual encoder's config has the projection of CLIP, and its tokens mark the end of a caption.
    config.finish({"projection_dim", "projection_size", "max_position_embeddings"} | TRANSFORMERS_KEYS)
    return text


def _tower(config: ForeignConfig, defaults: _Defaults) -> dict[str, Any]:
    config.require({"attention_dropout": 0.0, "dropout": 0.0})
    width = config.get("hidden_size", defaults.width)
    return {
        "width": width,
        "layers": config.get("num_hidden_layers", 12),
        "heads": config.get("num_attention_heads", defaults.heads),
        "mlp_ratio": config.get("intermediate_size", 4 * defaults.width) / width,
        "activation": activation(config.get("hidden_act", defaults.activation)),
        "epsilon": config.get("layer_norm_eps", defaults.epsilon),
    }


def activation(name: str) -> str:
    """The name in jdiff of an activation that Hugging Face calls ``name``."""
    if name not in ACTIVATIONS:
        raise WrongWeights(f"its config.json has hidden_act '{name}'; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def open_clip_config(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The config sections of an open_clip_config.json; what it leaves out is read from the shapes of the tensors."""
    file = ForeignConfig(config, "open_clip_config.json")
    model = ForeignConfig(file.required("model_cfg", {}), "open_clip_config.json, model_cfg,")
    preprocessing = ForeignConfig(file.get("preprocess_cfg", {}), "open_clip_config.json, preprocess_cfg,")
    vision = ForeignConfig(model.required("vision_cfg", {}), "open_clip_config.json, vision_cfg,")
    text = ForeignConfig(model.required("text_cfg", {}), "open_clip_config.json, text_cfg,")
    other_library = [key for key in ("timm_model_name", "hf_model_name") if vision.get(key) or text.get(key)]
    if other_library:
        raise WrongWeights(
            f"its open_clip_config.json has {other_library[0]}, a tower of another library, which is not supported; "
            "if Hugging Face has a copy of the model in its own layout, use that"
        )
    crop = preprocessing.lookup("resize_mode", "shortest", CROPS)
    preprocessing.require({"mode": "RGB", "interpolation": "bicubic"})
    sections = openai_config(tensors, activation="quick_gelu" if model.get("quick_gelu") else "gelu")
    sections["text"]["heads"] = text.get("heads", sections["text"]["heads"])
    if head_width := vision.get("head_width"):
        sections["vision"]["heads"] = vision.required("width", 1) // head_width
    mean, std = preprocessing.get("mean", OPENAI_MEAN), preprocessing.get("std", OPENAI_STD)
    sections["vision"] |= {"mean": tuple(mean), "std": tuple(std)}
    sections["data"]["crop"] = crop
    size = sections["data"]["image_size"]
    for part, key in ((vision, "image_size"), (preprocessing, "size")):
        if (value := part.get(key, size)) not in (size, [size, size]):
            raise WrongWeights(f"its open_clip_config.json has {key} = {value!r}, but its tensors are of {size} pixels")
    vision.require({"ls_init_value": None, "attentional_pool": False, "pool_type": "tok", "final_ln_after_pool": False})
    vision.require({"output_tokens": False, "no_ln_pre": False, "pos_embed_type": "learnable", "act_kwargs": None})
    vision.require({"norm_kwargs": None, "patch_dropout": 0.0, "block_type": None, "qk_norm": False})
    vision.require({"scaled_cosine_attn": False, "scale_heads": False, "scale_attn_inner": False, "scale_attn": False})
    vision.require({"scale_fc": False})
    text.require({"ls_init_value": None, "embed_cls": False, "no_causal_mask": False, "final_ln_after_pool": False})
    text.require({"pool_type": "argmax", "proj_bias": False, "proj_type": "linear", "output_tokens": False})
    text.require({"act_kwargs": None, "norm_kwargs": None, "pad_id": 0, "eos_id": 2, "hf_tokenizer_name": None})
    text.require({"tokenizer_kwargs": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False})
    text.require({"scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False})
    model.require({"init_logit_bias": None, "nonscalar_logit_scale": False})
    # The tensors' shapes have these; and no tower is of timm or transformers.
    vision.finish(
        {"layers", "width", "mlp_ratio", "patch_size", "attn_pooler_queries", "attn_pooler_heads"}
        | {key for key in config["model_cfg"]["vision_cfg"] if key.startswith("timm_")}
    )
    text.finish(
        {"context_length", "vocab_size", "width", "layers", "mlp_ratio"}
        | {key for key in config["model_cfg"]["text_cfg"] if key.startswith("hf_")}
    )
    model.finish({"embed_dim", "init_logit_scale", "custom_text"})
    preprocessing.finish({"fill_color"})  # every image is cropped or scaled, never filled up
    file.finish()
    return sections


def openai_config(tensors: Mapping[str, StoredTensor], *, activation: str) -> dict[str, Any]:
    """The config sections of tensors in OpenAI's layout, from their shapes alone."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WrongWeights(f"it has no tensor {name}; expected a CLIP model in OpenAI's layout")
        return tensors[name].shape

    text = openai_text(tensors, activation=activation)
    text["embed_dim"] = embed_dim = shape("text_projection")[1]
    if "visual.layer1.0.conv1.weight" in tensors:
        width = shape("visual.layer1.0.conv1.weight")[0]
        side = 32 * math.isqrt(shape("visual.attnpool.positional_embedding")[0] - 1)
        layers = tuple(count(tensors, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        vision = {"kind": "resnet", "layers": layers, "width": width, "heads": width // 2, "embed_dim": embed_dim}
    else:
        width, _, patch, _ = shape("visual.conv1.weight")
        side = patch * math.isqrt(shape("visual.positional_embedding")[0] - 1)
        vision = {
            "patch_size": patch,
            "width": width,
            "layers": count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
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


def openai_text(tensors: Mapping[str, StoredTensor], *, activation: str, prefix: str = "") -> dict[str, Any]:
    """The text section of tensors in OpenAI's layout. prefix: what precedes the name of every tensor."""
    vocab_size, width = tensors[f"{prefix}token_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "width": width,
        "layers": count(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\."),
        "heads": width // 64,
        "mlp_ratio": tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        "activation": activation,
    }


def count(tensors: Mapping[str, StoredTensor], pattern: str) -> int:
    """How many layers the tensors have: one more than the greatest index that the pattern's group matches."""
    return 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1)
