"""The contrastive losses in every form, and the arithmetic of meanings."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jdiff.contrastive.analogies import Analogy, accuracy, nearest
from jdiff.contrastive.loss import FORMS, KINDS
from reference import papers

AXES = ("data", "fsdp")
SCALE, BIAS = {"softmax": 1 / 0.07, "sigmoid": 10.0}, {"softmax": 0.0, "sigmoid": -10.0}
WAYS = [(form, {}) for form in FORMS] + [("ring", {"chunk": 2})]


def made(kind, form="dense", devices=1, **options):
    """A loss over so many devices, which are two axes of the mesh where they can be."""
    across = np.array(jax.devices()[:devices]).reshape(-1, min(devices, 2))
    return jax.jit(FORMS[form](KINDS[kind], Mesh(across, AXES), AXES, **options))


def pairs(b=16, d=6):
    """Embeddings of unit length, float64, each a little nearer to its partner than chance would have it."""
    text, image = np.random.default_rng(0).standard_normal((2, b, d))
    image += 0.7 * text
    return [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (text, image)]


@cache
def slopes(kind):
    """The truth's gradient by captions, images, scale and bias, from central differences in float64."""
    arguments = [*pairs(), np.array(SCALE[kind]), np.array(BIAS[kind])]
    found = []
    for k, argument in enumerate(arguments):
        slope = np.zeros(argument.shape)
        for place in np.ndindex(argument.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in arguments]
                moved[k][place] += step
                ends.append(papers.contrastive(kind, *moved))
            slope[place] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize(("form", "options"), WAYS, ids=str)
def test_every_form_is_the_papers_loss_and_gradient(kind, devices, form, options):
    """(1) to (5), against the loss as its paper has it, in float64, and that one's differences."""
    given = [jnp.asarray(x, jnp.float32) for x in (*pairs(), SCALE[kind], BIAS[kind])]
    graded = jax.jit(jax.value_and_grad(made(kind, form, devices, **options), argnums=(0, 1, 2, 3), has_aux=True))
    (value, report), found = graded(*given)
    truth = papers.contrastive(kind, *pairs(), SCALE[kind], BIAS[kind])
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    for mine, right in zip(found, slopes(kind)):
        np.testing.assert_allclose(mine, right, atol=1e-6)
    cosines = pairs()[0] @ pairs()[1].T
    assert float(report["text_to_image"]) == np.mean(cosines.argmax(1) == np.arange(16))
    assert float(report["image_to_text"]) == np.mean(cosines.argmax(0) == np.arange(16))
    assert 0 < float(report["text_to_image"]) < 1


@pytest.mark.parametrize(("form", "options"), WAYS, ids=str)
def test_a_gradient_goes_on_through_the_loss(form, options):
    """It is multiplied by what comes after, and the report has none."""
    text, image = (jnp.asarray(x, jnp.float32) for x in pairs())

    def times(factor):
        loss = made("softmax", form, 4, **options)
        return jax.grad(lambda t: factor * loss(t, image, jnp.float32(5), jnp.float32(0))[0])(text)

    np.testing.assert_allclose(times(3.0), 3 * times(1.0), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_knowing_nothing_is_told(form):
    """Where all are alike the softmax loses log b, and none has found its partner."""
    same = jnp.ones((8, 4)) / 2
    loss, report = made("softmax", form, 4)(same, same, jnp.float32(100), jnp.float32(0))
    np.testing.assert_allclose(loss, np.log(8), rtol=1e-5)
    assert float(report["text_to_image"]) == float(report["image_to_text"]) == 0


def test_a_loss_is_finite_where_the_scale_is_largest():
    eye = jnp.eye(8)
    for kind in KINDS:
        for form in FORMS:
            assert np.isfinite(made(kind, form, 8)(eye, jnp.roll(eye, 1, 0), jnp.float32(100), jnp.float32(0))[0])


def test_a_ring_holds_a_block_and_a_chunk_of_one():
    """Of the memory that the dense form takes for the logits, their exponentials and their slopes."""

    def memory(form, **options):
        rows = jax.ShapeDtypeStruct((4096, 32), jnp.float32)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        loss = made("softmax", form, 8, **options)
        graded = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return graded.lower(rows, rows, number, number).compile().memory_analysis().temp_size_in_bytes

    block = 512 * 512 * 4
    assert memory("ring") < 4 * block
    assert memory("ring", chunk=64) < block


def test_a_chunk_that_does_not_divide_a_block_is_refused():
    text, image = (jnp.asarray(x, jnp.float32) for x in pairs())
    with pytest.raises(ValueError, match="chunk is 3, but must divide the 4 images"):
        made("softmax", "ring", 4, chunk=3)(text, image, jnp.float32(5), jnp.float32(0))


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
