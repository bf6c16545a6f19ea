"""Initialization from other models: fine-tuning a run or pretrained weights, and reading a frozen text tower."""

from __future__ import annotations

from typing import Any

from etils import epath
from jax.sharding import Sharding

from jdiff.config.construct import ConfigError
from jdiff.interop.pretrained import Hints
from jdiff.runs.directory import Model, is_run, latest_step, open_model, saved_config
from jdiff.tasks import make_task
from jdiff.tasks.task import ImageTextTask

# Sections that a network brings with it: a text tower means what its tokenizer says, a denoiser what it was trained to
# predict, and in whose latents.
INHERITED_SECTIONS = {"text": ("tokenizer",), "denoiser": ("diffusion", "sample", "autoencoder")}
OWN_SECTIONS = ("data", "train", "optimizer", "mesh")  # never inherited


def resolve_init_from(task: ImageTextTask, workdir: epath.PathLike) -> tuple[ImageTextTask, dict[str, Model]]:
    """A task whose networks are those of the models that its config initializes them from, and these models by network.

    A run that exists knows its networks itself, and one with a checkpoint needs no other model.
    """
    if is_run(workdir):
        run_config = saved_config(workdir)
        if (name := run_config["train"].get("task")) != task.name:
            raise ConfigError(
                f"{workdir} was started with config.train.task = {name!r}, and now it is {task.name!r}; name another "
                "--workdir"
            )
        run_task = _inherit(task.config.raw, dict.fromkeys(run_config, run_config))
        return run_task, ({} if latest_step(workdir) is not None else _open_models(run_task))
    for name in task.frozen_by_default & {"text"} - task.init_from.keys():
        raise ConfigError(f"config.{name}.init_from is missing; name the dual encoder's run whose text tower is read")
    config, models = dict(task.config.raw), _open_models(task)
    for name, model in models.items():
        if name not in model.task.config.raw:
            raise ConfigError(f"config.{name}.init_from is {task.init_from[name]}, which has no {name}")
    origins = {name: model.task.config.raw for name, model in models.items()}
    for name, sections in INHERITED_SECTIONS.items():
        section_names = [s for s in sections if name in origins and s not in origins and s in origins[name]]
        origins |= {section: origins[name] for section in section_names}
    if "autoencoder" in origins and "autoencoder" not in models:
        models["autoencoder"] = models["denoiser"]
        config["autoencoder"] = {"init_from": task.init_from["denoiser"], **config.get("autoencoder", {})}
    if _are_one_encoder(models):
        origins["encoder"] = origins["text"]
    return _inherit(config, origins), models


def _inherit(config: dict[str, Any], origins: dict[str, dict]) -> ImageTextTask:
    """A task whose sections have what those of ``origins``, a config for each section, set besides."""
    config = dict(config)
    for name, origin in origins.items():
        if name not in OWN_SECTIONS and name in origin:
            keys = {} if name == "tokenizer" else config.get(name, {})
            config[name] = {**origin[name], **keys}
    return make_task(config)


def load_params(models: dict[str, Model], sharding: Sharding) -> dict[str, Any]:
    """The parameters that a new run is initialized with, of every network that has a model to initialize from.

    Two towers of one model bring their temperature with them.
    """
    params: dict[str, Any] = {}
    for model in {id(model): model for model in models.values()}.values():
        names = [name for name in models if models[name] is model]
        if _are_one_encoder(models):
            names += [name for name in model.task.param_shapes() if name.startswith("logit_")]
        params |= model.params(sharding, networks=names)
    return params


def _are_one_encoder(models: dict[str, Model]) -> bool:
    """Whether both towers of a dual encoder are initialized from those of one model."""
    return models.keys() == {"text", "vision"} and models["text"] is models["vision"]


def _open_models(task: ImageTextTask) -> dict[str, Model]:
    """The models that networks are initialized from, by network, each opened once.

    A vision tower's position embeddings are resized to the config's image size.
    """
    vision = task.init_from.get("vision")
    models = {
        path: open_model(path, Hints(image_size=task.image_size if path == vision else None))
        for path in dict.fromkeys(task.init_from.values())
    }
    if vision and (size := models[vision].task.image_size) != task.image_size:
        raise ConfigError(
            f"config.data.image_size is {task.image_size}, but the vision tower of config.vision.init_from, {vision}, "
            f"is for {size}"
        )
    return {name: models[path] for name, path in task.init_from.items()}
