"""jdiff evaluate --images: how well a dual encoder knows somebody's pictures, with no training on them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import track

from jdiff import runs, storage
from jdiff.construct import ConfigError
from jdiff.data.folder import Folder
from jdiff.data.labelled import Labelled
from jdiff.data.records import Rejected
from jdiff.embed import BATCH, Encoder
from jdiff.evaluation import retrieval, zero_shot
from jdiff.evaluation.prompt_accuracy import interval
from jdiff.interop.pretrained import Hints
from jdiff.verbs.evaluate import numbers


def evaluate_folder(
    path: str,
    images: str,
    *,
    hints: Hints,
    templates: str | None,
    num: int | None,
    out: str | None,
    average: str | None = None,
) -> dict:
    """Measure a dual encoder on a folder of pictures; print, write and return what was found.

    Pictures with captions are looked up by them, and they by the pictures. Pictures in folders of their kinds are told
    apart by the folders' names, in the 80 sentences that CLIP was measured with, or in those of ``templates``.

    path: a run, or somebody's weights.   num: how many pictures at most; all if not said.
    average: which of a run's, as of ``runs.restore_weights``.
    out: the JSON to write; inside a run, or in the working directory, if not said.
    """
    model = runs.find(path, hints, average)
    if model.setup.train.task != "contrastive":
        raise ConfigError(f"{path} draws; --images measures a dual encoder, so name one with --workdir")
    if not epath.Path(images).is_dir():
        raise ConfigError(f"there is no folder {images}, which --images names")
    size, crop = model.setup.image_size, model.setup.config.get("data", {}).get("crop", "center")
    encoder = runs.encoder(model)
    captioned = _captioned(images, size, crop)
    if captioned is not None:
        if templates:
            raise ConfigError(
                f"--templates is for pictures in folders of their kinds, but those in {images} have captions"
            )
        found = _retrieval(encoder, captioned, num)
    else:
        sentences = zero_shot.read_templates(*([templates] if templates else []))
        found = _zero_shot(encoder, Labelled(images, size, crop), sentences, num)
    where = epath.Path(path) / "evaluation" if runs.is_run(path) else epath.Path()
    target = epath.Path(out) if out else where / f"{storage.absolute(images).name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    Console().print(numbers(found))
    found = {"model": str(path), "step": model.step, "average": average, "images": str(images), **found}
    target.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {target}")
    return found


def _captioned(images: str, size: int, crop: str) -> Folder | None:
    """The folder's captioned images, or None where it has folders of kinds in place of captions."""
    try:
        return Folder(images, image_size=size, crop=crop, test_fraction=0.0)
    except ValueError as error:
        if Labelled(images, size, crop).folders():
            return None
        raise ConfigError(f"{error} Or sort the images into one folder for each kind.") from error


def _embedded(encoder: Encoder, examples: Iterable[Any], num: int | None) -> tuple[np.ndarray, list[Any]]:
    """Unit vectors of images, and what came with each; those that cannot be used are named.

    examples: pairs of an image and something, or ``Rejected``.
    """
    vectors, others, waiting = [], [], []

    def embed() -> None:
        if waiting:
            vectors.append(np.asarray(encoder.embed_images(np.stack(waiting))))
            waiting.clear()

    for example in track(examples, description="reading images", console=Console(stderr=True)):
        if isinstance(example, Rejected):
            print(f"left out {example.key}: {example.reason}")
            continue
        waiting.append(example[0])
        others.append(example[1])
        if len(waiting) == BATCH:
            embed()
        if num and len(others) == num:
            break
    embed()
    if not others:
        raise ConfigError("no image could be used, so there is nothing to measure")
    return np.concatenate(vectors), others


def _retrieval(encoder: Encoder, folder: Folder, num: int | None) -> dict[str, Any]:
    """Recall both ways; an image may have several captions."""
    examples = (
        example if isinstance(example, Rejected) else (example.image, example.captions)
        for split in folder.splits()
        for example in folder.examples(split)
    )
    image, captions = _embedded(encoder, examples, num)
    of = np.repeat(np.arange(len(image)), [len(said) for said in captions])
    text = np.asarray(encoder.embed_texts([caption for said in captions for caption in said]))
    return {"compared": len(image), "captions": len(text), **retrieval.recall(text, image, image_index=of)}


def _zero_shot(encoder: Encoder, folder: Labelled, templates: list[str], num: int | None) -> dict[str, Any]:
    """Accuracy of the nearest name."""
    names = folder.names()
    if len(names) < 2:
        raise ConfigError(f"{folder.path} has {len(names)} folder of a kind; there must be two to be told apart")
    image, labels = _embedded(encoder, folder.examples(), num)
    classes = zero_shot.class_embeddings(encoder.embed_texts, names, templates)
    found = zero_shot.accuracy(image, classes, np.array(labels))
    low, high = interval(round(found["top1"] * len(image)), len(image))
    return {
        "compared": len(image),
        "classes": len(names),
        "templates": len(templates),
        **found,
        "top1_low": low,
        "top1_high": high,
        "chance": 1 / len(names),
    }
