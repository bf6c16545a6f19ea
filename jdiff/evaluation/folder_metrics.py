"""How well a dual encoder knows a folder of images, without training on them: retrieval or zero-shot accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from jdiff.data.folder import Folder
from jdiff.data.labelled import LabelledFolder
from jdiff.data.records import Rejected
from jdiff.evaluation import retrieval, zero_shot
from jdiff.evaluation.encoder_metrics import Embeds
from jdiff.evaluation.prompt_accuracy import interval

BATCH = 256  # images embedded at a time


def folder_metrics(
    model: Embeds, images: str, *, image_size: int, crop: str, templates: str | None, num: int | None
) -> dict[str, Any]:
    """Retrieval of captioned images, or zero-shot accuracy of images in one folder per class.

    templates: a file of prompts with {} for the class; None for the 80 that CLIP was measured with.
    num: images at most; None for all.   Raises ``ValueError``.
    """
    captioned = _captioned(images, image_size, crop)
    if captioned is None:
        prompts = zero_shot.read_templates(*([templates] if templates else []))
        return _zero_shot(model, LabelledFolder(images, image_size, crop), prompts, num)
    if templates:
        raise ValueError(f"--templates needs images in one folder per class, but those in {images} have captions")
    return _retrieval(model, captioned, num)


def _captioned(images: str, size: int, crop: str) -> Folder | None:
    """The folder's captioned images, or None where it has one folder per class instead of captions."""
    folder = Folder(images, image_size=size, crop=crop, test_fraction=0.0)
    try:
        folder.check()
        return folder
    except ValueError as error:
        if LabelledFolder(images, size, crop).folders():
            return None
        raise ValueError(f"{error} Or sort the images into one folder per class.") from error


def _embed(model: Embeds, examples: Iterable[Any], num: int | None) -> tuple[np.ndarray, list[Any]]:
    """Unit vectors of images, and the label of each; images that cannot be used are printed.

    examples: pairs of an image and its label (a class, or captions), or ``Rejected``.
    """
    vectors, labels, buffer = [], [], []

    def embed() -> None:
        if buffer:
            vectors.append(np.asarray(model.embed_images(np.stack(buffer))))
            buffer.clear()

    for example in track(examples, description="reading images", console=Console(stderr=True)):
        if isinstance(example, Rejected):
            print(f"rejected {example.key}: {example.reason}")
            continue
        buffer.append(example[0])
        labels.append(example[1])
        if len(buffer) == BATCH:
            embed()
        if num and len(labels) == num:
            break
    embed()
    if not labels:
        raise ValueError("no image could be used, so there is nothing to measure")
    return np.concatenate(vectors), labels


def _retrieval(model: Embeds, folder: Folder, num: int | None) -> dict[str, Any]:
    """Recall both ways; an image may have several captions."""
    examples = (
        example if isinstance(example, Rejected) else (example.image, example.captions)
        for split in folder.splits()
        for example in folder.examples(split)
    )
    image, captions = _embed(model, examples, num)
    image_index = np.repeat(np.arange(len(image)), [len(group) for group in captions])
    text = np.asarray(model.embed_texts([caption for group in captions for caption in group]))
    return {"compared": len(image), "captions": len(text), **retrieval.recall(text, image, image_index=image_index)}


def _zero_shot(model: Embeds, folder: LabelledFolder, templates: list[str], num: int | None) -> dict[str, Any]:
    """Accuracy of the nearest class name."""
    names = folder.names()
    if len(names) < 2:
        raise ValueError(f"{folder.path} has {len(names)} class folder; there must be two or more")
    image, labels = _embed(model, folder.examples(), num)
    classes = zero_shot.class_embeddings(model.embed_texts, names, templates)
    accuracy = zero_shot.accuracy(image, classes, np.array(labels))
    low, high = interval(round(accuracy["top1"] * len(image)), len(image))
    return {
        "compared": len(image),
        "classes": len(names),
        "templates": len(templates),
        **accuracy,
        "top1_low": low,
        "top1_high": high,
        "chance": 1 / len(names),
    }
