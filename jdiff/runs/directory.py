"""What a run's directory holds: its config, its tokenizer, its parameters; and the same of pretrained weights.

A run is config.json, tokenizer.json and checkpoints. Wherever a run is only read, whatever ``interop`` can read stands
for one: to sample, to evaluate, to initialize from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding

from jdiff import storage
from jdiff.config.construct import ConfigError
from jdiff.data import tokenizer as tokenizers
from jdiff.inference.encoder import DualEncoderModel
from jdiff.inference.sampler import DenoisingMse, Sampler
from jdiff.interop import pretrained as pretrained_weights
from jdiff.interop.pretrained import NO_HINTS, Hints, PretrainedModel
from jdiff.runs.origin import check_origin, make_origin, newest_origin
from jdiff.runs.posthoc_ema import posthoc_ema
from jdiff.tasks import AnyTask, make_task
from jdiff.tasks.contrastive import Contrastive
from jdiff.tasks.task import ImageTextTask
from jdiff.tasks.text_to_image import TextToImage
from jdiff.training import checkpoint
from jdiff.training import ema as ema_names
from jdiff.training.masks import merge

CONFIG, DATA, TOKENIZER, CHECKPOINTS = "config.json", "data.json", "tokenizer.json", "checkpoints"
FORMAT_VERSION = 2
MAX_DELETED = 20  # times that a checkpoint may be deleted while it is read
DATA_REMEDY = "delete it, and `jdiff train` writes it again"
VERSION = "format_version"  # the key of config.json beside the sections


@dataclass(frozen=True)
class Model:
    """A model on disk: its task, and its parameters when they are asked for.

    params: (sharding, networks=None) -> parameters by network; ``networks`` names those that are wanted.
    step: how many training steps it has seen, None for pretrained weights.
    notes: how it differs here from the library that it comes from.
    denoising_mse: of ``Sampler``, where `jdiff evaluate` has measured it at this step.
    """

    task: AnyTask
    params: Callable[..., dict[str, Any]]
    step: int | None = None
    notes: tuple[str, ...] = ()
    denoising_mse: DenoisingMse | None = None


def is_run(path: epath.PathLike) -> bool:
    """Whether a directory is a run of jdiff: its config.json says how it is trained."""
    return "train" in (_read_config(path) or {})


def _read_config(path: epath.PathLike) -> dict[str, Any] | None:
    """The content of config.json; what a checkpoint says where it is missing or damaged; None where neither is."""
    path = epath.Path(path)
    problem = None
    try:
        return storage.read_json(
            path / CONFIG, "the run has no checkpoint that could replace it, so delete the directory and start it again"
        )
    except (FileNotFoundError, NotADirectoryError):
        pass
    except storage.DamagedFile as error:
        problem = error
    if (path / CHECKPOINTS).exists() and (newest := newest_origin(path / CHECKPOINTS)) and "config" in newest[1]:
        return {VERSION: FORMAT_VERSION, **newest[1]["config"]}
    if problem is not None and ((path / TOKENIZER).exists() or (path / CHECKPOINTS).exists()):
        raise problem
    return None


def open_model(path: epath.PathLike, hints: Hints = NO_HINTS, ema: str | None = None) -> Model:
    """The model at ``path``: a run, or pretrained weights (a folder, or a safetensors file).

    hints: what the weights' files do not say.   ema: of a run, as of ``restore_params``.
    Raises ``NoCheckpoint`` where there is neither, ``WrongWeights`` where they cannot be read.
    """
    if is_run(path):
        step = newest_intact_step(path, ema)
        params = partial(restore_params, path, ema=ema, step=step)
        mse_curve = None if ema else load_denoising_mse(path, step)
        return Model(saved_task(path), params, step, denoising_mse=mse_curve)
    pretrained = pretrained_weights.find(path, hints)
    if pretrained is None:
        saved_task(path)  # names what is missing
    if ema:
        raise ConfigError(f"the EMA {ema} is asked for, but {path} is not a run of jdiff, and keeps none")
    return pretrained_model(pretrained)


def pretrained_model(pretrained: PretrainedModel) -> Model:
    """Pretrained weights as a model."""
    task = make_task(pretrained.config).with_tokenizer(pretrained.tokenizer)

    def params(sharding: Sharding, networks: Iterable[str] | None = None) -> dict[str, Any]:
        return pretrained.weights(task.param_shapes(), sharding, parts=networks)

    return Model(task, params, notes=pretrained.notes)


def new_folder(destination: str) -> epath.Path:
    """Where something new is to be written. Raises ``ConfigError`` where the folder has contents."""
    path = epath.Path(destination)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{destination} exists already and is not empty; name another directory, or empty it")
    return path


def load_sampler(path: epath.PathLike, hints: Hints = NO_HINTS, ema: str | None = None) -> tuple[Sampler, int | None]:
    """A text-to-image model, and the step it is from; notes on pretrained weights are printed.

    Raises ``ConfigError`` where it is another kind of model.
    """

    def open_sampler() -> tuple[Sampler, Model]:
        model = open_model(path, hints, ema)
        if not isinstance(model.task, TextToImage):
            raise ConfigError(f"{path} is of task '{model.task.name}', which cannot draw; name a text-to-image model")
        return ready(model), model

    sampler, model = _retry(open_sampler)
    for note in model.notes:
        print(f"{path}: {note}")
    return sampler, model.step


def load_encoder(
    path: epath.PathLike, hints: Hints = NO_HINTS, ema: str | None = None
) -> tuple[DualEncoderModel, Model]:
    """A dual encoder, and its model on disk. Raises ``ConfigError`` where it is another kind of model."""

    def open_encoder() -> tuple[DualEncoderModel, Model]:
        model = open_model(path, hints, ema)
        if not isinstance(model.task, Contrastive):
            raise ConfigError(f"{path} is of task '{model.task.name}'; --images needs a dual encoder as --workdir")
        return ready(model), model

    return _retry(open_encoder)


def load(path: epath.PathLike, hints: Hints = NO_HINTS, ema: str | None = None) -> Sampler | DualEncoderModel:
    """A model, ready to use: a ``Sampler`` of a text-to-image model, an ``DualEncoderModel`` of a dual encoder."""
    return _retry(lambda: ready(open_model(path, hints, ema)))


def _retry(read: Callable[[], Any]) -> Any:
    """Read a run, and again from its newest checkpoint where training has deleted the one that was read."""
    for _ in range(MAX_DELETED):
        with contextlib.suppress(checkpoint.MissingCheckpoint):
            return read()
    return read()


def ready(model: Model) -> Any:
    """A model with its parameters read, on the first device."""
    options = {} if model.denoising_mse is None else {"denoising_mse": model.denoising_mse}
    return model.task.model(model.params(first_device()), **options)


def first_device() -> Sharding:
    """Where a model is placed when there is no mesh."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def saved_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The sections of a run's config.json. Raises ``NoCheckpoint``, and ``ConfigError`` at another format."""
    content = _read_config(workdir) or {}
    if "train" not in content:
        raise checkpoint.NoCheckpoint(
            f"{workdir} is neither a run of jdiff, which has a config.json, nor weights that can be read here; train "
            "one, or name another"
        )
    version = content.pop(VERSION, 0)
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{workdir} has format_version {version}, but this jdiff reads {FORMAT_VERSION}; use the release of jdiff "
            "that wrote it"
        )
    return content


def write_config(path: epath.Path, config: dict[str, Any]) -> None:
    """Write config.json, with the version of the run's format."""
    storage.write_json(path / CONFIG, {VERSION: FORMAT_VERSION, **config})


def saved_task(workdir: epath.PathLike) -> AnyTask:
    """The task of a run, with its tokenizer."""
    task = make_task(saved_config(workdir))
    keys = task.config.tokenizer
    layout = {key: keys[key] for key in ("dialect", "pad") if key in keys}
    file = epath.Path(workdir) / TOKENIZER
    task = task.with_tokenizer(tokenizers.load_tokenizer(file, context_length=task.config.context_length, **layout))
    return with_saved_records(task, workdir)


def with_saved_records(task: ImageTextTask, workdir: epath.PathLike) -> ImageTextTask:
    """The task of a run, on the records that the run was started on."""
    file = epath.Path(workdir) / DATA
    if not file.exists():
        return task
    data = storage.read_json(file, DATA_REMEDY, "name")
    return task.with_records(data["name"], data.get("directory", task.config.data.directory))


def checkpoints(workdir: epath.PathLike) -> checkpoint.Checkpoints:
    """The checkpoints of a run, to read; use as a context."""
    return checkpoint.Checkpoints(epath.Path(workdir) / CHECKPOINTS)


def open_checkpoints(
    workdir: epath.PathLike, task: AnyTask, counters: Callable[[], dict[str, Any]] = dict
) -> checkpoint.Checkpoints:
    """The checkpoints of a run, to save as its task says; use as a context.

    counters: gives what else their manifests keep.
    """
    path, train = epath.Path(workdir), task.config.train
    data = storage.read_json(path / DATA, DATA_REMEDY) if (path / DATA).exists() else None
    origin = make_origin(task.config.raw, task.tokenizer, data)
    return checkpoint.Checkpoints(
        path / CHECKPOINTS,
        keep=train.keep,
        keep_every=train.keep_every,
        origin=lambda: origin | counters(),
    )


def snapshots(workdir: epath.PathLike, *, resume_step: int | None = None) -> checkpoint.Snapshots:
    """The EMAs of a run that are kept for good, to read, or with ``resume_step`` to write."""
    return checkpoint.Snapshots(epath.Path(workdir) / "ema_snapshots", resume_step=resume_step)


def restore_params(
    workdir: epath.PathLike,
    sharding: Sharding,
    networks: Iterable[str] | None = None,
    *,
    ema: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """The parameters of a run, by network: the trained ones, as an EMA where the run keeps one, and the frozen ones.

    ema: the name of one that the run keeps, "none" for the parameters themselves, or "width=0.08", of any width,
        which is then fitted to its snapshots; None for its first.
    step: of a checkpoint that is intact; None for the newest one.
    Raises ``NoCheckpoint``, ``DamagedCheckpoint``, and ``ConfigError`` where there is no such EMA, or the config or the
    tokenizer is not what the checkpoint was trained with.
    """
    name, names = _choose_ema(workdir, ema)
    kept_names = [name] if name in names else [other for other in names if other.startswith(ema_names.WIDTH_PREFIX)]
    with checkpoints(workdir) as store:
        item = _item_of(name)
        step = store.newest_intact(item) if step is None else step
        check_run_files(workdir, step, store.origin(step))
        items = store.restore_items(step, sharding, item, "frozen", ema_names=kept_names)
        if name == ema_names.NO_EMA:
            trained = items["params"] or {}
        elif name in names:
            trained = items["ema"][name]
        else:
            with snapshots(workdir) as ema_store:
                trained = posthoc_ema(workdir, ema_store, name, names, step, items["ema"], sharding)
    params = merge(items["frozen"] or {}, trained)
    return params if networks is None else {network: params[network] for network in networks}


def check_run_files(workdir: epath.PathLike, step: int, origin: dict[str, Any]) -> None:
    """Raise ``ConfigError`` where a run's config or tokenizer is not what a checkpoint was trained with."""
    file = epath.Path(workdir) / TOKENIZER
    tokenizer = file.read_bytes() if file.exists() else b""
    check_origin(workdir, step, origin, saved_config(workdir), tokenizer)


def save_denoising_mse(workdir: epath.PathLike, step: int, mse_curve: DenoisingMse) -> None:
    """Keep what ``measure_denoising_mse`` has measured of a run at a step, in denoising_mse.json."""
    content = {"step": step, "logsnr": mse_curve[0], "mse": mse_curve[1]}
    storage.write_json(epath.Path(workdir) / "denoising_mse.json", content)


def load_denoising_mse(workdir: epath.PathLike, step: int | None) -> DenoisingMse | None:
    """What was measured at this step, or None."""
    try:
        content = storage.read_json(epath.Path(workdir) / "denoising_mse.json", "", "step", "logsnr", "mse")
    except (FileNotFoundError, storage.DamagedFile):  # measured again
        return None
    if step is None or content["step"] != step:
        return None
    return tuple(content["logsnr"]), tuple(content["mse"])


def newest_intact_step(workdir: epath.PathLike, ema: str | None) -> int | None:
    """The step of the newest checkpoint whose parameters, or EMAs, are intact; None where there is no checkpoint."""
    name, _ = _choose_ema(workdir, ema)
    with checkpoints(workdir) as store:
        return store.newest_intact(_item_of(name)) if store.latest is not None else None


def _choose_ema(workdir: epath.PathLike, ema: str | None) -> tuple[str, Sequence[str]]:
    """The name of the EMA that is asked for, None for the run's first, and the names of all that the run keeps."""
    names = make_task(saved_config(workdir)).config.ema.config().names
    return ema or (names[0] if names else ema_names.NO_EMA), names


def _item_of(ema: str) -> str:
    """The item of a checkpoint that has an EMA, by its name."""
    return "params" if ema == ema_names.NO_EMA else "ema"


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest checkpoint."""
    with checkpoints(workdir) as store:
        return store.latest
