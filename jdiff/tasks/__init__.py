"""What is trained: one task for each kind of model, chosen by config.train.task."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from jdiff.config.construct import ConfigError, choose
from jdiff.config.keys import plain
from jdiff.config.sections import parse
from jdiff.tasks.contrastive import Contrastive
from jdiff.tasks.points import Points
from jdiff.tasks.task import ImageTextTask
from jdiff.tasks.text_to_image import TextToImage

TASKS = {"contrastive": Contrastive, "text_to_image": TextToImage, "points": Points}
AnyTask = ImageTextTask | Points


def make_task(config: ConfigDict | Mapping) -> AnyTask:
    """The task of a config file's ``get_config()``, or of a run's config, checked whole. Raises ``ConfigError``."""
    raw = plain(config)
    name = raw.get("train", {}).get("task")
    if name is None:
        raise ConfigError(f"config.train.task is missing; known are {', '.join(TASKS)}")
    task = choose("train.task", name, TASKS)
    return task(parse(raw, sections=task.sections, networks=task.network_names, task=name))
