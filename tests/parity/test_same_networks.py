"""Our networks against PyTorch's of the same configuration, on the same random weights, in float32.

Every tensor is filled at random, so that none is zero and none goes unnoticed; a name that has no
counterpart, on either side, is an error.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jdiff.models.clip import DualEncoder, TextTower, VisionTower
from jdiff.models.unet import UNet

torch = pytest.importorskip("torch", reason="the extra 'parity' is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own making

GENERATOR = np.random.default_rng(0)


def randomised(module):
    """The module with every weight drawn anew, small enough that deep networks stay of order one."""
    weights = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            inputs = tensor[0].numel() if tensor.ndim > 1 else 1
            drawn = torch.tensor(GENERATOR.standard_normal(tensor.shape).astype(np.float32))
            weights[name] = 0.2 * drawn / max(inputs, 1) ** 0.5 + (1.0 if name.endswith("norm.weight") else 0.0)
    module.load_state_dict(weights, strict=False)
    return module.eval()


def carried(module, rename, like):
    """The module's weights in our names and layouts; every one of ours must be filled, with its own shape."""
    found = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        value, path = tensor.numpy(), rename(name)
        kind = {"weight": "kernel"}.get(path[-1], path[-1])
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2 and kind == "kernel":
            value = value.T
        if kind == "kernel" and value.ndim == 1:
            kind = "scale"
        found[(*path[:-1], kind)] = value
    ours = flatten_dict(like)
    assert found.keys() == ours.keys(), sorted(found.keys() ^ ours.keys())[:6]
    return unflatten_dict({path: jnp.asarray(found[path].reshape(ours[path].shape)) for path in ours})


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert np.linalg.norm(np.asarray(ours) - theirs) <= 1e-5 * np.linalg.norm(theirs)


UNET_NAMES = (
    (r"^time_embedding\.linear_(\d)", r"time\1"),
    (r"^(down|up)_blocks\.(\d)\.resnets\.(\d)", r"\1_\2_residual_\3"),
    (r"^(down|up)_blocks\.(\d)\.attentions\.(\d)", r"\1_\2_transformer_\3"),
    (r"^(down|up)_blocks\.(\d)\.(?:down|up)samplers\.0\.conv", r"\1_\2_sample"),
    (r"^mid_block\.resnets\.(\d)", r"middle_residual_\1"),
    (r"^mid_block\.attentions\.0", "middle_transformer"),
    (r"time_emb_proj", "time"),
    (r"conv_shortcut", "shortcut"),
    (r"transformer_blocks\.(\d)", r"blocks_\1"),
    (r"to_([qkv])", r"\1"),
    (r"to_out\.0", "out"),
    (r"ff\.net\.0\.proj", "ff1"),
    (r"ff\.net\.2", "ff2"),
    (r"^conv_norm_out", "norm_out"),
)


def unet_name(levels):
    def rename(name):
        for pattern, ours in UNET_NAMES:
            name = re.sub(pattern, ours, name)
        # Theirs count up blocks from the coarsest level, ours name the level.
        name = re.sub(r"^up_(\d)", lambda found: f"up_{levels - 1 - int(found[1])}", name)
        return name.split(".")

    return rename


@pytest.mark.parametrize(
    ("linear", "modulated"),
    [(False, False), (True, False), (True, True)],
    ids=["stable diffusion 1", "stable diffusion 2", "modulated"],
)
def test_unet(linear, modulated):
    channels, heads = (32, 64, 64), (2, 4, 4)
    down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    theirs = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=channels,
        down_block_types=down,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=heads,
        use_linear_projection=linear,
        resnet_time_scale_shift="scale_shift" if modulated else "default",
    )
    theirs = randomised(theirs)
    ours = UNet(channels, (True, True, False), heads, modulated=modulated)
    xt, context = GENERATOR.standard_normal((2, 4, 16, 16)), GENERATOR.standard_normal((2, 7, 24))
    timestep = np.array([3.0, 981.0])
    inputs = [jnp.asarray(a, jnp.float32) for a in (xt.transpose(0, 2, 3, 1), timestep, context)]
    like = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    params = carried(theirs, unet_name(3), like)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (xt, timestep, context)]
    answer = theirs(tensors[0], tensors[1], tensors[2]).sample
    close(ours.apply({"params": params}, *inputs).transpose(0, 3, 1, 2), answer)


CLIP_NAMES = (
    (r"^(text|vision)_model\.", r"\1."),
    (r"embeddings\.token_embedding\.weight", "tokens.embedding"),
    (r"embeddings\.position_embedding\.weight", "positions"),
    (r"embeddings\.class_embedding", "class_token"),
    (r"embeddings\.patch_embedding", "patches"),
    (r"encoder\.layers\.(\d)", r"transformer.layers_\1"),
    (r"self_attn\.(\w+)_proj", r"attention.\1"),
    (r"layer_norm(\d)", r"norm_\1"),
    (r"mlp\.fc(\d)", r"mlp_\1"),
    (r"final_layer_norm", "norm"),
    (r"pre_layrnorm", "norm_in"),
    (r"post_layernorm", "norm_out"),
    (r"^text_projection", "text.projection"),
    (r"^visual_projection", "vision.projection"),
)


def clip_name(name):
    for pattern, ours in CLIP_NAMES:
        name = re.sub(pattern, ours, name)
    return name.split(".")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation):
    towers = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    towers |= {"hidden_act": activation, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config=towers | {"vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49, "bos_token_id": 48},
        vision_config=towers | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    theirs = randomised(transformers.CLIPModel(config))
    text = TextTower(50, 9, 32, 2, 4, 16, activation)
    ours = DualEncoder(text, VisionTower(16, 8, 32, 2, 4, 16, activation))
    tokens = np.array([[48, 5, 6, 7, 49, 49, 49, 49, 49], [48, 8, 49, 49, 49, 49, 49, 49, 49]])
    mask = np.cumsum(tokens == 49, axis=1) <= 1  # up to the first end
    images = GENERATOR.standard_normal((2, 3, 16, 16))
    inputs = jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32)
    like = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    params = carried(theirs, clip_name, like)
    answer = theirs(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(images, dtype=torch.float32))
    text_embedding, image_embedding, _ = ours.apply({"params": params}, *inputs)
    close(text_embedding, answer.text_embeds)
    close(image_embedding, answer.image_embeds)
    hidden, _ = text.apply({"params": params["text"]}, *inputs[:2])
    close(hidden, answer.text_model_output.last_hidden_state)  # of all positions, padded ones included
