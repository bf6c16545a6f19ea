"""The contrastive loss row by row, and the arithmetic of meanings."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.contrastive.analogies import Analogy, accuracy, nearest
from jdiff.contrastive.loss import softmax_loss
from tests import truths


def test_loss_against_cross_entropies_written_out():
    generator = np.random.default_rng(0)
    text, image = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in generator.standard_normal((2, 6, 4)))
    logits = 7.0 * text @ image.T
    truth = (
        np.mean(
            [
                truths.softmax_cross_entropy(logits[i], i) + truths.softmax_cross_entropy(logits[:, i], i)
                for i in range(6)
            ]
        )
        / 2
    )
    value, _ = softmax_loss(jnp.asarray(text, jnp.float32), jnp.asarray(image, jnp.float32), jnp.float32(7))
    np.testing.assert_allclose(value, truth, rtol=1e-5)


def test_loss_of_knowing_nothing_is_log_b():
    same = jnp.ones((8, 4)) / 2
    np.testing.assert_allclose(softmax_loss(same, same, jnp.float32(100))[0], np.log(8), rtol=1e-5)


def test_report_counts_partners_found():
    eye = jnp.eye(4)
    _, report = softmax_loss(eye, eye[jnp.array([0, 1, 3, 2])], jnp.float32(10))
    assert float(report["text_to_image"]) == float(report["image_to_text"]) == 0.5


def test_gradient_pulls_pairs_together():
    text, image = jnp.eye(3), jnp.roll(jnp.eye(3), 1, 0)
    pull = -jax.grad(lambda t: softmax_loss(t, image, jnp.float32(5))[0])(text)
    assert jnp.all(jnp.sum(pull * image, axis=1) > 0)


def test_arithmetic_of_a_space_that_is_a_sum_of_its_words():
    words = {word: np.eye(8)[i] for i, word in enumerate(["red", "blue", "green", "circle", "square", "star"])}

    def embed(captions):
        vectors = np.stack([sum(words[w] for w in caption.split()) for caption in captions])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    candidates = [f"{c} {s}" for c in ("red", "blue", "green") for s in ("circle", "square", "star")]
    right = Analogy("red circle", "red", "blue", "blue circle")
    wrong = Analogy("red circle", "red", "blue", "green star")
    assert accuracy(embed, [right, wrong], candidates) == 0.5


def test_nearest_is_by_cosine_best_first():
    vectors = np.array([[1.0, 0], [0, 1.0], [0.8, 0.6]])
    assert nearest(np.array([[0.9, 0.1]]), vectors, 3).tolist() == [[0, 2, 1]]
