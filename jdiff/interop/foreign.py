"""Somebody else's model, told apart by what lies at its path and described as one of our runs is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import tokenizers
from etils import epath
from jax.sharding import Sharding

from jdiff.data import tokenizer as jdiff_tokenizers
from jdiff.data.tokenizer import Tokenizer
from jdiff.interop import clip_weights, diffusers_weights, positions, tensors
from jdiff.interop.tensors import File, WrongWeights, scan, scan_folder
from jdiff.models.autoencoder import Autoencoder

VOCABULARIES = ("tokenizer.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")


@dataclass(frozen=True)
class Hints:
    """What some files do not say, from whoever has them.

    activation: of a dual encoder's towers.   prediction_type: "eps" or "v".
    tokenizer: a file with the vocabulary, or its folder.
    image_size: side in pixels to use a vision tower at, if not the one it was trained at.
    """

    activation: str | None = None
    prediction_type: str | None = None
    tokenizer: epath.PathLike | None = None
    image_size: int | None = None


NO_HINTS = Hints()


@dataclass(frozen=True)
class Foreign:
    """config: sections of ours, as in a run's config.json.   files: where the weights of every part wait.

    notes: sentences on what is done otherwise here than where the model comes from.
    """

    source: epath.Path
    config: dict[str, Any]
    tokenizer: Tokenizer
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    def weights(self, like: Any, sharding: Sharding, *, only: Iterable[str] | None = None) -> dict[str, Any]:
        """Parameters, placed by ``sharding``; see ``tensors.read``. Raises ``WrongWeights``."""
        return tensors.read(like, self.files, sharding, source=self.source, only=only)


def find(path: epath.PathLike, hints: Hints = NO_HINTS) -> Foreign | None:
    """Describe the model at ``path``: a folder or a safetensors file; None where there is none.

    Raises ``WrongWeights`` at one that cannot be read here, with the reason.
    """
    path = epath.Path(path)
    tensors.refuse_pickle(path)
    try:
        if path.is_dir():
            if (path / "model_index.json").exists():
                return _diffusers(path, hints)
            if (path / "open_clip_config.json").exists():
                stored = scan_folder(path, ("open_clip_model", "open_clip_pytorch_model"))
                given = _json(path / "open_clip_config.json")
                return _openai(path, clip_weights.open_clip_config(given, stored), stored, "open_clip", hints)
            if (path / "config.json").exists() and "model_type" in (given := _json(path / "config.json")):
                return _hugging_face(path, given, hints)
            return None
        if path.suffix == ".safetensors":
            return _single_file(path, hints)
    except WrongWeights as error:
        raise WrongWeights(str(error) if str(path) in str(error) else f"{path} cannot be loaded: {error}") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise WrongWeights(f"{path} cannot be loaded: a config file of it is broken, at {error}") from error
    return None


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise WrongWeights(f"there is no {path}")
    return json.loads(path.read_text())


def _config(task: str, sections: dict[str, Any], *, dialect: str) -> dict[str, Any]:
    """A run's config of somebody's weights: no training was done, and what it would need is some other config's."""
    train = {"task": task, "batch_size": 1, "steps": 1}
    return {**sections, "tokenizer": {**sections["tokenizer"], "dialect": dialect}, "train": train}


def _vocabulary(path: epath.Path, hints: Hints) -> epath.Path:
    """The file of CLIP's vocabulary: as hinted, or beside the weights."""
    given = epath.Path(hints.tokenizer) if hints.tokenizer else path
    if given.is_file():
        return given
    for name in VOCABULARIES:
        if (given / name).exists():
            return given / name
    raise WrongWeights(
        f"there is no vocabulary in {given} ({', '.join(VOCABULARIES)}); name one of these files with --tokenizer"
    )


def _clip_tokenizer(path: epath.Path, hints: Hints, config: dict[str, Any]) -> Tokenizer:
    """CLIP's tokenizer; the padding token that a Hugging Face folder names goes into ``config``."""
    vocabulary = _vocabulary(path, hints)
    merges, numbers = jdiff_tokenizers.clip_merges(vocabulary)
    if config["tokenizer"]["dialect"] == "hugging_face" and numbers is not None:
        named = _pad_token(vocabulary.parent)
        config["tokenizer"] |= {} if named is None else {"pad": numbers[named]}
    return jdiff_tokenizers.clip(merges, numbers, **config["tokenizer"])


def _pad_token(path: epath.Path) -> str | None:
    """The padding token that a Hugging Face tokenizer's folder names."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        given = _json(path / name).get("pad_token") if (path / name).exists() else None
        if given is not None:
            return given["content"] if isinstance(given, dict) else given
    return None


def _hugging_face(path: epath.Path, given: dict[str, Any], hints: Hints) -> Foreign:
    kind = given["model_type"]
    if kind not in ("clip", "siglip"):
        raise WrongWeights(f"its config.json has model_type '{kind}'; known are clip and siglip")
    preprocessor = path / "preprocessor_config.json"
    sections = clip_weights.hugging_face_config(given, _json(preprocessor) if preprocessor.exists() else {})
    config = _config("contrastive", sections, dialect="hugging_face" if kind == "clip" else "siglip")
    if kind == "clip":
        tokenizer = _clip_tokenizer(path, hints, config)
    else:
        source = epath.Path(hints.tokenizer or path)
        source = source if source.is_file() else source / "tokenizer.json"
        if not source.exists():
            raise WrongWeights(f"there is no {source}; name a tokenizer.json with --tokenizer")
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(source.read_text()), **config["tokenizer"])
    rules = clip_weights.HUGGING_FACE if kind == "clip" else clip_weights.SIGLIP
    return _encoder(path, config, tokenizer, scan_folder(path, ("model",)), rules, hints, antialias=False)


def _openai(path: epath.Path, sections: dict[str, Any], stored, dialect: str, hints: Hints) -> Foreign:
    config = _config("contrastive", sections, dialect=dialect)
    tokenizer = _clip_tokenizer(path if path.is_dir() else path.parent, hints, config)
    resnet = config["vision"].get("kind") == "resnet"
    rules = clip_weights.OPENAI_RESNET if resnet else clip_weights.OPENAI
    return _encoder(path, config, tokenizer, stored, rules, hints, antialias=True)


def _encoder(path, config, tokenizer, stored, rules, hints: Hints, *, antialias: bool) -> Foreign:
    """A dual encoder, at another image size if hinted, to which each family brings its positions in its own way."""
    resized = {}
    if hints.image_size and hints.image_size != config["data"]["image_size"]:
        if config["vision"].get("kind") == "resnet":
            raise WrongWeights("a ResNet tower is used at the size it was trained at; leave out --image_size")
        config["data"]["image_size"] = hints.image_size
        classed = config["vision"].get("pooling", "class") == "class"
        resized["vision/positions"] = partial(positions.resize, first=int(classed), antialias=antialias)
    parts = ("text", "vision", "logit_scale", "logit_bias")
    file = File(stored, parts, rules, ignored=clip_weights.IGNORED, resized=resized)
    return Foreign(path, config, tokenizer, (file,))


def _single_file(path: epath.Path, hints: Hints) -> Foreign:
    stored = scan(path)
    if any(name.startswith(diffusers_weights.UNET_IN_FILE) for name in stored):
        return _latent_diffusion(path, stored, hints)
    if any(name.startswith("visual.") for name in stored):
        if hints.activation is None:
            raise WrongWeights(
                "its towers' activation is not in the file; say --activation=quick_gelu (OpenAI's own weights, and "
                "those that open_clip calls -quickgelu) or --activation=gelu (LAION's)"
            )
        return _openai(path, clip_weights.openai_config(stored, activation=hints.activation), stored, "openai", hints)
    if any(name.startswith(("text_model.", "vision_model.")) for name in stored):
        raise WrongWeights("it is in Hugging Face's layout; name its folder, where config.json lies")
    raise WrongWeights("its tensors are those of no model that is known here: a CLIP, or a Stable Diffusion 1 or 2")


def _diffusers(path: epath.Path, hints: Hints) -> Foreign:
    kind = _json(path / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise WrongWeights(f"its model_index.json is of a {kind}; known is StableDiffusionPipeline")
    unet = _json(path / "unet" / "config.json")
    vae = _json(path / "vae" / "config.json")
    text = _json(path / "text_encoder" / "config.json")
    scheduler = _json(path / "scheduler" / "scheduler_config.json")
    diffusion, sample = diffusers_weights.scheduler_config(scheduler)
    sections = {
        "tokenizer": {"context_length": text.get("max_position_embeddings", 77)},
        "text": clip_weights.hugging_face_text(text) | {"embed_dim": 0},
        "unet": diffusers_weights.unet_config(unet),
        "autoencoder": diffusers_weights.autoencoder_config(vae),
        "diffusion": diffusion,
        "sample": sample,
    }
    sections["data"] = {"image_size": unet.get("sample_size", 64) * Autoencoder(**sections["autoencoder"]).factor}
    config = _config("text_to_image", sections, dialect="hugging_face")
    tokenizer = _clip_tokenizer(path / "tokenizer", hints, config)
    stored = {
        "unet": scan_folder(path / "unet", ("diffusion_pytorch_model",)),
        "autoencoder": scan_folder(path / "vae", ("diffusion_pytorch_model",)),
        "text": scan_folder(path / "text_encoder", ("model",)),
    }
    # Files have this prefix, but the newest transformers writes them without it.
    prefixed = any(name.startswith("text_model.") for name in stored["text"])
    strip = () if prefixed else ((r"^text_model\.", ""),)
    old = any(".attentions.0.query." in name for name in stored["autoencoder"])
    levels = len(sections["unet"]["channels"]), len(sections["autoencoder"]["channels"])
    files = (
        File(stored["unet"], ("unet",), diffusers_weights.diffusers_unet(levels[0])),
        File(stored["autoencoder"], ("autoencoder",), diffusers_weights.diffusers_autoencoder(levels[1], old=old)),
        File(stored["text"], ("text",), (*clip_weights.HUGGING_FACE, *strip), ignored=clip_weights.IGNORED),
    )
    notes = ()
    if (name := scheduler.get("_class_name")) != "DDIMScheduler":
        notes = (f"its scheduler is {name}; here it is sampled by DDIM on the same timesteps",)
    return Foreign(path, config, tokenizer, files, notes)


def _latent_diffusion(path: epath.Path, stored, hints: Hints) -> Foreign:
    sections = diffusers_weights.single_file_config(stored, hints.prediction_type)
    second = "clip_skip" in sections["text"]
    # The first was trained with ends as padding, the second with zeros.
    config = _config("text_to_image", sections, dialect="open_clip" if second else "hugging_face")
    tokenizer = _clip_tokenizer(path.parent, hints, config)
    prefixes = {
        "unet": diffusers_weights.UNET_IN_FILE,
        "autoencoder": diffusers_weights.VAE_IN_FILE,
        "text": diffusers_weights.TEXT_2_IN_FILE if second else diffusers_weights.TEXT_1_IN_FILE,
    }
    rules = {
        "unet": diffusers_weights.single_file_unet(sections["unet"]),
        "autoencoder": diffusers_weights.SINGLE_FILE_AUTOENCODER,
        "text": clip_weights.OPENAI if second else clip_weights.HUGGING_FACE,
    }
    files = tuple(
        File(stored, (part,), rules[part], prefix=prefixes[part], ignored=diffusers_weights.IGNORED) for part in rules
    )
    return Foreign(path, config, tokenizer, files)
