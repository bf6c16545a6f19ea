"""Examples to records: through TFDS as ArrayRecord, without TensorFlow, complete or not at all.

A source without splits of its own is read once into a temporary file, and the digest of each image's file assigns it to
"train" or "test". Images with equal pixels go by the smallest of their digests, so that copies are in one split.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from jdiff import storage
from jdiff.data import records
from jdiff.data.files import in_parallel
from jdiff.data.records import COMPLETE, Example, Rejected, Source, encode_png
from jdiff.runtime.lock import hold_lock

NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
Item = tuple[Example, bytes, bytes]  # an example, its image as PNG, and the digest of the PNG


class RejectionLimitError(ValueError):
    """A larger share of a source's items is unusable than config.data.max_rejected allows."""


@dataclass(frozen=True)
class RecordsReport:
    """The result of preparing a source.

    folder: where the records are.   num_examples: per split.   rejected: the items excluded, with their reasons.
    report_file: the list of these in JSON Lines.
    copies: how many images have the pixels of an earlier one of their split, and how many those of one in "train".
    """

    folder: epath.Path
    num_examples: dict[str, int]
    rejected: tuple[Rejected, ...]
    report_file: epath.Path
    copies: dict[str, int]


def write_records(
    source: Source,
    data_dir: epath.PathLike,
    *,
    max_rejected: float = 0.05,
    on_item: Callable[[Example | Rejected], None] = lambda item: None,
) -> RecordsReport:
    """Write a source's records, if they are not on disk yet. on_item: called with every item as it is read.

    Raises ``RejectionLimitError``; the list of rejected items is written in that case, too.
    """
    name = records.dataset_name(source)
    folder = records.records_folder(data_dir, name)
    report_file = folder.parent.parent / f"{name}_rejected.jsonl"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if records.what_is_missing(folder):
        with hold_lock(folder.parent, "data"):
            for remains in [*folder.parent.glob("incomplete.*"), folder]:
                if remains.exists():
                    remains.rmtree()
            builder = _Builder(source, name, data_dir, max_rejected, on_item, report_file)
            try:
                builder.build()
            finally:
                _write_rejected(report_file, builder.rejected)
            summary = {"rejected": [asdict(item) for item in builder.rejected], "copies": builder.count_copies()}
            sizes = {path.name: path.stat().length for path in sorted(folder.iterdir())}
            storage.write_json(folder / COMPLETE, {"files": sizes, **summary})
    content = storage.read_json(folder / COMPLETE, "delete it, and run `jdiff prepare` again", "rejected", "copies")
    rejected = tuple(Rejected(**item) for item in content["rejected"])
    if not report_file.exists():
        _write_rejected(report_file, rejected)
    if hasattr(source, "settings"):
        current_state = {"name": name, "files": source.file_sizes()}
        storage.write_json(records.prepared_file(source, data_dir), current_state)
    num_examples = records.Records(data_dir, name).num_examples
    _check_rejected(rejected, len(rejected) + sum(num_examples.values()), max_rejected, report_file)
    return RecordsReport(folder, num_examples, rejected, report_file, content["copies"])


def _write_rejected(file: epath.Path, rejected: Iterable[Rejected]) -> None:
    storage.write_text(file, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected))


def _check_rejected(rejected: Sequence[Rejected], num_items: int, max_rejected: float, file: epath.Path) -> None:
    """Raise ``RejectionLimitError`` where too many items of all splits were rejected."""
    if len(rejected) > max_rejected * num_items:
        first = rejected[0]
        raise RejectionLimitError(
            f"{len(rejected)} of {num_items} items cannot be used, more than the {max_rejected:.0%} of "
            f"config.data.max_rejected; fix them or raise it. The first: {first.key}: {first.reason} All are listed in "
            f"{file}"
        )


class _Builder(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of a source's records."""

    VERSION = tfds.core.Version(records.VERSION)
    name = records.RECORDS_FOLDER

    def __init__(
        self,
        source: Source,
        name: str,
        data_dir: epath.PathLike,
        max_rejected: float,
        on_item: Callable,
        report_file: epath.Path,
    ):
        self._source, self._max_rejected, self._on_item = source, max_rejected, on_item
        self._report_file = report_file
        self.rejected: list[Rejected] = []
        self._num_items = self._num_open_splits = 0
        self._splits_of_pixels: dict[bytes, Counter] = defaultdict(Counter)
        self._files = contextlib.ExitStack()  # temporary ones
        config = tfds.core.BuilderConfig(name=name, version=self.VERSION)
        super().__init__(data_dir=str(data_dir), config=config, file_format="array_record")

    def build(self) -> None:
        """Write the records."""
        tfds.disable_progress_bar()
        with self._files, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about downloads
            self.download_and_prepare()

    def _info(self) -> tfds.core.DatasetInfo:
        side = self._source.image_size
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
        splits: dict[str, Iterable[Item]]
        if names := self._source.splits():
            splits = {name: self._items(name) for name in names}
            self._num_open_splits = len(names)
        else:
            file = tempfile.TemporaryFile(dir=self._data_dir_root)  # noqa: SIM115 build() closes it
            spool = _Spool(self._files.enter_context(file))
            for item in self._items(None):
                spool.add(*item)
            self._check_rejected()
            splits = {name: spool.items(name) for name in spool.assign(self._source.test_fraction)}
        return {name: self._generate_examples(name, items) for name, items in splits.items()}

    def _items(self, split: str | None) -> Iterator[Item]:
        """The examples of a split, with their PNGs; the others are kept in ``rejected``."""
        num_examples = 0
        loaders = self._source.loaders if hasattr(self._source, "loaders") else self._source.examples
        for item, png, pixel_digest in in_parallel(_with_png, loaders(split)):
            self._num_items += 1
            self._on_item(item)
            if isinstance(item, Rejected):
                self.rejected.append(item)
            else:
                num_examples += 1
                yield item, png, pixel_digest
        if not num_examples:
            items = f"item of the split '{split}'" if split else "item"
            first = f"; the first: {self.rejected[0].key}: {self.rejected[0].reason}" if self.rejected else ""
            raise RejectionLimitError(f"no {items} can be used{first}")

    def _check_rejected(self) -> None:
        _check_rejected(self.rejected, self._num_items, self._max_rejected, self._report_file)

    def _generate_examples(self, split: str, items: Iterable[Item]):
        for example, png, pixel_digest in items:
            self._splits_of_pixels[pixel_digest][split] += 1
            yield (
                example.key,
                {
                    "image": io.BytesIO(png),  # TFDS needs TensorFlow to encode pixels
                    "captions": list(example.captions),
                    "key": example.key,
                    "metadata": json.dumps(example.metadata, ensure_ascii=False),
                },
            )
        self._num_open_splits -= 1
        if self._num_open_splits == 0:
            self._check_rejected()

    def count_copies(self) -> dict[str, int]:
        """``RecordsReport.copies``."""
        counters = self._splits_of_pixels.values()
        return {
            "within": sum(counter.total() - len(counter) for counter in counters),
            "across": sum(counter.total() - counter["train"] for counter in counters if counter["train"]),
        }


def _with_png(item: Example | Rejected | Callable[[], Example | Rejected]) -> tuple[Any, bytes, bytes]:
    """An item, or what a loader loads, with its PNG in place of its pixels, and the digest of the PNG."""
    item = item() if callable(item) else item
    if isinstance(item, Rejected):
        return item, b"", b""
    png = encode_png(item.image)
    return replace(item, image=NO_PIXELS), png, hashlib.sha256(png).digest()


class _Spool:
    """Examples whose PNGs are in a temporary file, until their split is known."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._rows: list[tuple[Example, bytes, int, int]] = []  # example, digest, start and size of its PNG
        self._smallest_digests: dict[bytes, str] = {}  # of files, by the digest of their PNGs
        self._splits: dict[str, list[int]] = {}

    def add(self, example: Example, png: bytes, pixel_digest: bytes) -> None:
        self._rows.append((example, pixel_digest, self._file.tell(), len(png)))
        smallest = self._smallest_digests.get(pixel_digest, example.digest)
        self._smallest_digests[pixel_digest] = min(example.digest, smallest)
        self._file.write(png)

    def assign(self, test_fraction: float) -> tuple[str, ...]:
        """Assign every example to a split. A set so small that all would be "test" is "train"."""
        splits = defaultdict(list)
        for i, (_, pixel_digest, _, _) in enumerate(self._rows):
            share = int(self._smallest_digests[pixel_digest][:16], 16) / 2**64
            splits["test" if share < test_fraction else "train"].append(i)
        self._splits = dict(splits) if "train" in splits else {"train": splits["test"]}
        return tuple(self._splits)

    def items(self, split: str) -> Iterator[Item]:
        for i in self._splits[split]:
            example, pixel_digest, start, size = self._rows[i]
            self._file.seek(start)
            yield example, self._file.read(size), pixel_digest
