"""Other people's pictures: a folder of captioned images, or a TFDS set, as sources of examples.

Real collections are dirty. An item that cannot be used becomes ``Rejected`` with its reason, and the
rest goes on; only a collection with nothing in it to use is an error.
"""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import naming, read_only_builder

from jdiff.data.decoding import CROPS, MAX_PIXELS, decode, fit
from jdiff.data.records import Example, Rejected

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".ppm", ".pgm")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
MAX_BYTES = 2**28  # of one image file; more is not read into memory


class _File(NamedTuple):
    path: epath.Path
    size: int
    seconds: int  # of its last change


class _Row(NamedTuple):
    """What a metadata file says of an image: its captions, or why it has none."""

    where: str
    captions: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder of images and their captions, in the convention of Hugging Face's ImageFolder.

    Captions are the ``text`` (a sentence, or in JSON a list of them) that a ``metadata.jsonl`` or ``metadata.csv``
    gives a ``file_name`` relative to itself, or else each line of a ``.txt`` file of the image's stem beside it.
    Folders train, test and validation at the top are the splits; without them a hash of each file's
    name sends ``test_fraction`` of the images to "test", whatever else is in the folder. Names that begin with
    a dot are passed over, and links to other folders are not followed.

    image_size: edge of the examples' images in pixels.   crop: how ``decoding.fit`` makes them square.
    max_pixels: a larger image is rejected undecoded.
    """

    path: epath.PathLike
    image_size: int = 64
    crop: str = "center"
    test_fraction: float = 0.05
    max_pixels: int = MAX_PIXELS
    name: ClassVar[str] = "folder"

    def __post_init__(self):
        _check_options(self.image_size, self.crop)
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"config.data.test_fraction is {self.test_fraction}, expected 0 or more, and less than 1.")
        if not epath.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}, which config.data.source names.")
        if not self._images:
            raise ValueError(
                f"There are no images in {self.path}: of its {len(self._files)} files "
                f"none ends in {', '.join(IMAGE_SUFFIXES)}."
            )
        if not any(row.captions for row in self._rows.values()) and not any(map(self._sidecar, self._images)):
            first = next((f" First of {len(self._problems)} problems: {p.key}: {p.reason}" for p in self._problems), "")
            raise ValueError(
                f"There are no captions in {self.path}: expected metadata.jsonl or metadata.csv with file_name and "
                f"text, or a .txt file beside each image.{first}"
            )

    def identity(self) -> dict:
        listing = "\n".join(f"{key}\t{file.size}\t{file.seconds}" for key, file in sorted(self._files.items()))
        contents = b"".join(self._files[key].path.read_bytes() for key in self._metadata_keys)
        return {
            "source": self.name,
            "listing_sha256": hashlib.sha256(_printable(listing).encode() + contents).hexdigest(),
            "image_size": self.image_size,
            "crop": self.crop,
            "test_fraction": self.test_fraction,
            "max_pixels": self.max_pixels,
        }

    def splits(self) -> tuple[str, ...]:
        """The splits that have images; a small folder may have no "test"."""
        found = {self._wanted_split(key) for key in self._images}
        return tuple(split for split in ("train", "test", "validation") if split in found)

    def examples(self, split: str) -> Iterator[Example | Rejected]:
        splits = self.splits()
        _check_split(split, splits)
        if split == splits[0]:
            yield from self._problems
        for key in sorted({*self._images, *self._rows}):
            wanted = self._wanted_split(key)
            if split == (wanted if wanted in splits else splits[0]):
                yield self._example(key)

    def _example(self, key: str) -> Example | Rejected:
        row, file = self._rows.get(key), self._files.get(key)
        try:
            if file is None:
                raise ValueError(f"There is no such file, but {row.where} lists it.")
            if key != _printable(key):
                raise ValueError("The file's name is not Unicode (UTF-8); rename it.")
            if self._split_folders and key.split("/")[0] not in self._split_folders:
                raise ValueError(f"The image lies outside the folders of splits: {', '.join(self._split_folders)}.")
            if row and row.reason:
                raise ValueError(row.reason)
            if file.size > MAX_BYTES:
                raise ValueError(f"The file has {file.size} bytes, more than the {MAX_BYTES} that are read.")
            captions = row.captions if row else self._sidecar_captions(key)
            return _made(key, file.path.read_bytes(), captions, {"file_name": key}, self)
        except (OSError, ValueError) as error:
            return _rejected(key, error)

    def _sidecar_captions(self, key: str) -> tuple[str, ...]:
        sidecar = self._sidecar(key)
        if sidecar is None:
            raise ValueError("The image has no caption: no metadata file lists it, and no .txt file is beside it.")
        return _sentences(_text(sidecar.path.read_bytes()).splitlines())

    def _sidecar(self, key: str) -> _File | None:
        stem = posixpath.splitext(key)[0]
        return self._files.get(stem + ".txt") or self._files.get(stem + ".TXT")

    def _wanted_split(self, key: str) -> str:
        if self._split_folders:
            return self._split_folders.get(key.split("/")[0], "train")
        share = int.from_bytes(hashlib.sha256(_printable(key).encode()).digest()[:8], "big") / 2**64
        return "test" if share < self.test_fraction else "train"

    @functools.cached_property
    def _files(self) -> dict[str, _File]:
        """Every file by its name relative to the folder; composed Unicode, as some disks keep it in pieces."""
        root, files = epath.Path(self.path), {}
        for folder, folders, names in root.walk():
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = folder.relative_to(root)
            if not any(part.startswith(".") for part in inside.parts):
                for path in (folder / name for name in names if not name.startswith(".")):
                    if path.is_file():
                        stat = path.stat()
                        key = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
                        files[key] = _File(path, stat.length, stat.mtime)
        return files

    @functools.cached_property
    def _images(self) -> tuple[str, ...]:
        return tuple(key for key in self._files if key.lower().endswith(IMAGE_SUFFIXES) or key in self._rows)

    @functools.cached_property
    def _split_folders(self) -> dict[str, str]:
        tops = {key.split("/")[0] for key in self._images if "/" in key}
        return {folder: split for folder, split in SPLIT_FOLDERS.items() if folder in tops}

    @functools.cached_property
    def _metadata_keys(self) -> tuple[str, ...]:
        return tuple(sorted(key for key in self._files if posixpath.basename(key) in METADATA_NAMES))

    @functools.cached_property
    def _rows(self) -> dict[str, _Row]:
        return self._metadata[0]

    @functools.cached_property
    def _problems(self) -> list[Rejected]:
        return self._metadata[1]

    @functools.cached_property
    def _metadata(self) -> tuple[dict[str, _Row], list[Rejected]]:
        """What all metadata files say of images, and the lines that say nothing usable."""
        rows, problems = {}, []
        for metadata in self._metadata_keys:
            folder = posixpath.dirname(metadata)
            try:
                text = _text(self._files[metadata].path.read_bytes())
            except (OSError, ValueError) as error:
                problems.append(_rejected(metadata, error))
                continue
            for line, row in _csv_rows(text) if metadata.endswith(".csv") else _json_rows(text):
                where = f"{metadata}:{line}"
                try:
                    key = _image_key(row, folder)
                except ValueError as error:
                    problems.append(_rejected(where, error))
                    continue
                if key in rows:
                    error = ValueError(f"{key} is a duplicate: {rows[key].where} lists it, and is used.")
                    problems.append(_rejected(where, error))
                    continue
                try:
                    rows[key] = _Row(where, _row_captions(row))
                except ValueError as error:
                    rows[key] = _Row(where, (), f"{where}: {error}")
        return rows, problems


@dataclass(frozen=True)
class TfdsSet:
    """A TFDS set of images with texts or labels, read without TensorFlow.

    A set that is on disk as ArrayRecord or Parquet is read; one that is not is prepared as ArrayRecord on
    first use, if its builder can do without TensorFlow. Labels become sentences through ``caption_template``.

    dataset: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.   data_dir: where TFDS keeps its data; None is TFDS's own place.
    image_key, text_key: features to use, "/" between the names of nested ones; found by type where there is only one.
    """

    dataset: str
    data_dir: epath.PathLike | None = None
    image_key: str | None = None
    text_key: str | None = None
    caption_template: str = "a picture of a {label}"
    image_size: int = 64
    crop: str = "center"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        _check_options(self.image_size, self.crop)
        if "{label}" not in self.caption_template:
            raise ValueError(
                f"config.data.caption_template is {self.caption_template!r}, expected to find {{label}} in it."
            )
        _ = self._image_path, self._text_path

    @property
    def name(self) -> str:
        return f"tfds_{self._builder.name}"

    def identity(self) -> dict:
        return {
            "source": "tfds",
            "dataset": self._builder.info.full_name,
            "image_key": "/".join(self._image_path),
            "text_key": "/".join(self._text_path),
            "caption_template": self.caption_template,
            "image_size": self.image_size,
            "crop": self.crop,
            "max_pixels": self.max_pixels,
        }

    def splits(self) -> tuple[str, ...]:
        return tuple(self._prepared.info.splits)

    def examples(self, split: str) -> Iterator[Example | Rejected]:
        _check_split(split, self.splits())
        decoders = tfds.decode.SkipDecoding()
        for name in reversed(self._image_path):
            decoders = {name: decoders}
        try:
            records = self._prepared.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            raise ValueError(
                f"TFDS keeps {self.dataset} as {self._prepared.info.file_format.value} in {self._prepared.data_path}, "
                "which needs TensorFlow: set config.data.data_dir to another folder, to prepare it as array_record."
            ) from error
        for index in range(len(records)):
            key = f"{split}/{index}"
            try:
                record = records[index]
                captions = _sentences(self._texts(_at(record, self._text_path)))
                metadata = {"dataset": self._builder.info.full_name, "index": index}
                yield _made(key, _at(record, self._image_path), captions, metadata, self)
            except Exception as error:  # TFDS, its file formats and Pillow each have their own for a broken record
                yield _rejected(key, error)

    def _texts(self, value) -> Iterator[str]:
        if isinstance(value, bytes):
            yield _text(value)
        elif isinstance(value, str):
            yield value
        elif isinstance(value, Iterable):
            for part in value:
                yield from self._texts(part)
        elif value >= 0:  # -1 is TFDS's word for a label that is not known
            label = self._features[self._text_path].int2str(int(value))
            yield self.caption_template.format(label=label.replace("_", " "))

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        keywords = {} if self.data_dir is None else {"data_dir": epath.Path(self.data_dir)}
        try:
            name, keywords_of_name = naming.parse_builder_name_kwargs(self.dataset, **keywords)
            if name.namespace:
                raise ValueError(f"sets of others ({name.namespace}:) are not read.")
            return read_only_builder.builder_from_files(str(name), **keywords_of_name)  # needs no code of the set's
        except tfds.core.DatasetNotFoundError:
            pass
        except Exception as error:
            raise ValueError(
                f"TFDS cannot open {self.dataset!r}, which config.data.source names: {_first_line(error)}"
            ) from error
        try:
            return tfds.builder(self.dataset, **keywords)
        except tfds.core.DatasetNotFoundError as error:
            near = difflib.get_close_matches(
                self.dataset.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False), n=3
            )
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(
                f"TFDS has no set {self.dataset!r}, and none is prepared in {self.data_dir or 'its data folder'}{hint}."
            ) from error
        except Exception as error:
            raise ValueError(f"TFDS cannot open {self.dataset!r}: {self._why(error)}") from error

    @functools.cached_property
    def _prepared(self) -> tfds.core.DatasetBuilder:
        if not self._builder.is_prepared():
            try:
                self._builder.download_and_prepare(file_format="array_record")
            except Exception as error:
                raise ValueError(f"TFDS cannot prepare {self.dataset!r} as array_record: {self._why(error)}") from error
        return self._builder

    def _why(self, error: Exception) -> str:
        if "tensorflow" in str(error).lower() and isinstance(error, ImportError):
            return (
                "its code needs TensorFlow, which jdiff does without; prepare it elsewhere with "
                'file_format="array_record" and set config.data.data_dir to that folder.'
            )
        return _first_line(error)

    @functools.cached_property
    def _features(self) -> dict[tuple[str, ...], tfds.features.FeatureConnector]:
        return dict(_leaves(self._builder.info.features))

    @functools.cached_property
    def _image_path(self) -> tuple[str, ...]:
        images = [path for path, feature in self._features.items() if type(feature) is tfds.features.Image]
        return self._choose("image", self.image_key, images)

    @functools.cached_property
    def _text_path(self) -> tuple[str, ...]:
        kinds = (tfds.features.Text, tfds.features.ClassLabel)
        texts = [path for path, feature in self._features.items() if isinstance(feature, kinds)]
        plain = [
            path for path, feature in self._features.items() if feature.np_dtype == np.object_ and not feature.shape
        ]
        return self._choose("text", self.text_key, texts or plain, also=plain)

    def _choose(self, kind: str, asked: str | None, found: list, also: Iterable = ()) -> tuple[str, ...]:
        names = {"/".join(path): path for path in sorted(found)}
        if asked is not None:
            names |= {"/".join(path): path for path in also}
            if asked not in names:
                raise ValueError(
                    f"config.data.{kind}_key is {asked!r}, but the {kind} features of {self.dataset} are: "
                    f"{', '.join(names) or 'none'}."
                )
            return names[asked]
        if not names:
            wanted = "image feature" if kind == "image" else "text or label feature to caption its images with"
            raise ValueError(
                f"The TFDS set {self.dataset} has no {wanted}; it has {', '.join(map('/'.join, self._features))}."
            )
        if len(names) > 1:
            raise ValueError(
                f"{self.dataset} has several {kind} features: set config.data.{kind}_key to one of {', '.join(names)}."
            )
        return next(iter(names.values()))


def _leaves(feature, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tfds.features.FeatureConnector]]:
    """All features of a record, nested ones by their path; a sequence has its elements' path."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, part in feature.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        yield from ((path_, leaf) for path_, leaf in _leaves(inner, path) if type(leaf) is not tfds.features.Image)
    else:
        yield path, feature


def _at(record, path: tuple[str, ...]):
    return functools.reduce(lambda value, name: value[name], path, record)


def _made(key: str, data: bytes, captions: tuple[str, ...], metadata: dict, source: Folder | TfdsSet) -> Example:
    """The last step of every source: decode, make square, and see that there is something to say. Raises ValueError."""
    if not captions:
        raise ValueError("The caption is empty.")
    image = fit(decode(data, max_pixels=source.max_pixels), source.image_size, crop=source.crop)
    return Example(key, image, captions, metadata)


def _rejected(key: str, error: Exception) -> Rejected:
    return Rejected(_printable(key), " ".join(_printable(str(error)).split()) or f"{type(error).__name__}.")


def _printable(text: str) -> str:
    """The text itself, unless it holds pieces of characters, which no file can keep."""
    return text.encode("utf-8", "backslashreplace").decode()


def _image_key(row: dict | str, folder: str) -> str:
    """Where a metadata row's image is, relative to the source's folder.   Raises ValueError."""
    if isinstance(row, str):
        raise ValueError(row)
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The line names no image: expected file_name, found {', '.join(map(str, row)) or 'nothing'}.")
    name = posixpath.normpath(unicodedata.normalize("NFC", name.strip()))
    if name.startswith(("/", "../")) or name in (".", ".."):
        raise ValueError(f"The file_name {name!r} leads out of the folder of its metadata file.")
    return posixpath.join(folder, name)


def _row_captions(row: dict) -> tuple[str, ...]:
    text = row.get("text")
    texts = [text] if isinstance(text, str) else text
    if texts is None:
        raise ValueError(f"There is no caption: expected text, found {', '.join(map(str, row))}.")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"The text is {text!r:.60}, expected a sentence or a list of sentences.")
    return _sentences(texts)


def _json_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    """Line numbers and rows; a row that is a string says what is wrong with the line."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                row = json.loads(content)
            except (ValueError, RecursionError) as error:
                row = f"The line is not JSON: {error}."
            yield line, row if isinstance(row, dict | str) else f"The line is {content!r:.40}, expected a JSON object."


def _csv_rows(text: str) -> Iterator[tuple[int, dict | str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, "The line has more cells than the header." if None in row else row
    except csv.Error as error:
        yield reader.line_num, f"The file cannot be read as CSV from here on: {error}."


def _text(data: bytes) -> str:
    """Text of unknown origin: UTF-8, UTF-16 if it says so, else Windows' western letters.   Raises ValueError."""
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise ValueError("The file holds binary data where text was expected, in UTF-8, UTF-16 or Windows-1252.")
    return text


def _sentences(lines: Iterable[str]) -> tuple[str, ...]:
    """Captions in their order, each once, with single spaces, no halves of characters, and none of them empty."""
    whole = (line.encode("utf-8", "ignore").decode() for line in lines)
    return tuple(dict.fromkeys(sentence for line in whole if (sentence := " ".join(line.split()))))


def _first_line(error: Exception) -> str:
    message = str(error).split('}": ')[-1].strip()  # after what TFDS says of its own arguments
    return f"{message.splitlines()[0].rstrip('.: ') if message else type(error).__name__}."


def _check_options(image_size: int, crop: str) -> None:
    if image_size < 1:
        raise ValueError(f"config.data.image_size is {image_size}, expected at least 1.")
    if crop not in CROPS:
        raise ValueError(f"config.data.crop is {crop!r}, expected one of {', '.join(CROPS)}.")


def _check_split(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ValueError(f"The split is {split!r}, expected one of {', '.join(splits)}.")
