"""Published tables of tensors' names, shapes and counts, and the networks of ours that are to hold them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

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
    """A network's parameters as shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def stored(table):
    """A table as tensors that are on no disk."""
    return {name: tensors.StoredTensor(None, name, np.float32, tuple(shape), 0) for name, shape in table.items()}


def problems(name: str) -> tuple[list[str], int]:
    """Tensors of a table that have no place with us or the reverse, and how many parameters we hold."""
    model, inputs, parts, rules = TABLES[name]
    found = shapes(model, inputs)
    like = found if set(parts) == set(found) else {parts[0]: found}
    file = tensors.WeightFile(
        stored(PUBLISHED[name]["shapes"]), parts, rules, unused_pattern=clip_weights.UNUSED_TENSORS
    )
    return tensors.match(like, [file])[1], sum(leaf.size for leaf in jax.tree.leaves(like))


def counted(name: str) -> int:
    """Parameters of one of ``COUNTS``; a batch norm's mean and variance are buffers to PyTorch, and not among them."""
    model, inputs, _ = COUNTS[name]
    held = tensors.flat(shapes(model, inputs)).items()
    return sum(leaf.size for path, leaf in held if not path.endswith(("/mean", "/variance")))
