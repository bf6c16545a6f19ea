"""Models of transformers and diffusers with random weights, written to disk in every layout.

Every tensor is random, zero-initialised ones included, so that a wrong one shows in the outputs; matrices preserve
variance, so that deep networks stay of order one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

MERGES = (("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("b", "l"), ("bl", "u"), ("blu", "e</w>"))
START, END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {
    token: i for i, token in enumerate([*_LETTERS, *(f"{a}</w>" for a in _LETTERS), *map("".join, MERGES), START, END])
}
MARKS = {"bos_token_id": VOCABULARY[START], "eos_token_id": VOCABULARY[END]}
# Without "!": where that is the padding, transformers reads it in a prompt as padding, and not as it was trained.
PROMPTS = ("a cat, blue", "two DOGs?")


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with every weight random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                inputs = tensor[0].numel() if tensor.ndim > 1 else 100
                values = tensor.normal_(generator=generator).div_(inputs**0.5)
                if tensor.ndim == 1 and "norm" in name and name.endswith("weight"):
                    values.add_(1)
    return module.eval()


def write_vocabulary(folder: Path) -> None:
    """A vocabulary like CLIP's, of few words, in Hugging Face's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES)]) + "\n")


def clip(text: dict, vision: dict, *, activation: str, projection: int) -> transformers.CLIPModel:
    """A random CLIP of transformers. text, vision: overrides of its defaults."""
    config = transformers.CLIPConfig(
        text_config={"hidden_act": activation, "vocab_size": len(VOCABULARY), **MARKS, **text},
        vision_config={"hidden_act": activation, **vision},
        projection_dim=projection,
    )
    return randomize(transformers.CLIPModel(config))


def openai_layout(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP weights as OpenAI's and open_clip's code names them."""
    words = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "logit_scale": "logit_scale",
    }
    pieces = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
        "text_model.encoder.layers": "transformer.resblocks",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    state = {}
    for name, value in weights.items():
        if name == "text_projection.weight":
            state["text_projection"] = value.T
        elif name == "visual_projection.weight":
            state["visual.proj"] = value.T
        elif "q_proj" in name:
            new = name.replace("self_attn.q_proj.", "attn.in_proj_")
            for old_part, new_part in pieces.items():
                new = new.replace(old_part, new_part)
            state[new] = torch.cat([weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
        elif "k_proj" not in name and "v_proj" not in name:
            new = words.get(name, name)
            for old_part, new_part in pieces.items():
                new = new.replace(old_part, new_part)
            state[new] = value
    return {name: value.detach().contiguous().clone() for name, value in state.items()}


def resnet_weights(layers: tuple[int, ...], width: int, embed_dim: int, image_size: int) -> dict[str, torch.Tensor]:
    """Random weights of CLIP's ResNet tower under OpenAI's names."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, torch.Tensor] = {}

    def normal(name: str, *shape: int) -> None:
        inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 100
        state[f"visual.{name}"] = torch.randn(shape, generator=generator) / inputs**0.5

    def norm(name: str, c: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            normal(f"{name}.{part}", c)
        state[f"visual.{name}.weight"] += 1
        state[f"visual.{name}.running_var"] = 0.5 + torch.rand(c, generator=generator)
        state[f"visual.{name}.num_batches_tracked"] = torch.tensor(7)

    inputs = 3
    for i, features in enumerate((width // 2, width // 2, width), 1):
        normal(f"conv{i}.weight", features, inputs, 3, 3)
        norm(f"bn{i}", features)
        inputs = features
    for stage, blocks in enumerate(layers, 1):
        planes = width * 2 ** (stage - 1)
        for i in range(blocks):
            name = f"layer{stage}.{i}"
            for conv, (features, input_features, size) in enumerate(
                ((planes, inputs, 1), (planes, planes, 3), (4 * planes, planes, 1)), 1
            ):
                normal(f"{name}.conv{conv}.weight", features, input_features, size, size)
                norm(f"{name}.bn{conv}", features)
            if i == 0:
                normal(f"{name}.downsample.0.weight", 4 * planes, inputs, 1, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            inputs = 4 * planes
    normal("attnpool.positional_embedding", (image_size // 32) ** 2 + 1, inputs)
    for part in ("q_proj", "k_proj", "v_proj"):
        normal(f"attnpool.{part}.weight", inputs, inputs)
        normal(f"attnpool.{part}.bias", inputs)
    normal("attnpool.c_proj.weight", embed_dim, inputs)
    normal("attnpool.c_proj.bias", embed_dim)
    return state


def resnet_forward(weights: Mapping[str, torch.Tensor], images: torch.Tensor, heads: int) -> torch.Tensor:
    """CLIP's ResNet tower [clip sec. 2.4] in plain PyTorch functions. images: (b, 3, h, w), normalised."""
    functional = torch.nn.functional
    w = {name.removeprefix("visual."): value for name, value in weights.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts)

    x = images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = functional.relu(norm(functional.conv2d(x, w[f"conv{i}.weight"], stride=stride, padding=1), f"bn{i}"))
    x = functional.avg_pool2d(x, 2)
    for stage in (1, 2, 3, 4):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in w:
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = functional.relu(norm(functional.conv2d(x, w[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = functional.relu(norm(functional.conv2d(y, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2"))
            if stride == 2:
                y = functional.avg_pool2d(y, 2)
            y = norm(functional.conv2d(y, w[f"{name}.conv3.weight"]), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in w:
                x = functional.avg_pool2d(x, 2) if stride == 2 else x
                x = norm(functional.conv2d(x, w[f"{name}.downsample.0.weight"]), f"{name}.downsample.1")
            x, i = functional.relu(x + y), i + 1
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + w["attnpool.positional_embedding"][:, None]
    pooled, _ = functional.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        tokens.shape[-1],
        heads,
        None,
        torch.cat([w[f"attnpool.{part}_proj.bias"] for part in "qkv"]),
        None,
        None,
        False,
        0.0,
        w["attnpool.c_proj.weight"],
        w["attnpool.c_proj.bias"],
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=w["attnpool.q_proj.weight"],
        k_proj_weight=w["attnpool.k_proj.weight"],
        v_proj_weight=w["attnpool.v_proj.weight"],
    )
    return pooled[0]


def siglip(text: dict, vision: dict) -> transformers.SiglipModel:
    """A random SigLIP of transformers."""
    sizes = {"vocab_size": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.SiglipConfig(text_config={**sizes, **text}, vision_config=vision)
    return randomize(transformers.SiglipModel(config))


def write_siglip_tokenizer(folder: Path) -> None:
    """A tokenizer.json with SigLIP's marks and few words."""
    words = ["<unk>", "</s>", *["▁a", "▁cat", "▁blue", "▁two", "▁dog", "s"]]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram([(word, -float(i)) for i, word in enumerate(words)], 0))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    model.add_special_tokens(["</s>"])
    model.save(str(folder / "tokenizer.json"))


def unet(*, second: bool, channels=(32, 64, 64), context: int = 32, **overrides) -> diffusers.UNet2DConditionModel:
    """A random U-Net in the form of Stable Diffusion 1, or of its second version."""
    levels = len(channels)
    settings = {
        "sample_size": 16,
        "block_out_channels": channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        "cross_attention_dim": context,
        "attention_head_dim": tuple(c // 16 for c in channels) if second else 4,
        "use_linear_projection": second,
    }
    return randomize(diffusers.UNet2DConditionModel(**{**settings, **overrides}))


def autoencoder(channels=(32, 64), **overrides) -> diffusers.AutoencoderKL:
    """A random KL autoencoder in Stable Diffusion's form."""
    levels = len(channels)
    settings = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return randomize(diffusers.AutoencoderKL(**{**settings, **overrides}))


def text_encoder(*, second: bool, width: int = 128, layers: int = 3) -> transformers.CLIPTextModel:
    """A random text encoder in Stable Diffusion's form; the second version's is cut before its last layer."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act="gelu" if second else "quick_gelu",
        **MARKS,
    )
    return randomize(transformers.CLIPTextModel(config))


def stable_diffusion(folder: Path, *, second: bool) -> diffusers.StableDiffusionPipeline:
    """A tiny random Stable Diffusion, written by diffusers."""
    tokenizer = transformers.CLIPTokenizer(
        vocab=VOCABULARY, merges=list(MERGES), model_max_length=77, **({"pad_token": "!"} if second else {})
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if second else "epsilon",
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(second=second),
        tokenizer=tokenizer,
        unet=unet(second=second, context=128, sample_size=8),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def save(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file with the library that defines it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous().clone() for name, value in weights.items()}, path)
