"""A user's folder of captioned images, as a source of examples."""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from etils import epath

from jdiff import storage
from jdiff.data.captions import METADATA_NAMES, SIDECAR_SUFFIXES, Row, metadata_rows
from jdiff.data.decoding import MAX_PIXELS, check_fit, decode_square
from jdiff.data.files import File, files_below, in_parallel
from jdiff.data.records import SPLIT_RULE, Example, Rejected, check_split, printable, reject
from jdiff.text import clean_captions, decode_text, split_lines

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"),
    *(".ppm", ".pgm", ".ico", ".qoi", ".heic", ".heif", ".jxl"),
)
# Images that are not read, and are rejected. A file of another kind is rejected if it has a caption beside it ...
OTHER_IMAGE_SUFFIXES = (
    *(".svg", ".svgz", ".psd", ".psb", ".xcf", ".kra", ".tga", ".eps", ".exr", ".hdr", ".dds", ".pcx", ".jxr", ".jpx"),
    *(".j2k", ".pbm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
# ... and is not what data sets keep beside an image of the same name.
COMPANION_SUFFIXES = (*SIDECAR_SUFFIXES, ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".npy", ".npz", ".pt", ".xml")
SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}


@dataclass(frozen=True)
class Folder:
    """A folder of images and their captions, in the convention of Hugging Face's ImageFolder.

    Captions are the ``text`` (a sentence, or in JSON a list of them) that a ``metadata.jsonl`` or ``metadata.csv``
    gives a ``file_name`` relative to itself, or else each line of a ``.txt`` or ``.caption`` file of the image's name,
    with or without its suffix, beside it. Folders train, test and validation (or training, testing, val, dev, eval, in
    any case), at the top or below folders that all images share, are the splits. Names that begin with a dot are
    ignored, and links to folders or out of the folder are not followed.

    image_size: edge of the examples' images in pixels.   crop: how ``decoding.fit`` makes them square.
    test_fraction: share of the images that are the test split, where no folder is.
    max_pixels: a larger image is rejected before it is decoded.
    split_folders: whether folders named train, test, ... are the splits; false where they are names of other things.
    """

    path: epath.PathLike
    image_size: int = 64
    crop: str = "center"
    test_fraction: float = 0.05
    max_pixels: int = MAX_PIXELS
    split_folders: bool = True
    name: ClassVar[str] = "folder"
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)  # of files, SHA-256

    def __post_init__(self):
        check_fit(self.image_size, self.crop)
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"config.data.test_fraction is {self.test_fraction}, expected 0 or more, and less than 1.")

    def check(self) -> None:
        """Raise ``FileNotFoundError`` or ``ValueError`` where the folder has no captioned images."""
        if not epath.Path(self.path).is_dir():
            raise FileNotFoundError(f"There is no folder {self.path}, which config.data.path names.")
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

    def settings(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "path": str(self.path),
            "split_rule": SPLIT_RULE,
            "image_size": self.image_size,
            "crop": self.crop,
            "test_fraction": self.test_fraction,
            "max_pixels": self.max_pixels,
            "split_folders": self.split_folders,
        }

    def identity(self) -> dict[str, Any]:
        """The settings, and a digest of every image and its captions in place of the path."""
        return {**self.settings(), "path": "", "content_sha256": self._content_digest}

    @functools.cached_property
    def _content_digest(self) -> str:
        self.check()
        content = hashlib.sha256()
        for line in in_parallel(self._content, self._keys):
            content.update(line)
        for problem in self._problems:
            content.update(json.dumps((problem.key, problem.reason)).encode() + b"\n")
        return content.hexdigest()

    def _content(self, key: str) -> bytes:
        """A line of what is read of an image, or of why it will be rejected."""
        try:
            if key in self._files:
                self._digests[key] = hashlib.sha256(self._files[key].read()).hexdigest()
            line = (printable(key), self._digests.get(key), self._captions(key))
        except (OSError, ValueError) as error:
            line = (printable(key), reject(key, error).reason)
        return json.dumps(line).encode() + b"\n"

    def file_sizes(self) -> dict[str, int]:
        self.check()
        names = {*self._images, *filter(None, map(self._sidecar, self._images)), *self._metadata_keys}
        return {printable(key): self._files[key].size for key in sorted(names) if key in self._files}

    def splits(self) -> tuple[str, ...]:
        if not self._split_depth:
            return () if self.test_fraction else ("train",)
        nonempty = {self._split(key) for key in self._images}
        return tuple(split for split in ("train", "test", "validation") if split in nonempty)

    def examples(self, split: str | None) -> Iterator[Example | Rejected]:
        yield from in_parallel(lambda item: item() if callable(item) else item, self.loaders(split))

    def loaders(self, split: str | None) -> Iterator[Rejected | Callable[[], Example | Rejected]]:
        self.check()
        splits = self.splits()
        if split is not None:
            check_split(split, splits)
        if split is None or split == splits[0]:
            yield from self._problems
        first = splits[0] if splits else None
        for key in self._keys:
            if split is None or (self._split(key) or first) == split:
                yield partial(self._example, key)

    def _example(self, key: str) -> Example | Rejected:
        try:
            if key not in self._files:
                raise ValueError(f"There is no such file, but {self._rows[key].location} lists it.")
            if key != printable(key):
                raise ValueError("The file's name is not Unicode (UTF-8); rename it.")
            if self._split_depth and self._split(key) is None:
                raise ValueError(
                    f"The image is outside the split folders: {', '.join(self._split_names)}. If they are no splits, "
                    "set config.data.split_folders to False."
                )
            data = self._files[key].read()
            captions = self._captions(key)
            image = decode_square(data, self.image_size, crop=self.crop, max_pixels=self.max_pixels)
            digest = hashlib.sha256(data).hexdigest()
            if digest != self._digests.get(key, digest):
                raise ValueError("The file was changed while the folder was read; run `jdiff prepare` again.")
            return Example(key, image, captions, {"file_name": key}, digest)
        except (OSError, ValueError) as error:
            return reject(key, error)

    def _captions(self, key: str) -> tuple[str, ...]:
        """An image's captions. Raises ValueError where it has none."""
        row = self._rows.get(key)
        if row and row.reason:
            raise ValueError(row.reason)
        captions = row.captions if row else self._sidecar_captions(key)
        if not captions:
            raise ValueError("The caption is empty.")
        return captions

    def _sidecar_captions(self, key: str) -> tuple[str, ...]:
        sidecar = self._sidecar(key)
        if sidecar is None:
            raise ValueError("The image has no caption: no metadata file lists it, and no .txt file is beside it.")
        text = decode_text(self._files[sidecar].read(), f"The caption file {sidecar}")
        return clean_captions(split_lines(text))

    def _sidecar(self, key: str) -> str | None:
        """The key of the text file beside an image."""
        for stem in (posixpath.splitext(key)[0], key):
            for suffix in SIDECAR_SUFFIXES:
                if (sidecar := self._sidecars.get((stem, suffix))) is not None:
                    return sidecar
        return None

    @functools.cached_property
    def _sidecars(self) -> dict[tuple[str, str], str]:
        """The keys of text files, by what precedes their suffix, and the suffix in lower case."""
        parts = ((key, *posixpath.splitext(key)) for key in self._files)
        return {(stem, suffix.lower()): key for key, stem, suffix in parts if suffix.lower() in SIDECAR_SUFFIXES}

    @functools.cached_property
    def _files(self) -> dict[str, File]:
        return files_below(self.path)

    @functools.cached_property
    def _images(self) -> tuple[str, ...]:
        """The keys of images, sorted, without those that jdiff drew."""
        names = (key for key in self._files if key.lower().endswith(IMAGE_SUFFIXES) or key in self._rows)
        return tuple(sorted(key for key in names if not self._is_drawn(key)))

    @functools.cached_property
    def _keys(self) -> list[str]:
        """What is to become an example, sorted: images, and what a metadata file lists."""
        return sorted({*self._images, *self._rows})

    def _is_drawn(self, key: str) -> bool:
        """Whether an image is a result of jdiff, which has a JSON of its request and no caption beside it."""
        request = self._files.get(f"{posixpath.splitext(key)[0]}.json")
        if request is None or key in self._rows or self._sidecar(key) is not None:
            return False
        try:
            content = json.loads(request.read())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and {"workdir", "step"} <= set(content)

    @functools.cached_property
    def _split_depth(self) -> int:
        """How many folders down the names of splits are, counted from 1; 0 where there are none."""
        if not self.split_folders:
            return 0
        folders = [key.lower().split("/")[:-1] for key in self._images]
        for depth in range(min(map(len, folders), default=0) + 1):
            names = {parts[depth] for parts in folders if len(parts) > depth}
            if names & set(SPLIT_OF_FOLDER):
                return depth + 1
            if len(names) != 1:
                return 0
        return 0

    def _top(self, key: str) -> str:
        """The folder of an image at the depth of the splits."""
        folders = key.split("/")[:-1]
        return folders[self._split_depth - 1] if 0 < self._split_depth <= len(folders) else ""

    @functools.cached_property
    def _split_names(self) -> list[str]:
        """The names of the folders that are splits."""
        return sorted({self._top(key) for key in self._images if self._split(key)})

    def _split(self, key: str) -> str | None:
        """The split of an image by its folder, if it is in one."""
        return SPLIT_OF_FOLDER.get(self._top(key).lower()) if self._split_depth else None

    @functools.cached_property
    def _metadata_keys(self) -> tuple[str, ...]:
        return tuple(sorted(filter(self._is_metadata, self._files)))

    @functools.cached_property
    def _rows(self) -> dict[str, Row]:
        return self._metadata[0]

    @functools.cached_property
    def _problems(self) -> list[Rejected]:
        """What is rejected besides images: lines of metadata files, and images of kinds that are not read."""
        problems, images = list(self._metadata[1]), set(self._images)
        for key, file in self._files.items():
            suffix = posixpath.splitext(key)[1].lower()
            if suffix in SIDECAR_SUFFIXES or key in images or self._is_metadata(key):
                continue
            if file.is_folder:
                problems.append(Rejected(printable(key), file.reason))
            elif suffix in OTHER_IMAGE_SUFFIXES:
                problems.append(Rejected(printable(key), f"The format {suffix[1:].upper()} is not read; convert it."))
            elif suffix not in COMPANION_SUFFIXES and self._sidecar(key) is not None:
                problems.append(Rejected(printable(key), "It has a caption, but its suffix is that of no image."))
        return problems

    def _is_metadata(self, key: str) -> bool:
        return posixpath.basename(key) in METADATA_NAMES

    @functools.cached_property
    def _metadata(self) -> tuple[dict[str, Row], list[Rejected]]:
        """The entries of all metadata files by image, and the lines that cannot be used."""
        root = unicodedata.normalize("NFC", str(storage.absolute(self.path)))
        rows: dict[str, Row] = {}
        problems: list[Rejected] = []
        for metadata in self._metadata_keys:
            try:
                text = decode_text(self._files[metadata].read(), f"The file {metadata}")
            except (OSError, ValueError) as error:
                problems.append(reject(metadata, error))
                continue
            for key, row in metadata_rows(text, metadata, root):
                if key is None:
                    problems.append(Rejected(row.location, row.reason))
                    continue
                if key not in self._files and (key_with_slashes := key.replace("\\", "/")) in self._files:
                    key = key_with_slashes
                if key in rows:
                    reason = f"{key} is a duplicate: {rows[key].location} already lists it."
                    problems.append(Rejected(printable(row.location), printable(reason)))
                else:
                    rows[key] = row
        return rows, problems
