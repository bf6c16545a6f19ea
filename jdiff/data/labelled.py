"""Labelled images for zero-shot classification: a folder with one subfolder per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from etils import epath

from jdiff.data.decoding import check_fit, decode_square
from jdiff.data.files import File, files_below
from jdiff.data.folder import IMAGE_SUFFIXES
from jdiff.data.records import Rejected, reject
from jdiff.text import read_text, split_lines

NAMES = "classes.txt"


@dataclass(frozen=True)
class LabelledFolder:
    """Labelled images: every folder in ``path`` is a class, and every image below it is an example of that class.

    A class's name is its folder's, with spaces for underscores, or NAME if ``classes.txt`` in ``path`` has a line
    "FOLDER<tab>NAME".

    image_size, crop: as for ``decoding.fit``.
    """

    path: epath.PathLike
    image_size: int
    crop: str = "clip"

    def __post_init__(self):
        check_fit(self.image_size, self.crop)

    def folders(self) -> list[epath.Path]:
        """The folder of each class, in the order of the folders' names."""
        folders = (path for path in epath.Path(self.path).iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(folders, key=lambda folder: folder.name)

    def names(self) -> list[str]:
        """The name of each class, in the order of ``folders``. Raises ValueError."""
        class_names, path = {}, epath.Path(self.path) / NAMES
        for number, line in enumerate(split_lines(read_text(path)) if path.exists() else (), start=1):
            folder, tab, name = line.partition("\t")
            if line.strip() and not (tab and name.strip()):
                raise ValueError(f"{path}:{number} is {line!r}, expected a folder, a tab, and the name of its class.")
            class_names[folder] = name.strip()
        return [class_names.get(folder.name, folder.name.replace("_", " ")) for folder in self.folders()]

    def examples(self) -> Iterator[tuple[np.ndarray, int] | Rejected]:
        """Every image (size, size, 3) uint8 with its label, or the reason why it cannot be used.

        Labels index ``names``. Classes take turns, so that the first n examples are balanced.
        """
        labels = {unicodedata.normalize("NFC", folder.name): i for i, folder in enumerate(self.folders())}
        classes: list[list[tuple[str, File, int]]] = [[] for _ in labels]
        for key, file in files_below(self.path).items():
            label = labels.get(key.partition("/")[0])
            if label is not None and (file.is_folder or key.lower().endswith(IMAGE_SUFFIXES)):
                classes[label].append((f"{self.path}/{key}", file, label))
        for name, file, label in (item for items in zip_longest(*classes) for item in items if item):
            try:
                yield decode_square(file.read(), self.image_size, crop=self.crop), label
            except (OSError, ValueError) as error:
                yield reject(name, error)
