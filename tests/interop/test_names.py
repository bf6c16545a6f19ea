"""Published tables of names and shapes: every tensor has its place with us, none is left over, and counts are exact."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.interop import clip_weights, diffusers_weights, tensors
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import DualEncoder, TextTower, VisionTower
from jdiff.models.resnet import ResNetTower
from jdiff.models.unet import UNet

# {model: {"params": n, "shapes": {name: shape}}}, in PyTorch's layout.
PUBLISHED = json.loads((Path(__file__).parent / "published_tables.json").read_text())
TOKENS = jnp.zeros((1, 77), jnp.int32), jnp.ones((1, 77), bool)


def image(size, channels=3):
    return jnp.zeros((1, size, size, channels))


def clip(vision, text):
    return DualEncoder(TextTower(49408, 77, *text), vision), (*TOKENS, image(vision.image_size))


B32 = clip(VisionTower(224, 32, 768, 12, 12), (512, 12, 8))
UNET = UNet(), (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 768)))
BARE = tuple((*rule,) for rule in (*clip_weights.HUGGING_FACE, (r"^text_model\.", "")))
TABLES = {
    "clip_b32_hf": (*B32, ("text", "vision", "logit_scale"), clip_weights.HUGGING_FACE),
    "clip_b32_openai": (*B32, ("text", "vision", "logit_scale"), clip_weights.OPENAI),
    "sd15_unet": (*UNET, ("unet",), diffusers_weights.diffusers_unet(4)),
    "sd_vae": (Autoencoder(), (image(64),), ("autoencoder",), diffusers_weights.diffusers_autoencoder(4, old=False)),
    "sd15_text": (TextTower(49408, 77, 768, 12, 12, 0), TOKENS, ("text",), BARE),
}
COUNTS = {
    "sd21_unet": (UNet(heads=(5, 10, 20, 20)), (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 1024))), 865_910_724),
    "sd21_text": (TextTower(49408, 77, 1024, 23, 16, 0, "gelu"), TOKENS, 340_387_840),
    "clip_b16": (*clip(VisionTower(224, 16, 768, 12, 12), (512, 12, 8)), 149_620_737),
    "clip_l14": (*clip(VisionTower(224, 14, 1024, 24, 16, 768), (768, 12, 12, 768)), 427_616_513),
    "clip_l14_336": (*clip(VisionTower(336, 14, 1024, 24, 16, 768), (768, 12, 12, 768)), 427_944_193),
    "clip_rn50": (*clip(ResNetTower(224), (512, 12, 8, 1024)), 102_007_137),
    "clip_rn101": (*clip(ResNetTower(224, (3, 4, 23, 3), embed_dim=512), (512, 12, 8, 512)), 119_688_033),
    "clip_rn50x4": (*clip(ResNetTower(288, (4, 6, 10, 6), 80, 40, 640), (640, 12, 10, 640)), 178_300_601),
}


def shapes(model, inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def stored(table):
    return {name: tensors.Stored(None, name, np.float32, tuple(shape), 0) for name, shape in table.items()}


@pytest.mark.parametrize("name", TABLES)
def test_every_published_tensor_has_its_place(name):
    model, inputs, parts, rules = TABLES[name]
    found = shapes(model, inputs)
    like = found if set(parts) == set(found) else {parts[0]: found}
    table = stored(PUBLISHED[name]["shapes"])
    readers, problems = tensors.match(like, [tensors.File(table, parts, rules, ignored=clip_weights.IGNORED)])
    assert problems == []
    assert len(readers) == len(jax.tree.leaves(like))
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == PUBLISHED[name]["params"]


def test_a_wrong_table_is_told_tensor_by_tensor():
    model, inputs, parts, rules = TABLES["clip_b32_openai"]
    table = dict(PUBLISHED["clip_b32_openai"]["shapes"])
    del table["ln_final.bias"]
    table["visual.proj"] = [768, 513]
    table["visual.extra"] = [3]
    table["visual.ln_pre.bias"] = [1, 768]  # ones do not matter: a vector may be stored as a matrix
    file = tensors.File(stored(table), parts, rules)
    _, problems = tensors.match(shapes(model, inputs), [file])
    assert problems == [
        "missing     ln_final.bias, of shape (512,)",
        "misshapen   visual.proj, (768, 513) in place of (768, 512)",
        "unexpected  visual.extra, of shape (3,)",
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    model, inputs, params = COUNTS[name]
    held = (leaf for path, leaf in tensors.flat(shapes(model, inputs)).items() if not is_statistic(path))
    assert sum(leaf.size for leaf in held) == params


def is_statistic(path):
    """Means and variances of batch norms are buffers to PyTorch, and not counted."""
    return path.endswith(("/mean", "/variance"))


def test_an_openai_resnet_has_489_tensors():
    """With the buffers of its norms, one of which (a count of batches) is no number of ours; q, k and v are one."""
    model, inputs, _ = COUNTS["clip_rn50"]
    names = {tensors.place(path, clip_weights.OPENAI_RESNET).name for path in tensors.flat(shapes(model, inputs))}
    norms = sum(name.endswith("running_mean") for name in names)
    assert len(names) + norms == 489
