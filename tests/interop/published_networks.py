"""Our networks of the published models, and how their parameters compare with the published tables."""

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.interop import clip_weights, diffusers_weights, tensors
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import DualEncoder, TextTower, VisionTower
from jdiff.models.resnet import ResNetTower
from jdiff.models.unet import UNet
from reference import published

TOKENS = jnp.zeros((1, 77), jnp.int32), jnp.ones((1, 77), bool)


def image(size, channels=3):
    return jnp.zeros((1, size, size, channels))


def clip(vision, text):
    return DualEncoder(TextTower(49408, 77, *text), vision), (*TOKENS, image(vision.image_size))


B32 = clip(VisionTower(224, 32, 768, 12, 12), (512, 12, 8))
TEXT_ONLY = tuple((*rule,) for rule in (*clip_weights.HUGGING_FACE, (r"^text_model\.", "")))
# Of each published table: network, example inputs, names of its parts, rules of the other library's names.
NETWORKS = {
    "clip_b32_hf": (*B32, ("text", "vision", "logit_scale"), clip_weights.HUGGING_FACE),
    "clip_b32_openai": (*B32, ("text", "vision", "logit_scale"), clip_weights.OPENAI),
    "sd15_unet": (
        UNet(),
        (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 768))),
        ("denoiser",),
        diffusers_weights.diffusers_unet(4),
    ),
    "sd_vae": (Autoencoder(), (image(64),), ("autoencoder",), diffusers_weights.diffusers_autoencoder(4, old=False)),
    "sd15_text": (TextTower(49408, 77, 768, 12, 12, 0), TOKENS, ("text",), TEXT_ONLY),
}
# Of each published count: network and example inputs.
COUNTED_NETWORKS = {
    "sd21_unet": (UNet(heads=(5, 10, 20, 20)), (image(64, 4), jnp.zeros(1), jnp.zeros((1, 77, 1024)))),
    "sd21_text": (TextTower(49408, 77, 1024, 23, 16, 0, "gelu"), TOKENS),
    "clip_b16": clip(VisionTower(224, 16, 768, 12, 12), (512, 12, 8)),
    "clip_l14": clip(VisionTower(224, 14, 1024, 24, 16, 768), (768, 12, 12, 768)),
    "clip_l14_336": clip(VisionTower(336, 14, 1024, 24, 16, 768), (768, 12, 12, 768)),
    "clip_rn50": clip(ResNetTower(224), (512, 12, 8, 1024)),
    "clip_rn101": clip(ResNetTower(224, (3, 4, 23, 3), embed_dim=512), (512, 12, 8, 512)),
    "clip_rn50x4": clip(ResNetTower(288, (4, 6, 10, 6), 80, 40, 640), (640, 12, 10, 640)),
}


def parameter_shapes(network, inputs):
    """A network's parameters as shapes."""
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def stored_tensors(table):
    """A table of shapes as tensors of a file that is on no disk."""
    return {name: tensors.StoredTensor(None, name, np.float32, tuple(shape), 0) for name, shape in table.items()}


def match_table(name):
    """Mismatches between a published table and our network, and the number of our parameters."""
    network, inputs, parts, rules = NETWORKS[name]
    expected = parameter_shapes(network, inputs)
    expected = expected if set(parts) == set(expected) else {parts[0]: expected}
    table = stored_tensors(published.TABLES[name]["shapes"])
    file = tensors.WeightFile(table, parts, rules, unused_pattern=clip_weights.UNUSED_TENSORS)
    return tensors.match(expected, [file])[1], sum(leaf.size for leaf in jax.tree.leaves(expected))


def count_parameters(name):
    """Parameters of one of ``COUNTED_NETWORKS``, without batch norms' mean and variance: buffers in PyTorch."""
    leaves = tensors.flat(parameter_shapes(*COUNTED_NETWORKS[name])).items()
    return sum(leaf.size for path, leaf in leaves if not path.endswith(("/mean", "/variance")))
