"""TFDS data sets, prepared here, with unusable records among them."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jdiff.data.tfds_set import TfdsSet
from tests.data.pictures import picture, read


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """A data set with configurable features; its third training record is not an image."""

    VERSION = tfds.core.Version("1.2.3")
    PARTS = {
        "image": lambda: tfds.features.Image(shape=(None, None, 3)),
        "thumbnail": lambda: tfds.features.Image(shape=(None, None, 3)),
        "text": tfds.features.Text,
        "texts": lambda: tfds.features.Sequence(tfds.features.Text()),
        "label": lambda: tfds.features.ClassLabel(names=["polar_bear", "fire_engine"]),
        "captions": lambda: tfds.features.Sequence({"text": tfds.features.Scalar(np.object_), "id": np.int64}),
        "inner": lambda: {"text": tfds.features.Text()},
        "photo": lambda: {"view": tfds.features.Image(shape=(None, None, 3)), "text": tfds.features.Text()},
    }

    def __init__(self, *, parts: tuple[str, ...], **options):
        self._parts = parts
        super().__init__(**options)

    def _info(self):
        features = tfds.features.FeaturesDict({part: self.PARTS[part]() for part in self._parts})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4), "test": self._generate_examples(1)}

    def _generate_examples(self, count: int):
        for number in range(count):
            image = picture((60 * number, 0, 0)) if number != 2 else b"no image"
            record = {
                "image": io.BytesIO(image),
                "thumbnail": io.BytesIO(image),
                "text": f"picture {number} café",
                "texts": [f"picture {number}", "a picture", "a picture"] if number != 3 else [],
                "label": number % 2 if number != 3 else -1,
                "captions": [{"text": f"nested {number}", "id": 1}, {"text": "nested", "id": 2}],
                "inner": {"text": "inner"},
                "photo": {"view": io.BytesIO(image), "text": f"view {number}"},
            }
            yield number, {part: record[part] for part in self._parts}


@pytest.fixture
def prepare_set(tmp_path):
    def prepare(*parts: str, file_format: str = "array_record") -> str:
        tfds.disable_progress_bar()
        TinyPictures(parts=parts, data_dir=tmp_path).download_and_prepare(file_format=file_format)
        return str(tmp_path)

    return prepare


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_texts_become_captions(prepare_set, file_format):
    source = TfdsSet("tiny_pictures", prepare_set("image", "text", file_format=file_format), image_size=4)
    assert source.name == "tfds_tiny_pictures" and set(source.splits()) == {"train", "test"}
    examples, rejected = read(source)
    assert len(examples) == 4 and len(rejected) == 1
    assert "not an image" in next(iter(rejected.values()))
    train = [example for key, example in examples.items() if key.startswith("train/")]
    assert {example.captions for example in train} == {(f"picture {number} café",) for number in (0, 1, 3)}
    for example in train:
        number = int(example.captions[0].split()[1])
        assert (example.image == (60 * number, 0, 0)).all() and example.image.shape == (4, 4, 3)
        assert example.metadata["dataset"] == "tiny_pictures/1.2.3"


def test_labels_become_sentences(prepare_set):
    source = TfdsSet("tiny_pictures", prepare_set("image", "label"), caption_template="a photo of one {label}")
    examples, rejected = read(source)
    assert {e.captions[0] for e in examples.values()} == {"a photo of one polar bear", "a photo of one fire engine"}
    assert sorted(rejected.values())[-1] == "The caption is empty."  # label -1, which is TFDS's "unknown"


def test_several_texts_without_duplicates(prepare_set):
    examples, rejected = read(TfdsSet("tiny_pictures", prepare_set("image", "texts")))
    assert {e.captions for e in examples.values()} == {("picture 0", "a picture"), ("picture 1", "a picture")}
    assert sorted(reason[:9] for reason in rejected.values()) == ["The 8 byt", "The capti"]


def test_texts_in_a_sequence_of_records_as_in_coco(prepare_set):
    source = TfdsSet("tiny_pictures", prepare_set("image", "captions"))
    assert source.identity()["text_key"] == "captions/text"
    assert ("nested 1", "nested") in {example.captions for example in read(source)[0].values()}


def test_nested_features_are_found_by_path(prepare_set):
    source = TfdsSet("tiny_pictures", prepare_set("photo"))
    assert (source.identity()["image_key"], source.identity()["text_key"]) == ("photo/view", "photo/text")
    examples, rejected = read(source)
    assert len(examples) == 4 and len(rejected) == 1
    assert {e.captions[0]: int(e.image[0, 0, 0]) for e in examples.values()} == {f"view {n}": 60 * n for n in (0, 1, 3)}


def test_ambiguous_features_are_listed_in_the_error(prepare_set):
    data_dir = prepare_set("image", "thumbnail", "text", "label", "inner")
    with pytest.raises(ValueError, match="set config.data.image_key to one of image, thumbnail"):
        TfdsSet("tiny_pictures", data_dir)
    with pytest.raises(ValueError, match="set config.data.text_key to one of") as caught:
        TfdsSet("tiny_pictures", data_dir, image_key="thumbnail")
    assert all(key in str(caught.value) for key in ("text", "label", "inner/text"))
    source = TfdsSet("tiny_pictures", data_dir, image_key="thumbnail", text_key="inner/text")
    assert {e.captions for e in read(source)[0].values()} == {("inner",)}
    with pytest.raises(ValueError, match="text_key is 'nope'"):
        TfdsSet("tiny_pictures", data_dir, image_key="image", text_key="nope")


def test_sets_without_image_or_text_are_refused(prepare_set, tmp_path):
    with pytest.raises(ValueError, match="has no text or label feature"):
        TfdsSet("tiny_pictures", prepare_set("image"))
    with pytest.raises(ValueError, match="has no image feature"):
        TinyPictures(parts=("text",), data_dir=tmp_path / "other").download_and_prepare(file_format="array_record")
        TfdsSet("tiny_pictures", str(tmp_path / "other"))


def test_a_set_that_is_not_on_disk_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyPictures.__init__, "__kwdefaults__", {"parts": ("image", "text")})
    source = TfdsSet("tiny_pictures", str(tmp_path))
    assert not list(tmp_path.iterdir())  # constructing the source does not download it
    assert len(read(source)[0]) == 4
    assert any(path.name.endswith(".array_record") or "array_record" in path.name for path in tmp_path.rglob("*"))


def test_version_in_the_name(prepare_set):
    data_dir = prepare_set("image", "text")
    assert TfdsSet("tiny_pictures:1.2.3", data_dir).identity() == TfdsSet("tiny_pictures", data_dir).identity()
    with pytest.raises(ValueError, match="TFDS cannot open 'tiny_pictures:9.9.9'"):
        TfdsSet("tiny_pictures:9.9.9", data_dir)


def test_files_that_need_tensorflow(prepare_set, tmp_path):
    data_dir = prepare_set("image", "text")
    info = tmp_path / "tiny_pictures" / "1.2.3" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"as tfrecord in .*needs TensorFlow: set config\.data\.data_dir"):
        next(TfdsSet("tiny_pictures", data_dir).examples("train"))


def test_code_that_needs_tensorflow(tmp_path):
    with pytest.raises(ValueError, match="needs TensorFlow.*file_format=.*config.data.data_dir"):
        TfdsSet("coco_captions", str(tmp_path))


def test_unknown_names_are_refused_with_similar_ones(tmp_path):
    with pytest.raises(ValueError, match="TFDS has no data set 'mnit'.*did you mean .*mnist"):
        TfdsSet("mnit", str(tmp_path))
    with pytest.raises(ValueError, match="TFDS cannot open 'not a name!!'"):
        TfdsSet("not a name!!", str(tmp_path))
    with pytest.raises(ValueError, match=r"community data sets \(community:\)"):
        TfdsSet("community:pictures", str(tmp_path))


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"caption_template.*expected one that contains \{label\}"):
        TfdsSet("mnist", str(tmp_path), caption_template="a picture")
    with pytest.raises(ValueError, match="expected one of train, test|expected one of test, train"):
        TinyPictures(parts=("image", "text"), data_dir=tmp_path).download_and_prepare(file_format="array_record")
        next(TfdsSet("tiny_pictures", str(tmp_path)).examples("dev"))
