"""A run's directory to what it holds: its config, its tokenizer, its weights; and so for somebody else's weights.

A run is config.json, tokenizer.json and checkpoints. Whatever ``interop`` can read stands for a run wherever one is
only read: to draw, to measure, to begin from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from jdiff import build
from jdiff.build import Experiment
from jdiff.construct import ConfigError
from jdiff.data import tokenizer as tokenizers
from jdiff.data.tokenizer import Tokenizer
from jdiff.embed import Encoder
from jdiff.interop import foreign
from jdiff.interop.foreign import NO_HINTS, Foreign, Hints
from jdiff.sample import Sampler
from jdiff.training import checkpoint, ema


@dataclass(frozen=True)
class Model:
    """A model on disk: its config and tokenizer, and its weights, when they are asked for.

    weights: (sharding, only=None) -> parameters by network; ``only`` names those that are wanted.
    step: how many training steps it has seen, None where it is somebody else's.
    denoising_mse: of ``Sampler``, where `jdiff evaluate` has measured it at this step.
    """

    setup: Experiment
    tokenizer: Tokenizer
    weights: Callable[..., dict[str, Any]]
    step: int | None = None
    notes: tuple[str, ...] = ()
    denoising_mse: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def is_run(path: epath.PathLike) -> bool:
    """Whether a directory is one of our runs: its config.json says how it is trained."""
    config = epath.Path(path) / "config.json"
    return config.exists() and "train" in json.loads(config.read_text())


def find(path: epath.PathLike, hints: Hints = NO_HINTS, average: str | None = None) -> Model:
    """The model at ``path``: a run, or somebody's weights (a folder, or a safetensors file).

    hints: what somebody's files do not say.   average: of a run, as of ``restore_weights``.
    Raises ``NoCheckpoint`` where there is neither, ``WrongWeights`` where they cannot be read.
    """
    if is_run(path):
        step = latest_step(path)
        weights = partial(restore_weights, path, average=average)
        measured = None if average else _saved_denoising_mse(path, step)
        return Model(saved_experiment(path), saved_tokenizer(path), weights, step, denoising_mse=measured)
    theirs = foreign.find(path, hints)
    if theirs is None:
        saved_experiment(path)  # says what is missing
    if average:
        raise ConfigError(f"the average {average} is asked for, but {path} is no run of ours, and keeps none")
    return of_foreign(theirs)


def of_foreign(theirs: Foreign) -> Model:
    """Somebody's model as one of ours."""
    setup = build.experiment(theirs.config)

    def weights(sharding: Sharding, only: Iterable[str] | None = None) -> dict[str, Any]:
        return theirs.weights(setup.shapes(theirs.tokenizer), sharding, only=only)

    return Model(setup, theirs.tokenizer, weights, notes=theirs.notes)


def new_folder(destination: str) -> epath.Path:
    """Where something new is to be written. Raises ``ConfigError`` where there is something already."""
    path = epath.Path(destination)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{destination} is there already; name a directory that is not, or empty it")
    return path


def drawing(path: epath.PathLike, hints: Hints = NO_HINTS, average: str | None = None) -> tuple[Sampler, int | None]:
    """A text-to-image model, and the step it is from; what was noticed of somebody's weights is printed.

    Raises ``ConfigError`` where it is a dual encoder.
    """
    model = find(path, hints, average)
    if model.setup.train.task != "text_to_image":
        raise ConfigError(f"{path} is a dual encoder, which cannot draw; name a text-to-image model")
    for note in model.notes:
        print(f"{path}: {note}")
    return sampler(model), model.step


def load(path: epath.PathLike, hints: Hints = NO_HINTS, average: str | None = None) -> Sampler | Encoder:
    """A model, ready to use: a ``Sampler`` of a text-to-image model, an ``Encoder`` of a dual encoder."""
    model = find(path, hints, average)
    return encoder(model) if model.setup.train.task == "contrastive" else sampler(model)


def sampler(model: Model) -> Sampler:
    """A text-to-image model with its weights read, on the first device."""
    found = model.setup.sampler(model.tokenizer, model.weights(first_device()))
    return replace(found, denoising_mse=model.denoising_mse)


def encoder(model: Model) -> Encoder:
    """A dual encoder with its weights read, on the first device."""
    network = model.setup.on_one_device(model.setup.encoder(model.tokenizer.vocab_size))
    return Encoder(model.tokenizer, network, model.weights(first_device()))


def first_device() -> Sharding:
    """Where a model is placed that no mesh was asked for."""
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


def with_starts(setup: Experiment, workdir: epath.PathLike) -> tuple[Experiment, dict[str, Model]]:
    """An experiment whose networks are those of the models they begin from, as its config names them, and these models.

    A run that was begun knows its networks itself, and one with a checkpoint begins from no other model.
    """
    if is_run(workdir):
        begun = saved_experiment(workdir).config
        completed = _completed(setup.config, dict.fromkeys(begun, begun))
        return completed, ({} if latest_step(workdir) is not None else _open_starts(completed))
    if setup.train.task == "text_to_image" and "text" not in setup.starts:
        raise ConfigError(
            "config.text.init_from is missing; name the run of the dual encoder whose text tower is to be read"
        )
    config, starts = dict(setup.config), _open_starts(setup)
    for part, model in starts.items():
        if part not in model.setup.config:
            raise ConfigError(f"config.{part}.init_from is {setup.starts[part]}, which has no {part}")
    kept = {part: model.setup.config for part, model in starts.items()}
    for part, more in COMES_WITH.items():
        kept |= {name: kept[part] for name in more if part in kept and name not in kept and name in kept[part]}
    if "autoencoder" in kept and "autoencoder" not in starts:
        starts["autoencoder"] = starts["unet"]
        config["autoencoder"] = {"init_from": setup.starts["unet"], **config.get("autoencoder", {})}
    if _are_a_pair(starts):
        kept["encoder"] = kept["text"]
    return _completed(config, kept), starts


def _completed(config: dict[str, Any], kept: dict[str, dict]) -> Experiment:
    """An experiment whose sections say what those of ``kept``, of the configs by section, say besides."""
    config = dict(config)
    for name, other in kept.items():
        if name not in ("data", "train", "optimizer", "mesh") and name in other:
            own = {} if name == "tokenizer" else config.get(name, {})
            config[name] = {**other[name], **own}
    return build.experiment(config)


def starting_weights(starts: dict[str, Model], sharding: Sharding) -> dict[str, Any]:
    """The weights that a new run begins with, of every network that has a model to begin from.

    Two towers of one model bring their temperature with them.
    """
    found: dict[str, Any] = {}
    for model in {id(model): model for model in starts.values()}.values():
        wanted = [part for part in starts if starts[part] is model]
        if _are_a_pair(starts):
            wanted += [name for name in model.setup.shapes(model.tokenizer) if name.startswith("logit_")]
        found |= model.weights(sharding, only=wanted)
    return found


def _are_a_pair(starts: dict[str, Model]) -> bool:
    """Whether both towers of a dual encoder begin as those of one model."""
    return starts.keys() == {"text", "vision"} and starts["text"] is starts["vision"]


def _open_starts(setup: Experiment) -> dict[str, Model]:
    """The models that networks begin with, by network, each opened once.

    A vision tower's positions are brought to the config's image size.
    """
    seen = setup.starts.get("vision")
    opened = {
        path: find(path, Hints(image_size=setup.image_size if path == seen else None))
        for path in dict.fromkeys(setup.starts.values())
    }
    if seen and (size := opened[seen].setup.image_size) != setup.image_size:
        raise ConfigError(
            f"config.data.image_size is {setup.image_size}, but the vision tower of config.vision.init_from, "
            f"{seen}, is for {size}"
        )
    return {part: opened[path] for part, path in setup.starts.items()}


def saved_tokenizer(workdir: epath.PathLike) -> Tokenizer:
    """The tokenizer of a run."""
    setup = saved_experiment(workdir)
    keys = setup.config.get("tokenizer", {})
    spoken = {key: keys[key] for key in ("dialect", "pad") if key in keys}
    return tokenizers.load(epath.Path(workdir) / "tokenizer.json", context_length=setup.context_length, **spoken)


def checkpoints(workdir: epath.PathLike, *, keep: int | None = None) -> checkpoint.Checkpoints:
    """The checkpoints of a run, to read, or where ``keep`` is said to write; close them after use."""
    return checkpoint.Checkpoints(epath.Path(workdir) / "checkpoints", keep=keep)


def snapshots(workdir: epath.PathLike, *, resume_step: int | None = None) -> checkpoint.Snapshots:
    """The averages of a run that are kept for good, to read, or where ``resume_step`` is said to write."""
    return checkpoint.Snapshots(epath.Path(workdir) / "ema_snapshots", resume_step=resume_step)


def restore_weights(
    workdir: epath.PathLike, sharding: Sharding, only: Iterable[str] | None = None, *, average: str | None = None
) -> dict[str, Any]:
    """The weights of a run, by network: what it learnt, averaged where it keeps an average, and what it read frozen.

    average: the name of one that the run keeps, "none" for the parameters themselves, or "width=0.08", of any width,
        which is then made of its snapshots; its first if not said.
    Raises ``NoCheckpoint``, and ``ConfigError`` where there is no such average.
    """
    names = saved_experiment(workdir).ema_config().names
    average = average or (names[0] if names else ema.NO_EMA)
    kept = [average] if average in names else [name for name in names if name.startswith(ema.WIDTH_PREFIX)]
    with checkpoints(workdir) as store:
        part = "params" if average == ema.NO_EMA else "ema"
        found = store.restore_items(sharding, part, "frozen", ema_names=kept)
        if average == ema.NO_EMA:
            learnt = found["params"] or {}
        elif average in names:
            learnt = found["ema"][average]
        else:
            learnt = _made_average(workdir, average, names, store.latest, found["ema"], sharding)
    weights = {**(found["frozen"] or {}), **learnt}
    return weights if only is None else {part: weights[part] for part in only}


FAR = 0.1  # of a profile, from which on what is made of snapshots is not what was asked for


def _made_average(workdir, average: str, names: Sequence[str], step: int, newest: dict, sharding: Sharding) -> Any:
    """An average of a width that was not kept, of all that were."""
    known = f"{workdir} keeps {', '.join(names) or 'no averages'}"
    width = ema.parse_width(average)
    if width is None:
        raise ConfigError(
            f"there is no average {average}: {known}, and of snapshots {ema.WIDTH_PREFIX}W is made, W between 0 and "
            f"{ema.MAX_WIDTH:.4f}"
        )
    widths = {name: ema.parse_width(name) for name in names if name.startswith(ema.WIDTH_PREFIX)}
    if not widths:
        raise ConfigError(f"{average} can only be made of averages of widths, config.ema.widths; {known}")
    with snapshots(workdir) as store:
        steps = [at for at in store.steps if at < step]
        kept = [(at, name) for at in (*steps, step) for name in widths]
        shares, off = ema.fit_profile([(at, widths[name]) for at, name in kept], step, width)
        if off > FAR:
            raise ConfigError(
                f"{average} is {off:.0%} off when made of {len(steps)} snapshots and the newest checkpoint; take "
                "another width, or a lower config.ema.snapshot_every when training"
            )
        print(f"{average} is made of {len(kept)} averages, its profile {off:.2%} off")
        total = None
        for i, at in enumerate((*steps, step)):
            trees = newest if at == step else store.restore(at, sharding)
            for share, name in zip(shares[i * len(widths) :], widths):
                part = jax.tree.map(lambda leaf, share=share: np.float64(share) * np.asarray(leaf), trees[name])
                total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32), sharding), total)


def save_denoising_mse(workdir: epath.PathLike, step: int, measured: tuple[tuple[float, ...], ...]) -> None:
    """Keep what ``Sampler.unknown`` has measured of a run at a step, in denoising_mse.json."""
    about = {"step": step, "logsnr": measured[0], "variance": measured[1]}
    (epath.Path(workdir) / "denoising_mse.json").write_text(json.dumps(about, indent=2) + "\n")


def _saved_denoising_mse(workdir: epath.PathLike, step: int | None) -> tuple[tuple[float, ...], ...] | None:
    try:
        found = json.loads((epath.Path(workdir) / "denoising_mse.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # one cut short by a kill is measured again
        return None
    if step is None or found.get("step") != step:
        return None
    return tuple(found["logsnr"]), tuple(found["variance"])


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest checkpoint."""
    with checkpoints(workdir) as store:
        return store.latest
