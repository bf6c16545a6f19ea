"""Captioned images on disk: the examples that every data source yields, and the TFDS builder that writes them.

A source (the shapes world, the emoji font, a user's folder, a TFDS set) is any object with

    name        a short word, part of the data set's name
    identity()  a JSON-able dict of everything that determines its records; equal identities share files
    splits()    the names of its splits
    examples(split)    an iterator of ``Example`` and ``Rejected``
    disable_shuffling  optional; True if the order of its examples matters, so that it is kept on disk
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

from jdiff.text import split_lines


@dataclass(frozen=True)
class Example:
    """One captioned image on its way to disk.

    image: (size, size, 3) uint8, sRGB, as a viewer would display it.
    captions: one or more true sentences about it; training draws one of them at random.
    metadata: JSON-able facts stored with the record (a scene, code points, a file name).
    """

    key: str
    image: np.ndarray
    captions: tuple[str, ...]
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """An item that could not become an example, with the reason in one sentence for the user."""

    key: str
    reason: str


def reject(key: str, error: Exception) -> Rejected:
    """A ``Rejected`` item whose reason is the error's message on one line."""
    return Rejected(printable(key), " ".join(printable(str(error)).split()) or f"{type(error).__name__}.")


def printable(text: str) -> str:
    """The text, with lone surrogates (halves of characters) escaped, because UTF-8 files cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


class Source(Protocol):
    """A source of captioned images; the module's docstring explains the members."""

    name: str

    def identity(self) -> dict: ...

    def splits(self) -> tuple[str, ...]: ...

    def examples(self, split: str) -> Iterator[Example | Rejected]: ...


def check_split(split: str, splits: tuple[str, ...]) -> None:
    """Check that a source has a split. Raises ValueError."""
    if split not in splits:
        raise ValueError(f"The split is {split!r}, expected one of {', '.join(splits)}.")


@dataclass(frozen=True)
class RecordsReport:
    """The result of preparing a source.

    directory: where the records are.   num_examples: per split.   rejected: the items excluded, with their reasons.
    """

    directory: str
    num_examples: dict[str, int]
    rejected: tuple[Rejected, ...]


class RejectionLimitError(ValueError):
    """A larger share of a source's items is unusable than config.data.max_rejected allows."""


class DatasetNotPreparedError(FileNotFoundError):
    """The records that a config names are not on disk."""


class CaptionedImages(tfds.core.GeneratorBasedBuilder):
    """Writes any source as ArrayRecord through TFDS, without TensorFlow.

    The name of the data set contains a hash of everything that determines its records, so that two settings never
    share files.
    """

    VERSION = tfds.core.Version("1.0.0")
    name = "captioned_images"

    def __init__(self, *, source: Source, data_dir: str, image_size: int, max_rejected: float = 0.05):
        self._source, self._image_size = source, image_size
        self._max_rejected = max_rejected
        self.rejected: list[Rejected] = []
        self._num_items = self._num_open_splits = 0
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
            disable_shuffling=getattr(self._source, "disable_shuffling", False),
        )

    def _split_generators(self, dl_manager):
        splits = self._source.splits()
        self._num_open_splits = len(splits)
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str):
        num_examples = 0
        for item in self._source.examples(split):
            self._num_items += 1
            self.on_item(item)
            if isinstance(item, Rejected):
                self.rejected.append(item)
                continue
            num_examples += 1
            yield (
                item.key,
                {
                    "image": _png(item.image),
                    "captions": list(item.captions),
                    "key": item.key,
                    "metadata": json.dumps(item.metadata, ensure_ascii=False),
                },
            )
        self._num_open_splits -= 1
        if not num_examples:
            raise RejectionLimitError(
                f"no item of the split '{split}' can be used; all are listed with their reasons in {self.report_path}"
            )
        if not self._num_open_splits and len(self.rejected) > self._max_rejected * self._num_items:
            first = self.rejected[0]
            raise RejectionLimitError(
                f"{len(self.rejected)} of {self._num_items} items cannot be used, more than the "
                f"{self._max_rejected:.0%} of config.data.max_rejected; fix them or raise it. "
                f"The first: {first.key}: {first.reason} All are listed in {self.report_path}"
            )

    @property
    def report_path(self) -> epath.Path:
        """The list of rejected items, in JSON Lines. It is beside the records' folder, so it survives a failure."""
        return epath.Path(self._data_dir_root) / f"{self.builder_config.name}_rejected.jsonl"

    def has_records(self) -> bool:
        """Whether the records are on disk, all of them: TFDS renames a complete folder into place."""
        return epath.Path(self.data_dir).exists()


def _png(image: np.ndarray) -> io.BytesIO:
    """The image as a PNG file, because TFDS needs TensorFlow to encode one."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def write_records(builder: CaptionedImages) -> RecordsReport:
    """Write the records if they are not on disk yet.

    Raises ``RejectionLimitError``; the list of rejected items is written in that case, too.
    """
    tfds.disable_progress_bar()
    if not builder.has_records():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about downloads, and there are none
                builder.download_and_prepare()
        finally:
            builder.report_path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in builder.rejected]
            builder.report_path.write_text("".join(lines))
    rejected = tuple(Rejected(**json.loads(line)) for line in split_lines(builder.report_path.read_text()))
    num_examples = {name: split.num_examples for name, split in builder.info.splits.items()}
    return RecordsReport(str(builder.data_dir), num_examples, rejected)


def records(builder: CaptionedImages, split: str):
    """A random-access sequence of one split: {"image" u8 (h,w,3), "captions" list[bytes], "key", "metadata" bytes}.

    Raises ``DatasetNotPreparedError``.
    """
    if not builder.has_records():
        others = sorted(path.name for path in epath.Path(builder.data_dir).parent.glob("*.*.*"))
        if others:
            raise DatasetNotPreparedError(
                f"the records at {epath.Path(builder.data_dir).parent} have format version {', '.join(others)}, but "
                f"this jdiff reads {builder.VERSION}; run `jdiff prepare` again, or use the release that wrote them"
            )
        raise DatasetNotPreparedError(
            f"no prepared data at {builder.data_dir}; run `jdiff prepare` with the same config first"
        )
    if split not in builder.info.splits:
        raise DatasetNotPreparedError(f"no split '{split}' at {builder.data_dir}, only {sorted(builder.info.splits)}")
    return builder.as_data_source(split=split)
