"""Pretrained models in third-party formats: recognized by their files, described by a jdiff config."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from etils import epath
from jax.sharding import Sharding

from jdiff.data import tokenizer as jdiff_tokenizers
from jdiff.data.tokenizer import Tokenizer
from jdiff.interop import clip_weights, diffusers_configs, diffusers_weights, positions
from jdiff.interop.safetensors_files import StoredTensor, WrongWeights, refuse_pickle, scan, scan_folder
from jdiff.interop.tensors import WeightFile, read_params
from jdiff.models.autoencoder import Autoencoder
from jdiff.text import read_text

VOCABULARIES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")


@dataclass(frozen=True)
class Hints:
    """What some weight files do not contain, passed by the user; each is a flag of the same name.

    activation: of a dual encoder's towers.   prediction_type: "eps" or "v".
    tokenizer: a file with the vocabulary, or its folder.
    image_size: side in pixels at which to use a vision tower; default the one it was trained at.
    """

    activation: str | None = None
    prediction_type: str | None = None
    tokenizer: epath.PathLike | None = None
    image_size: int | None = None


NO_HINTS = Hints()


@dataclass(frozen=True)
class PretrainedModel:
    """A third-party model: its config and tokenizer, and the files of its weights, none of which is read yet.

    source: its path.   config: sections, as in a run's config.json.
    notes: sentences on where sampling differs from the settings that the model was published with.
    """

    source: epath.Path
    config: dict[str, Any]
    tokenizer: Tokenizer
    files: tuple[WeightFile, ...]
    notes: tuple[str, ...] = ()

    def weights(self, target: Any, sharding: Sharding, *, parts: Iterable[str] | None = None) -> dict[str, Any]:
        """Read the parameters, placed by ``sharding``; see ``tensors.read_params``. Raises ``WrongWeights``."""
        return read_params(target, self.files, sharding, source=self.source, parts=parts)


def find(path: epath.PathLike, hints: Hints = NO_HINTS) -> PretrainedModel | None:
    """Recognize the model at ``path``, a folder or a safetensors file; None where there is none.

    Raises ``WrongWeights`` for a model that is not supported, with the reason.
    """
    path = epath.Path(path)
    refuse_pickle(path)
    try:
        if path.is_dir():
            if (path / "model_index.json").exists():
                return _diffusers(path, hints)
            if (path / "open_clip_config.json").exists():
                tensors = scan_folder(path, ("open_clip_model", "open_clip_pytorch_model"))
                sections = clip_weights.open_clip_config(_json(path / "open_clip_config.json"), tensors)
                return _openai(path, sections, tensors, "open_clip", hints)
            if (path / "config.json").exists() and "model_type" in (config := _json(path / "config.json")):
                return _hugging_face(path, config, hints)
            return None
        if path.suffix == ".safetensors":
            return _single_file(path, hints)
    except WrongWeights as error:
        raise WrongWeights(str(error) if str(path) in str(error) else f"{path} cannot be loaded: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, ValueError, RecursionError) as error:
        raise WrongWeights(
            f"{path} cannot be loaded: a value of its config or tokenizer files cannot be used: {error}"
        ) from error
    return None


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise WrongWeights(f"file {path} does not exist")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WrongWeights(f"{path} is not JSON: {error}; copy the file again") from error
    if not isinstance(content, dict):
        raise WrongWeights(f"{path} has a {type(content).__name__}; expected a JSON object")
    return content


def _config(task: str, sections: dict[str, Any], *, dialect: str) -> dict[str, Any]:
    """A run's config for pretrained weights. Its train section holds the required keys only: nothing was trained."""
    train = {"task": task, "batch_size": 1, "steps": 1}
    return {**sections, "tokenizer": {**sections["tokenizer"], "dialect": dialect}, "train": train}


def _vocabulary(path: epath.Path, hints: Hints) -> epath.Path:
    """The file of CLIP's vocabulary: the one of --tokenizer, or in the folder ``path``."""
    location = epath.Path(hints.tokenizer) if hints.tokenizer else path
    if location.is_file():
        return location
    for name in VOCABULARIES:
        if (location / name).exists():
            return location / name
    raise WrongWeights(
        f"{location} has no vocabulary, which is one of {', '.join(VOCABULARIES)}; pass its path with --tokenizer"
    )


def _clip_tokenizer(path: epath.Path, hints: Hints, config: dict[str, Any]) -> Tokenizer:
    """CLIP's tokenizer. Adds the padding token of a Hugging Face folder to ``config``."""
    vocabulary = _vocabulary(path, hints)
    merges, numbers = jdiff_tokenizers.clip_merges(vocabulary)
    added_tokens = jdiff_tokenizers.added_tokens(vocabulary)
    if config["tokenizer"]["dialect"] == "hugging_face" and numbers is not None:
        all_numbers = numbers | {token: number for number, token in added_tokens.items()}
        pad_token = _pad_token(vocabulary.parent)
        if pad_token is not None and pad_token not in all_numbers:
            raise WrongWeights(f"its padding token is '{pad_token}', which is not in {vocabulary}")
        config["tokenizer"] |= {} if pad_token is None else {"pad": all_numbers[pad_token]}
    return jdiff_tokenizers.clip(merges, numbers, added_tokens=added_tokens, **config["tokenizer"])


def _pad_token(path: epath.Path) -> str | None:
    """The padding token in the config files of a Hugging Face tokenizer, or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        pad_token = _json(path / name).get("pad_token") if (path / name).exists() else None
        if pad_token is not None:
            return pad_token["content"] if isinstance(pad_token, dict) else pad_token
    return None


def _hugging_face(path: epath.Path, model_config: dict[str, Any], hints: Hints) -> PretrainedModel:
    kind = model_config["model_type"]
    if kind not in ("clip", "siglip"):
        raise WrongWeights(f"its config.json has model_type '{kind}'; supported are clip and siglip")
    preprocessor = path / "preprocessor_config.json"
    sections = clip_weights.hugging_face_config(model_config, _json(preprocessor) if preprocessor.exists() else {})
    config = _config("contrastive", sections, dialect="hugging_face" if kind == "clip" else "siglip")
    if kind == "clip":
        tokenizer = _clip_tokenizer(path, hints, config)
    else:
        source = epath.Path(hints.tokenizer or path)
        source = source if source.is_file() else source / "tokenizer.json"
        if not source.exists():
            raise WrongWeights(f"file {source} does not exist; pass the path of a tokenizer.json with --tokenizer")
        model = jdiff_tokenizers.read_model(source)
        if {"<bos>", "<eos>"} <= model.get_vocab().keys():
            raise WrongWeights(
                f"{source} has <bos> and <eos>, Gemma's special tokens, as SigLIP 2 has; supported are those of SigLIP"
            )
        tokenizer = Tokenizer(model, **config["tokenizer"])
    rules = clip_weights.HUGGING_FACE if kind == "clip" else clip_weights.SIGLIP
    return _encoder(path, config, tokenizer, scan_folder(path, ("model",)), rules, hints, antialias=False)


def _openai(
    path: epath.Path, sections: dict[str, Any], tensors: Mapping[str, StoredTensor], dialect: str, hints: Hints
) -> PretrainedModel:
    config = _config("contrastive", sections, dialect=dialect)
    tokenizer = _clip_tokenizer(path if path.is_dir() else path.parent, hints, config)
    resnet = config["vision"].get("kind") == "resnet"
    rules = clip_weights.OPENAI_RESNET if resnet else clip_weights.OPENAI
    return _encoder(path, config, tokenizer, tensors, rules, hints, antialias=True)


def _encoder(path, config, tokenizer, tensors, rules, hints: Hints, *, antialias: bool) -> PretrainedModel:
    """A dual encoder. antialias: how its positions are resized to another image size."""
    resizers = {}
    if hints.image_size and hints.image_size != config["data"]["image_size"]:
        if config["vision"].get("kind") == "resnet":
            raise WrongWeights(
                "it has a ResNet tower, which supports only the size it was trained at; omit --image_size"
            )
        config["data"]["image_size"] = hints.image_size
        has_class_token = config["vision"].get("pooling", "class") == "class"
        resizers["vision/positions"] = partial(
            positions.resize, num_prefix_tokens=int(has_class_token), antialias=antialias
        )
    parts = ("text", "vision", "logit_scale", "logit_bias")
    file = WeightFile(tensors, parts, rules, unused_pattern=clip_weights.UNUSED_TENSORS, resizers=resizers)
    return PretrainedModel(path, config, tokenizer, (file,))


def _single_file(path: epath.Path, hints: Hints) -> PretrainedModel:
    tensors = diffusers_weights.with_text_model(scan(path))
    if any(name.startswith(diffusers_weights.UNET_IN_FILE) for name in tensors):
        return _latent_diffusion(path, tensors, hints)
    if any(name.startswith("visual.") for name in tensors):
        if hints.activation is None:
            raise WrongWeights(
                "the file does not contain the activation of its towers; pass --activation=quick_gelu (OpenAI's "
                "weights, and those that open_clip calls -quickgelu) or --activation=gelu (LAION's)"
            )
        return _openai(path, clip_weights.openai_config(tensors, activation=hints.activation), tensors, "openai", hints)
    if any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        raise WrongWeights(
            "it is in Hugging Face's layout; pass its folder, which has the config.json, and not the file"
        )
    raise WrongWeights("its tensors belong to no supported model, which are CLIP, and Stable Diffusion 1 and 2")


def _diffusers(path: epath.Path, hints: Hints) -> PretrainedModel:
    kind = _json(path / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise WrongWeights(f"its model_index.json has _class_name {kind}; supported is StableDiffusionPipeline")
    unet = _json(path / "unet" / "config.json")
    vae = _json(path / "vae" / "config.json")
    text = _json(path / "text_encoder" / "config.json")
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    diffusion, sample = diffusers_configs.scheduler_config(scheduler)
    sections = {
        "tokenizer": {"context_length": text.get("max_position_embeddings", 77)},
        "text": clip_weights.hugging_face_text(text) | {"embed_dim": 0},
        "denoiser": diffusers_configs.unet_config(unet),
        "autoencoder": diffusers_configs.autoencoder_config(vae),
        "diffusion": diffusion,
        "sample": sample,
    }
    factor = Autoencoder(**sections["autoencoder"]).factor
    sections["data"] = {"image_size": diffusers_configs.unet_sample_size(unet) * factor}
    config = _config("text_to_image", sections, dialect="hugging_face")
    tokenizer = _clip_tokenizer(path / "tokenizer", hints, config)
    unet_tensors = scan_folder(path / "unet", ("diffusion_pytorch_model",))
    vae_tensors = scan_folder(path / "vae", ("diffusion_pytorch_model",))
    text_tensors = scan_folder(path / "text_encoder", ("model",))
    # Most files have this prefix; the newest transformers writes them without it.
    has_prefix = any(name.startswith("text_model.") for name in text_tensors)
    strip = () if has_prefix else ((r"^text_model\.", ""),)
    old = any(".attentions.0.query." in name for name in vae_tensors)
    unet_rules = diffusers_weights.diffusers_unet(len(sections["denoiser"]["channels"]))
    vae_rules = diffusers_weights.diffusers_autoencoder(len(sections["autoencoder"]["channels"]), old=old)
    text_rules = (*clip_weights.HUGGING_FACE, *strip)
    files = (
        WeightFile(unet_tensors, ("denoiser",), unet_rules),
        WeightFile(vae_tensors, ("autoencoder",), vae_rules),
        WeightFile(text_tensors, ("text",), text_rules, unused_pattern=clip_weights.UNUSED_TENSORS),
    )
    notes = ()
    if (name := scheduler.get("_class_name")) != "DDIMScheduler":
        notes = (f"its scheduler is {name}; jdiff samples by DDIM on the same timesteps",)
    return PretrainedModel(path, config, tokenizer, files, notes)


def _latent_diffusion(path: epath.Path, tensors: Mapping[str, StoredTensor], hints: Hints) -> PretrainedModel:
    sections = diffusers_weights.single_file_config(tensors, hints.prediction_type)
    version_2 = "clip_skip" in sections["text"]
    # Version 1 was trained with end-of-text tokens as padding, version 2 with zeros.
    config = _config("text_to_image", sections, dialect="open_clip" if version_2 else "hugging_face")
    tokenizer = _clip_tokenizer(path.parent, hints, config)
    prefixes = {
        "denoiser": diffusers_weights.UNET_IN_FILE,
        "autoencoder": diffusers_weights.VAE_IN_FILE,
        "text": diffusers_weights.TEXT_2_IN_FILE if version_2 else diffusers_weights.TEXT_1_IN_FILE,
    }
    rules = {
        "denoiser": diffusers_weights.single_file_unet(sections["denoiser"]),
        "autoencoder": diffusers_weights.SINGLE_FILE_AUTOENCODER,
        "text": clip_weights.OPENAI if version_2 else clip_weights.HUGGING_FACE,
    }
    unused_pattern = diffusers_weights.UNUSED_TENSORS
    files = tuple(
        WeightFile(tensors, (part,), rules[part], prefix=prefixes[part], unused_pattern=unused_pattern)
        for part in rules
    )
    return PretrainedModel(path, config, tokenizer, files)
