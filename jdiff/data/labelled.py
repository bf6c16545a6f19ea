"""A folder of pictures sorted into folders, each of one kind of thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from etils import epath

from jdiff.data.decoding import check_fit, decode, fit
from jdiff.data.folder import IMAGE_SUFFIXES, files_below
from jdiff.data.records import Rejected, reject

NAMES = "classes.txt"


@dataclass(frozen=True)
class Labelled:
    """Images by what they show: every folder in ``path`` is a class, and every image below it one of it.

    A class is called as its folder is, with spaces for underscores, or as a line "FOLDER<tab>NAME" of ``classes.txt``
    says.

    image_size, crop: as for ``decoding.fit``.
    """

    path: epath.PathLike
    image_size: int
    crop: str = "clip"

    def __post_init__(self):
        check_fit(self.image_size, self.crop)

    def folders(self) -> list[epath.Path]:
        """The folder of each class, in order of their names."""
        found = (folder for folder in epath.Path(self.path).iterdir() if folder.is_dir())
        return sorted((folder for folder in found if not folder.name.startswith(".")), key=lambda folder: folder.name)

    def names(self) -> list[str]:
        """What each class is called. Raises ValueError."""
        called, path = {}, epath.Path(self.path) / NAMES
        for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
            folder, tab, name = line.partition("\t")
            if line.strip() and not (tab and name.strip()):
                raise ValueError(
                    f"{path}:{number} is {line!r}, expected a folder, a tab, and the name of what it shows."
                )
            called[folder] = name.strip()
        return [called.get(folder.name, folder.name.replace("_", " ")) for folder in self.folders()]

    def examples(self) -> Iterator[tuple[np.ndarray, int] | Rejected]:
        """Every image (size, size, 3) uint8 with the number of its class, or why it cannot be used; classes in turn."""
        classes = [
            [(path, label) for path in sorted(files_below(folder)) if path.suffix.lower() in IMAGE_SUFFIXES]
            for label, folder in enumerate(self.folders())
        ]
        for path, label in (found for turn in zip_longest(*classes) for found in turn if found):
            try:
                yield fit(decode(path.read_bytes()), self.image_size, crop=self.crop), label
            except (OSError, ValueError) as error:
                yield reject(str(path), error)
