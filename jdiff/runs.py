"""A run's directory to what it holds: its config, its tokenizer, its weights; and so for somebody else's weights.

A run is config.json, tokenizer.json and checkpoints. Whatever ``interop`` can read stands for a run wherever one is
only read: to draw, to measure, to begin from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding

from jdiff import build
from jdiff.build import Experiment
from jdiff.construct import ConfigError
from jdiff.data import tokenizer as tokenizers
from jdiff.data.tokenizer import Tokenizer
from jdiff.embed import Encoder
from jdiff.interop import foreign
from jdiff.interop.foreign import Foreign, Hints
from jdiff.sample import Sampler
from jdiff.training import checkpoint


@dataclass(frozen=True)
class Model:
    """A model on disk: its config and tokenizer, and its weights, when they are asked for.

    weights: (sharding, only=None) -> parameters by network; ``only`` names those that are wanted.
    step: how many training steps it has seen, None where it is somebody else's.
    """

    setup: Experiment
    tokenizer: Tokenizer
    weights: Callable[..., dict[str, Any]]
    step: int | None = None
    notes: tuple[str, ...] = ()


def is_run(path: epath.PathLike) -> bool:
    """Whether a directory is one of our runs: its config.json says how it is trained."""
    config = epath.Path(path) / "config.json"
    return config.exists() and "train" in json.loads(config.read_text())


def find(path: epath.PathLike, hints: Hints | None = None) -> Model:
    """The model at ``path``: a run, or somebody's weights (a folder, or a safetensors file).

    hints: what somebody's files do not say.
    Raises ``NoCheckpoint`` where there is neither, ``WrongWeights`` where they cannot be read.
    """
    if is_run(path):
        return Model(saved_experiment(path), saved_tokenizer(path), partial(restore_weights, path), latest_step(path))
    theirs = foreign.find(path, hints or Hints())
    if theirs is None:
        saved_experiment(path)  # says what is missing
    return of_foreign(theirs)


def of_foreign(theirs: Foreign) -> Model:
    """Somebody's model as one of ours."""
    setup = build.experiment(theirs.config)

    def weights(sharding: Sharding, only: Iterable[str] | None = None) -> dict[str, Any]:
        return theirs.weights(setup.shapes(theirs.tokenizer), sharding, only=only)

    return Model(setup, theirs.tokenizer, weights, notes=theirs.notes)


def load(path: epath.PathLike, hints: Hints | None = None) -> Sampler | Encoder:
    """A model, ready to use: a ``Sampler`` of a text-to-image model, an ``Encoder`` of a dual encoder."""
    model = find(path, hints)
    return encoder(model) if model.setup.train.objective == "contrastive" else sampler(model)


def sampler(model: Model) -> Sampler:
    """A text-to-image model with its weights read, on the first device."""
    return model.setup.sampler(model.tokenizer, model.weights(_first_device()))


def encoder(model: Model) -> Encoder:
    """A dual encoder with its weights read, on the first device."""
    network = model.setup.encoder(model.tokenizer.vocab_size)
    return Encoder(model.tokenizer, network, model.weights(_first_device()))


def _first_device() -> Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def saved_experiment(workdir: epath.PathLike) -> Experiment:
    """The experiment of a run."""
    if not is_run(workdir):
        raise checkpoint.NoCheckpoint(
            f"{workdir} is neither a run, which has a config.json of ours, nor weights that can be read here; "
            "train one, or name another"
        )
    return build.experiment(json.loads((epath.Path(workdir) / "config.json").read_text()))


# What comes with a network, besides its own section: a text tower means what its tokenizer says, a U-Net what it was
# trained to predict, and in whose latents.
COMES_WITH = {"text": ("tokenizer",), "unet": ("diffusion", "sample", "autoencoder")}


def with_starts(setup: Experiment, workdir: epath.PathLike) -> Experiment:
    """An experiment whose networks are those of the models they begin from, as its config names them.

    A run that was begun knows them itself; a new one asks config.text.run and the like.
    """
    if is_run(workdir):
        begun = saved_experiment(workdir).config
        return _completed(setup, dict.fromkeys(begun, begun))
    if setup.train.objective == "diffusion" and "text" not in setup.starts:
        raise ConfigError("config.text.run is missing; name the run of the dual encoder whose text tower is to be read")
    kept = {part: _start(setup, part).setup.config for part in setup.starts}
    for part, config in kept.items():
        if part not in config:
            raise ConfigError(f"config.{part}.run is {setup.starts[part]}, which has no {part}")
    for part, more in COMES_WITH.items():
        kept |= {name: kept[part] for name in more if part in kept and name not in kept and name in kept[part]}
    if _is_pair(setup):
        kept["encoder"] = kept["text"]
    completed = _completed(setup, kept)
    if "unet" in kept and "autoencoder" in completed.config and "autoencoder" not in setup.starts:
        section = completed.config["autoencoder"] | {"run": setup.starts["unet"]}
        completed = build.experiment(completed.config | {"autoencoder": section})
    return completed


def _completed(setup: Experiment, kept: dict[str, dict]) -> Experiment:
    """An experiment whose sections say what those of ``kept``, of the configs by section, say besides."""
    config = dict(setup.config)
    for name, other in kept.items():
        if name not in ("data", "train", "optimizer", "mesh") and name in other:
            own = {} if name == "tokenizer" else config.get(name, {})
            config[name] = {**other[name], **own}
    return build.experiment(config)


def starting_weights(setup: Experiment, sharding: Sharding) -> dict[str, Any]:
    """The weights that a new run begins with, of every network that its config names a model for.

    Two towers of one model bring their temperature with them.
    """
    found = {part: _start(setup, part).weights(sharding, only=(part,))[part] for part in setup.starts}
    if _is_pair(setup):
        model = _start(setup, "text")
        scalars = [name for name in model.setup.shapes(model.tokenizer) if name.startswith("logit_")]
        found |= model.weights(sharding, only=scalars)
    return found


def _is_pair(setup: Experiment) -> bool:
    """Whether both towers of a dual encoder begin as those of one model."""
    return setup.train.objective == "contrastive" and len(setup.starts) == 2 and len({*setup.starts.values()}) == 1


def starting_tokenizer(setup: Experiment) -> Tokenizer | None:
    """The tokenizer of the text tower that a new run begins with."""
    return _start(setup, "text").tokenizer if "text" in setup.starts else None


def _start(setup: Experiment, part: str) -> Model:
    """The model that a network begins with; a vision tower's positions are brought to the config's image size."""
    path = setup.starts[part]
    model = find(path, Hints(image_size=setup.image_size) if part == "vision" else None)
    if part == "vision" and model.setup.image_size != setup.image_size:
        raise ConfigError(
            f"config.data.image_size is {setup.image_size}, but the vision tower of config.vision.run, {path}, is for "
            f"{model.setup.image_size}"
        )
    return model


def saved_tokenizer(workdir: epath.PathLike) -> Tokenizer:
    """The tokenizer of a run."""
    keys = saved_experiment(workdir).config.get("tokenizer", {})
    spoken = {key: keys[key] for key in ("dialect", "pad") if key in keys}
    context_length = saved_experiment(workdir).context_length
    return tokenizers.load(epath.Path(workdir) / "tokenizer.json", context_length=context_length, **spoken)


def checkpoints(workdir: epath.PathLike, *, keep: int | None = None) -> checkpoint.Checkpoints:
    """The checkpoints of a run, to read, or where ``keep`` is said to write; close them after use."""
    return checkpoint.Checkpoints(epath.Path(workdir) / "checkpoints", keep=keep)


def restore_weights(workdir: epath.PathLike, sharding: Sharding, only: Iterable[str] | None = None) -> dict[str, Any]:
    """The weights of a run, by network: what it learnt, averaged where it keeps an average, and what it read frozen.

    Raises ``NoCheckpoint``.
    """
    saved_experiment(workdir)
    with checkpoints(workdir) as store:
        found = store.restore_parts(sharding, "ema", "frozen")
        learnt = found["ema"] or store.restore_parts(sharding, "params")["params"]
    weights = {**(found["frozen"] or {}), **(learnt or {})}
    return weights if only is None else {part: weights[part] for part in only}


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest checkpoint."""
    with checkpoints(workdir) as store:
        return store.latest
