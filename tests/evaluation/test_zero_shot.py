"""Zero-shot classification and retrieval with several captions, on cases counted by hand."""

import numpy as np
import pytest
from PIL import Image

from jdiff.data.labelled import LabelledFolder
from jdiff.data.records import Rejected
from jdiff.evaluation.retrieval import recall
from jdiff.evaluation.zero_shot import accuracy, class_vectors, read_templates


def test_there_are_80_prompts():
    found = read_templates()
    assert len(set(found)) == 80 and "a photo of a {}." in found


def test_a_class_is_the_mean_of_unit_vectors_made_unit_again():
    """Not the unit vector of a mean of unnormalised ones: a long vector must not outweigh the others."""
    vectors = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [0.6, 0.8], "the dog": [0.6, 0.8]}
    found = class_vectors(lambda said: np.array([vectors[s] for s in said]), ["cat", "dog"], ["a {}", "the {}"])
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]])


def test_accuracy_counts_ties_against_and_classes_alike():
    classes = np.eye(3)
    image = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0]])
    found = accuracy(image, classes, np.array([0, 0, 1, 2, 0]))
    assert found["top1"] == pytest.approx(3 / 5)  # the last is a tie
    assert found["per_class"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["top5"] == 1


def test_an_image_is_found_by_any_of_its_captions():
    """Five captions of two images: own captions do not stand in each other's way."""
    image = np.array([[1.0, 0.0], [0.0, 1.0]])
    text = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [0.9, 0.435889]])
    found = recall(text, image, of=np.array([0, 0, 0, 1, 1]), at=(1, 2))
    assert found["text_to_image@1"] == pytest.approx(3 / 5)
    assert found["image_to_text@1"] == 1
    assert found["text_to_image@2"] == 1


def test_kinds_are_folders_dealt_in_turn(tmp_path):
    for kind, count in (("b_two", 2), ("a", 3), (".hidden", 1)):
        (tmp_path / kind / "deep").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 7), (i, 0, 0)).save(tmp_path / kind / "deep" / f"{i}.png")
    (tmp_path / "a" / "9.png").write_bytes(b"?")
    (tmp_path / "classes.txt").write_text("a\tan aye-aye\n")
    folder = LabelledFolder(tmp_path, 8)
    assert folder.names() == ["an aye-aye", "b two"]
    found = list(folder.examples())
    assert [None if isinstance(x, Rejected) else x[1] for x in found] == [None, 1, 0, 1, 0, 0]
    assert all(x[0].shape == (8, 8, 3) for x in found if not isinstance(x, Rejected))
    (tmp_path / "classes.txt").write_text("a an aye-aye\n")
    with pytest.raises(ValueError, match=r"classes.txt:1"):
        folder.names()
