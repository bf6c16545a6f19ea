"""Single files, tokens and position embeddings against the code of the third-party libraries."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'parity' is not installed")
pytest.importorskip("diffusers", reason="the extra 'parity' is not installed")
pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

import torch
import transformers

from jdiff.data import tokenizer as tokenizers
from jdiff.interop import clip_weights, diffusers_weights, positions
from jdiff.interop.pretrained import Hints
from jdiff.runs import directory
from reference import torch_models
from tests.interop import toys

pytestmark = pytest.mark.filterwarnings("ignore")  # raised by the third-party libraries
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])
GOLDEN = json.loads((Path(__file__).parent / "clip_tokens.json").read_text())


def assert_equal_tensors(actual, expected):
    assert actual.keys() == expected.keys(), sorted(actual.keys() ^ expected.keys())[:6]
    for name in expected:
        np.testing.assert_array_equal(actual[name].numpy().squeeze(), expected[name].numpy().squeeze(), err_msg=name)


@pytest.mark.parametrize("second", [False, True], ids=["stable diffusion 1", "stable diffusion 2"])
def test_single_file_converts_to_the_diffusers_model(second, tmp_path):
    """The tensors of a single file, converted by diffusers' own code, are those of the model that diffusers wrote."""
    from diffusers.loaders import single_file_utils

    pipeline = torch_models.stable_diffusion(tmp_path / "folder", second=second)
    model = directory.open_model(tmp_path / "folder")
    weights = jax.tree.map(np.asarray, model.params(SHARDING))
    text_rules = clip_weights.OPENAI if second else clip_weights.HUGGING_FACE
    text_prefix = diffusers_weights.TEXT_2_IN_FILE if second else diffusers_weights.TEXT_1_IN_FILE
    file_tensors = {}
    for part, rules, prefix in (
        (
            "denoiser",
            diffusers_weights.single_file_unet(model.task.config.raw["denoiser"]),
            diffusers_weights.UNET_IN_FILE,
        ),
        ("autoencoder", diffusers_weights.SINGLE_FILE_AUTOENCODER, diffusers_weights.VAE_IN_FILE),
        ("text", text_rules, text_prefix),
    ):
        file_tensors |= toys.to_source_layout({part: weights[part]}, rules, prefix)
    file_tensors = {name: torch.tensor(value) for name, value in file_tensors.items()}
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file_tensors), dict(pipeline.unet.config))
    assert_equal_tensors(unet, pipeline.unet.state_dict())
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file_tensors), dict(pipeline.vae.config))
    assert_equal_tensors(vae, pipeline.vae.state_dict())
    if second:
        text = single_file_utils.convert_open_clip_checkpoint(pipeline.text_encoder, dict(file_tensors))
    else:
        text = single_file_utils.convert_ldm_clip_checkpoint(dict(file_tensors))
    bare = {name.removeprefix("text_model."): value for name, value in text.items()}
    assert_equal_tensors(
        bare, {name.removeprefix("text_model."): v for name, v in pipeline.text_encoder.state_dict().items()}
    )
    # Files also hold EMA weights, tables of the schedule and, in version 2, an unused last layer of the text tower.
    file_tensors["model_ema.decay"], file_tensors["betas"] = torch.zeros(1), torch.zeros(1000)
    torch_models.save(file_tensors, tmp_path / "single.safetensors")
    hints = Hints(tokenizer=tmp_path / "folder" / "tokenizer", prediction_type="v" if second else None)
    single = directory.open_model(tmp_path / "single.safetensors", hints)
    jax.tree.map(np.testing.assert_array_equal, single.params(SHARDING), weights)
    assert single.task.config.diffusion == model.task.config.diffusion
    assert single.task.config.raw["denoiser"]["channels"] == model.task.config.raw["denoiser"]["channels"]
    assert single.task.config.raw["denoiser"]["attention"] == model.task.config.raw["denoiser"]["attention"]


def vocabulary():
    """CLIP's vocabulary, from the package open_clip_torch."""
    try:
        path = next(path for path in files("open_clip_torch") if path.name == "bpe_simple_vocab_16e6.txt.gz").locate()
    except PackageNotFoundError:
        pytest.skip("open_clip_torch, which ships CLIP's vocabulary, is not installed")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == GOLDEN["sha256"]
    return tokenizers.clip_merges(path)[0]


# Hugging Face's tokenizer does not repair broken encodings.
HUGGING_FACE_DIFFERS = {"Tom &amp;amp; Jerry", "ﬁre ﬂy", "sâ€™il", "ＦＵＬＬ ｗｉｄｔｈ"}


@pytest.mark.parametrize("dialect", ["openai", "open_clip", "hugging_face"])
def test_tokens_are_clips(dialect):
    tokenizer = tokenizers.clip(vocabulary(), dialect=dialect)
    assert tokenizer.vocab_size == 49408
    for text, ids in GOLDEN["cases"]:
        assert (tokenizer.ids(text) == ids) == (dialect != "hugging_face" or text not in HUGGING_FACE_DIFFERS), text
    row = tokenizer.encode(["a photo of a cat"])[0][0]
    pad = 49407 if dialect == "hugging_face" else 0
    assert row.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407] + [pad] * 70
    assert tokenizer.encode(["a " * 200])[0][0, -1] == 49407


def test_tokens_are_those_of_transformers():
    merges = vocabulary()
    jdiff_tokenizer = tokenizers.clip(merges, dialect="hugging_face")
    numbers = json.loads(jdiff_tokenizer._model.to_str())["model"]["vocab"]
    clip_tokenizer = transformers.CLIPTokenizer(vocab=numbers, merges=merges)
    for text in (
        *(text for text, _ in GOLDEN["cases"]),
        "It's 3.50€, isn't it?!",
        "Don’t",
        "naïve  cafe\u0301\n\ttabs",
    ):
        assert [49406, *jdiff_tokenizer.ids(text), 49407] == clip_tokenizer(text).input_ids, text


@pytest.mark.parametrize("side", [9, 16, 24])
def test_positions_are_resized_as_by_pytorch(side):
    old = np.random.default_rng(0).standard_normal((1 + 14 * 14, 6)).astype(np.float32)
    grid = torch.tensor(old[1:]).reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    for antialias in (False, True):
        expected = torch.nn.functional.interpolate(grid, (side, side), mode="bicubic", antialias=antialias)
        resized = positions.resize(old, 1 + side * side, num_prefix_tokens=1, antialias=antialias)
        np.testing.assert_array_equal(resized[0], old[0])
        # PyTorch computes the kernel in float32.
        np.testing.assert_allclose(resized[1:], expected[0].permute(1, 2, 0).reshape(-1, 6), atol=1e-5)
