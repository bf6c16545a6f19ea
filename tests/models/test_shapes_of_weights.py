"""Our modules hold exactly the weights of the models they are configurations of: tensors, parameters, shapes."""

import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jdiff.models.clip import DualEncoder, TextTower, VisionTower
from jdiff.models.unet import UNet

# Shapes of the published weights, in PyTorch's layout: {model: {"params": n, "shapes": {shape: how many}}}.
PUBLISHED = json.loads((Path(__file__).parent / "published_shapes.json").read_text())


def image(size, channels=3):
    return jnp.zeros((1, size, size, channels))


def clip(vision, text):
    return DualEncoder(TextTower(49408, 77, *text), VisionTower(224, *vision))


TOKENS = jnp.zeros((1, 77), jnp.int32), jnp.ones((1, 77), bool)
MODELS = {
    "sd15_unet": (UNet(), (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 768)))),
    "clip_b32_hf": (clip((32, 768, 12, 12), (512, 12, 8)), (*TOKENS, image(224))),
}
COUNTS = {
    "sd21_unet": (UNet(heads=(5, 10, 20, 20)), (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 1024))), 865_910_724),
    "clip_b16": (clip((16, 768, 12, 12), (512, 12, 8)), (*TOKENS, image(224)), 149_620_737),
    "clip_l14": (
        DualEncoder(TextTower(49408, 77, 768, 12, 12, 768), VisionTower(224, 14, 1024, 24, 16, 768)),
        (*TOKENS, image(224)),
        427_616_513,
    ),
}


def leaves(model, inputs):
    return jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_its_place(name):
    """The same multiset of shapes: kernels HWIO for OIHW, (in, out) for (out, in); a 1x1 convolution is a matrix."""

    def plain(shape):
        return tuple(sorted(size for size in shape if size != 1)) if len(shape) > 1 else tuple(shape)

    ours = Counter(plain(leaf.shape) for leaf in leaves(*MODELS[name]))
    theirs = Counter()
    for shape, count in PUBLISHED[name]["shapes"]:
        theirs[plain(shape)] += count
    assert ours == theirs


@pytest.mark.parametrize("name", MODELS)
def test_published_counts(name):
    found = leaves(*MODELS[name])
    assert sum(leaf.size for leaf in found) == PUBLISHED[name]["params"]
    assert len(found) == PUBLISHED[name]["tensors"]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_other_sizes(name):
    model, inputs, params = COUNTS[name]
    assert sum(leaf.size for leaf in leaves(model, inputs)) == params
