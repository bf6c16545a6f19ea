"""The contrastive losses in every form, and analogies in embedding space."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jdiff.contrastive.analogies import Analogy, analogy_accuracy, nearest_vectors
from jdiff.contrastive.loss import FORMS, LOSSES
from reference import papers

AXES = ("data", "fsdp")
SCALE, BIAS = {"softmax": 1 / 0.07, "sigmoid": 10.0}, {"softmax": 0.0, "sigmoid": -10.0}
WAYS = [(form, {}) for form in FORMS] + [("ring", {"chunk": 2})]


def make_loss(kind, form="dense", devices=1, **options):
    """A compiled loss over a number of devices, on both axes of the mesh if there are two or more."""
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(-1, min(devices, 2)), AXES)
    return jax.jit(FORMS[form](LOSSES[kind], mesh, AXES, **options))


def pairs(b=16, d=6):
    """Embeddings of unit length, float64, each a little nearer to its partner than by chance."""
    text, image = np.random.default_rng(0).standard_normal((2, b, d))
    image += 0.7 * text
    return [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (text, image)]


@cache
def reference_gradient(kind):
    """The reference's gradient by captions, images, scale and bias, from central differences in float64."""
    arguments = [*pairs(), np.array(SCALE[kind]), np.array(BIAS[kind])]
    grads = []
    for k, argument in enumerate(arguments):
        grad = np.zeros(argument.shape)
        for index in np.ndindex(argument.shape):
            ends = []
            for step in (1e-5, -1e-5):
                perturbed_arguments = [x.copy() for x in arguments]
                perturbed_arguments[k][index] += step
                ends.append(papers.contrastive(kind, *perturbed_arguments))
            grad[index] = (ends[0] - ends[1]) / 2e-5
        grads.append(grad)
    return grads


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(("form", "options"), WAYS, ids=str)
def test_every_form_is_the_papers_loss_and_gradient(kind, devices, form, options):
    """(1) to (5), against the paper's loss in float64, and its central differences."""
    arguments = [jnp.asarray(x, jnp.float32) for x in (*pairs(), SCALE[kind], BIAS[kind])]
    loss = make_loss(kind, form, devices, **options)
    (value, report), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*arguments)
    truth = papers.contrastive(kind, *pairs(), SCALE[kind], BIAS[kind])
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    for grad, expected in zip(grads, reference_gradient(kind)):
        np.testing.assert_allclose(grad, expected, atol=1e-6)
    cosines = pairs()[0] @ pairs()[1].T
    assert float(report["text_to_image"]) == np.mean(cosines.argmax(1) == np.arange(16))
    assert float(report["image_to_text"]) == np.mean(cosines.argmax(0) == np.arange(16))
    assert 0 < float(report["text_to_image"]) < 1


@pytest.mark.parametrize(("form", "options"), WAYS, ids=str)
def test_gradient_is_multiplied_by_the_cotangent(form, options):
    """By the chain rule through what follows the loss; the report has no gradient."""
    text, image = (jnp.asarray(x, jnp.float32) for x in pairs())

    def scaled_gradient(factor):
        loss = make_loss("softmax", form, 4, **options)
        return jax.grad(lambda t: factor * loss(t, image, jnp.float32(5), jnp.float32(0))[0])(text)

    np.testing.assert_allclose(scaled_gradient(3.0), 3 * scaled_gradient(1.0), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_identical_embeddings_lose_log_b_and_have_accuracy_0(form):
    """All logits are equal, so the softmax is uniform, and a tie counts as a miss."""
    constant = jnp.ones((8, 4)) / 2
    loss, report = make_loss("softmax", form, 4)(constant, constant, jnp.float32(100), jnp.float32(0))
    np.testing.assert_allclose(loss, np.log(8), rtol=1e-5)
    assert float(report["text_to_image"]) == float(report["image_to_text"]) == 0


def test_loss_is_finite_at_the_largest_scale():
    eye = jnp.eye(8)
    for kind in LOSSES:
        for form in FORMS:
            assert np.isfinite(make_loss(kind, form, 8)(eye, jnp.roll(eye, 1, 0), jnp.float32(100), jnp.float32(0))[0])


def test_ring_memory_is_bounded_by_a_block_or_a_chunk_of_the_logits():
    """The compiled gradient's temporary memory; the dense form needs the whole matrix and its exponentials."""

    def memory(form, **options):
        rows = jax.ShapeDtypeStruct((4096, 32), jnp.float32)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        loss = make_loss("softmax", form, 8, **options)
        loss_and_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return loss_and_grads.lower(rows, rows, number, number).compile().memory_analysis().temp_size_in_bytes

    block = 512 * 512 * 4
    assert memory("ring") < 4 * block
    assert memory("ring", chunk=64) < block


def test_chunk_that_does_not_divide_a_block_is_refused():
    text, image = (jnp.asarray(x, jnp.float32) for x in pairs())
    with pytest.raises(ValueError, match="chunk is 3.* 4 images"):
        make_loss("softmax", "ring", 4, chunk=3)(text, image, jnp.float32(5), jnp.float32(0))


def test_analogies_hold_where_a_caption_embedding_is_the_sum_of_its_words():
    words = {word: np.eye(8)[i] for i, word in enumerate(["red", "blue", "green", "circle", "square", "star"])}

    def embed(captions):
        vectors = np.stack([sum(words[w] for w in caption.split()) for caption in captions])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    candidates = [f"{c} {s}" for c in ("red", "blue", "green") for s in ("circle", "square", "star")]
    right = Analogy("red circle", "red", "blue", "blue circle")
    wrong = Analogy("red circle", "red", "blue", "green star")
    assert analogy_accuracy(embed, [right, wrong], candidates) == 0.5


def test_nearest_vectors_are_by_cosine_best_first():
    vectors = np.array([[1.0, 0], [0, 1.0], [0.8, 0.6]])
    assert nearest_vectors(np.array([[0.9, 0.1]]), vectors, 3).tolist() == [[0, 2, 1]]
