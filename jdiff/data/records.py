"""Captioned images on disk: what every source yields, and the one TFDS builder that writes it.

A source (the shapes world, the emoji font, somebody's folder, a TFDS set) is anything with

    name        a short word, part of the data set's name
    identity()  a JSON-able dict of all that decides its records; equal identities share files
    splits()    the names of its splits
    examples(split)  an iterator of ``Example`` and ``Rejected``
    ordered     optional; True where the order of its examples means something: they are then not shuffled on disk
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image


@dataclass(frozen=True)
class Example:
    """One captioned image on its way to disk.

    image: (size, size, 3) uint8, sRGB, the picture a person sees.
    captions: one or more sentences that are true of it; training draws one of them.
    metadata: JSON-able facts kept with the record (a scene, code points, a file name).
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...]
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """An item that could not become an example, with the reason a person is told."""

    key: str
    reason: str


def reject(key: str, error: Exception) -> Rejected:
    """The item that an error met, with the error's message on one line as the reason."""
    return Rejected(printable(key), " ".join(printable(str(error)).split()) or f"{type(error).__name__}.")


def printable(text: str) -> str:
    """The text itself, unless it holds pieces of characters, which no file can keep."""
    return text.encode("utf-8", "backslashreplace").decode()


class Source(Protocol):
    """Where captioned images come from."""

    name: str

    def identity(self) -> dict: ...

    def splits(self) -> tuple[str, ...]: ...

    def examples(self, split: str) -> Iterator[Example | Rejected]: ...


def check_split(split: str, splits: tuple[str, ...]) -> None:
    """See that a source has the split it is asked for. Raises ValueError."""
    if split not in splits:
        raise ValueError(f"The split is {split!r}, expected one of {', '.join(splits)}.")


@dataclass(frozen=True)
class Report:
    """What became of a source's items.

    written: examples per split.   rejected: the items left out, each with its reason.
    directory: where the records lie.
    """

    directory: str
    written: dict[str, int]
    rejected: tuple[Rejected, ...]


class TooManyRejected(ValueError):
    """More of a source's items are unusable than the config allows."""


class NotPrepared(FileNotFoundError):
    """The records a run asks for were never written."""


class CaptionedImages(tfds.core.GeneratorBasedBuilder):
    """Writes any source as ArrayRecord through TFDS, without TensorFlow.

    The name of the data set is made from all that decides its records, so two settings never share files.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "captioned_images"

    def __init__(self, *, source: Source, data_dir: str, image_size: int, max_rejected: float = 0.05):
        self._source, self._image_size = source, image_size
        self._max_rejected = max_rejected
        self.rejected: list[Rejected] = []
        self._seen = self._splits_left = 0
        self.on_item: Callable[[Example | Rejected], None] = lambda item: None
        identity = json.dumps({"source": source.identity(), "image_size": image_size}, sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        config = tfds.core.BuilderConfig(name=f"{source.name}_{image_size}_{digest}", version=self.VERSION)
        super().__init__(data_dir=data_dir, config=config, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        side = self._image_size
        features = {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "key": tfds.features.Text(),
            "metadata": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned images, square and of one size.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=getattr(self._source, "ordered", False),
        )

    def _split_generators(self, dl_manager):
        splits = self._source.splits()
        self._splits_left = len(splits)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str):
        written = 0
        for item in self._source.examples(split):
            self._seen += 1
            self.on_item(item)
            if isinstance(item, Rejected):
                self.rejected.append(item)
                continue
            written += 1
            yield (
                item.key,
                {
                    "image": _png(item.image),
                    "captions": list(item.captions),
                    "key": item.key,
                    "metadata": json.dumps(item.metadata, ensure_ascii=False),
                },
            )
        self._splits_left -= 1
        if not written:
            raise TooManyRejected(f"no item of the split '{split}' can be used; all are listed in {self.report_path}")
        if not self._splits_left and len(self.rejected) > self._max_rejected * self._seen:
            first = self.rejected[0]
            raise TooManyRejected(
                f"{len(self.rejected)} of {self._seen} items cannot be used (the first: {first.key}: {first.reason}), "
                f"and at most {self._max_rejected:.0%} may be; mend them, or raise config.data.max_rejected. "
                f"All are listed in {self.report_path}"
            )

    @property
    def report_path(self) -> epath.Path:
        """Where the rejected items are listed, a JSON object a line; beside the records, so it survives a failure."""
        return epath.Path(self._data_dir_root) / f"{self.builder_config.name}_rejected.jsonl"

    def prepared(self) -> bool:
        """Whether the records are all there."""
        return epath.Path(self.data_dir).exists()


def _png(image: np.ndarray) -> io.BytesIO:
    """The image as a PNG file, since TFDS needs TensorFlow to make one itself."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def prepare(builder: CaptionedImages) -> Report:
    """Write the records, unless they are there. Raises ``TooManyRejected``; the report is kept either way."""
    tfds.disable_progress_bar()
    if not builder.prepared():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads, of which there are none
                builder.download_and_prepare()
        finally:
            builder.report_path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in builder.rejected]
            builder.report_path.write_text("".join(lines))
    rejected = tuple(Rejected(**json.loads(line)) for line in builder.report_path.read_text().splitlines())
    written = {name: split.num_examples for name, split in builder.info.splits.items()}
    return Report(str(builder.data_dir), written, rejected)


def records(builder: CaptionedImages, split: str):
    """A random-access sequence of one split: {"image" u8 (h,w,3), "captions" list[bytes], "key", "metadata" bytes}."""
    if not builder.prepared():
        raise NotPrepared(f"no prepared data at {builder.data_dir}; run `jdiff prepare` with the same config first")
    if split not in builder.info.splits:
        raise NotPrepared(f"there is no split '{split}' at {builder.data_dir}, only {sorted(builder.info.splits)}")
    return builder.as_data_source(split=split)
