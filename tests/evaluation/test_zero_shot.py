"""Zero-shot classification, and retrieval with several captions per image, on cases counted by hand."""

import numpy as np
import pytest
from PIL import Image

from jdiff.data.labelled import LabelledFolder
from jdiff.data.records import Rejected
from jdiff.evaluation.retrieval import recall
from jdiff.evaluation.zero_shot import accuracy, class_embeddings, read_templates


def test_there_are_80_templates():
    templates = read_templates()
    assert len(set(templates)) == 80 and "a photo of a {}." in templates


def test_class_embedding_is_the_normalized_mean_of_unit_vectors():
    """Vectors are normalized before the mean, too: a long one must not outweigh the others."""
    vectors = {"a cat": [1.0, 0.0], "the cat": [0.0, 1.0], "a dog": [0.6, 0.8], "the dog": [0.6, 0.8]}
    embeddings = class_embeddings(
        lambda texts: np.array([vectors[t] for t in texts]), ["cat", "dog"], ["a {}", "the {}"]
    )
    np.testing.assert_allclose(embeddings, [[0.5**0.5, 0.5**0.5], [0.6, 0.8]])


def test_accuracy_counts_ties_as_wrong_and_weights_classes_equally():
    classes = np.eye(3)
    image = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1.0], [0.5, 0.5, 0]])
    metrics = accuracy(image, classes, np.array([0, 0, 1, 2, 0]))
    assert metrics["top1"] == pytest.approx(3 / 5)  # the last is a tie
    assert metrics["per_class"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics["top5"] == 1


def test_image_retrieves_any_of_its_captions():
    """Five captions of two images: captions of the same image do not compete."""
    image = np.array([[1.0, 0.0], [0.0, 1.0]])
    text = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [0.9, 0.435889]])
    metrics = recall(text, image, image_index=np.array([0, 0, 0, 1, 1]), ks=(1, 2))
    assert metrics["text_to_image@1"] == pytest.approx(3 / 5)
    assert metrics["image_to_text@1"] == 1
    assert metrics["text_to_image@2"] == 1


def test_classes_are_folders_visited_in_rotation(tmp_path):
    for kind, count in (("b_two", 2), ("a", 3), (".hidden", 1)):
        (tmp_path / kind / "deep").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 7), (i, 0, 0)).save(tmp_path / kind / "deep" / f"{i}.png")
    (tmp_path / "a" / "9.png").write_bytes(b"?")
    (tmp_path / "classes.txt").write_text("a\tan aye-aye\n")
    folder = LabelledFolder(tmp_path, 8)
    assert folder.names() == ["an aye-aye", "b two"]
    examples = list(folder.examples())
    assert [None if isinstance(x, Rejected) else x[1] for x in examples] == [None, 1, 0, 1, 0, 0]
    assert all(x[0].shape == (8, 8, 3) for x in examples if not isinstance(x, Rejected))
    (tmp_path / "classes.txt").write_text("a an aye-aye\n")
    with pytest.raises(ValueError, match=r"classes.txt:1"):
        folder.names()
