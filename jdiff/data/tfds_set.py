"""TensorFlow Datasets (TFDS) as sources of examples, without TensorFlow."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import naming, read_only_builder

from jdiff.data.decoding import MAX_PIXELS, check_fit, decode_square
from jdiff.data.records import Example, Rejected, check_split, reject
from jdiff.text import clean_captions, decode_text


@dataclass(frozen=True)
class TfdsSet:
    """A TFDS set of images with texts or labels, read without TensorFlow.

    A set that is on disk as ArrayRecord or Parquet is read as it is. Any other is prepared as ArrayRecord on first use,
    if its builder does not need TensorFlow. Labels become captions through ``caption_template``.

    dataset: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
    data_dir: the data folder of TFDS; None takes its default, ~/tensorflow_datasets.
    image_key, text_key: the features to use, with "/" between the names of nested ones; None takes the only feature
        of the right type.
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
        check_fit(self.image_size, self.crop)
        if "{label}" not in self.caption_template:
            raise ValueError(
                f"config.data.caption_template is {self.caption_template!r}, expected one that contains {{label}}."
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
        return tuple(self._prepared_builder.info.splits)

    def examples(self, split: str) -> Iterator[Example | Rejected]:
        check_split(split, self.splits())
        decoders = tfds.decode.SkipDecoding()
        for name in reversed(self._image_path):
            decoders = {name: decoders}
        try:
            records = self._prepared_builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:
            info = self._prepared_builder.info
            raise ValueError(
                f"{self.dataset} is stored as {info.file_format.value} in {self._prepared_builder.data_path}, "
                "which needs TensorFlow: set config.data.data_dir to another folder, to prepare it as array_record."
            ) from error
        for index in range(len(records)):
            key = f"{split}/{index}"
            try:
                record = records[index]
                captions = clean_captions(self._texts(_nested_value(record, self._text_path)))
                if not captions:
                    raise ValueError("The caption is empty.")
                data = _nested_value(record, self._image_path)
                image = decode_square(data, self.image_size, crop=self.crop, max_pixels=self.max_pixels)
                metadata = {"dataset": self._builder.info.full_name, "index": index}
                yield Example(key, image, captions, metadata)
            except Exception as error:  # TFDS, its file formats and Pillow each raise their own for a broken record
                yield reject(key, error)

    def _texts(self, value) -> Iterator[str]:
        if isinstance(value, bytes):
            yield decode_text(value)
        elif isinstance(value, str):
            yield value
        elif isinstance(value, Iterable):
            for part in value:
                yield from self._texts(part)
        elif value >= 0:  # TFDS writes -1 for an unknown label
            label = self._features[self._text_path].int2str(int(value))
            yield self.caption_template.format(label=label.replace("_", " "))

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        keywords = {} if self.data_dir is None else {"data_dir": epath.Path(self.data_dir)}
        try:
            name, keywords_of_name = naming.parse_builder_name_kwargs(self.dataset, **keywords)
            if name.namespace:
                raise ValueError(f"community data sets ({name.namespace}:) are not supported.")
            return read_only_builder.builder_from_files(str(name), **keywords_of_name)  # needs no builder code
        except tfds.core.DatasetNotFoundError:
            pass
        except Exception as error:
            raise ValueError(
                f"TFDS cannot open {self.dataset!r}, which config.data.source names: {_first_line(error)}"
            ) from error
        try:
            return tfds.builder(self.dataset, **keywords)
        except tfds.core.DatasetNotFoundError as error:
            similar_names = difflib.get_close_matches(
                self.dataset.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False), n=3
            )
            hint = f"; did you mean {', '.join(similar_names)}?" if similar_names else "."
            raise ValueError(
                f"TFDS has no data set {self.dataset!r}, "
                f"and none is prepared in {self.data_dir or 'its data folder'}{hint}"
            ) from error
        except Exception as error:
            raise ValueError(f"TFDS cannot open {self.dataset!r}: {self._reason(error)}") from error

    @functools.cached_property
    def _prepared_builder(self) -> tfds.core.DatasetBuilder:
        if not self._builder.is_prepared():
            try:
                self._builder.download_and_prepare(file_format="array_record")
            except Exception as error:
                reason = self._reason(error)
                raise ValueError(f"TFDS cannot prepare {self.dataset!r} as array_record: {reason}") from error
        return self._builder

    def _reason(self, error: Exception) -> str:
        if "tensorflow" in str(error).lower() and isinstance(error, ImportError):
            return (
                "its code needs TensorFlow, which jdiff does not install; prepare it elsewhere with "
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
        strings = [
            path for path, feature in self._features.items() if feature.np_dtype == np.object_ and not feature.shape
        ]
        return self._choose("text", self.text_key, texts or strings, if_named=strings)

    def _choose(
        self, kind: str, key: str | None, candidates: list, if_named: Iterable[tuple[str, ...]] = ()
    ) -> tuple[str, ...]:
        """The path of the feature ``key``, or of the only candidate.

        if_named: further paths that ``key`` may name.   Raises ValueError.
        """
        names = {"/".join(path): path for path in sorted(candidates)}
        if key is not None:
            names |= {"/".join(path): path for path in if_named}
            if key not in names:
                raise ValueError(
                    f"config.data.{kind}_key is {key!r}, but the {kind} features of {self.dataset} are: "
                    f"{', '.join(names) or 'none'}."
                )
            return names[key]
        if not names:
            missing_feature = "image feature" if kind == "image" else "text or label feature to caption its images with"
            raise ValueError(
                f"The TFDS set {self.dataset} has no {missing_feature}; "
                f"it has {', '.join(map('/'.join, self._features))}."
            )
        if len(names) > 1:
            raise ValueError(
                f"{self.dataset} has several {kind} features: set config.data.{kind}_key to one of {', '.join(names)}."
            )
        return next(iter(names.values()))


def _leaves(feature, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tfds.features.FeatureConnector]]:
    """All leaf features of a record with their paths; a sequence has the path of its elements."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, part in feature.items():
            yield from _leaves(part, (*path, name))
    elif isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        yield from ((path_, leaf) for path_, leaf in _leaves(inner, path) if type(leaf) is not tfds.features.Image)
    else:
        yield path, feature


def _nested_value(record, path: tuple[str, ...]):
    return functools.reduce(lambda value, name: value[name], path, record)


def _first_line(error: Exception) -> str:
    message = str(error).split('}": ')[-1].strip()  # drop the arguments that TFDS prints first
    return f"{message.splitlines()[0].rstrip('.: ') if message else type(error).__name__}."
