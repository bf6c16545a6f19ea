"""Single files, tokens, positions and pixels against the other libraries' own code for them."""

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

from jdiff import runs
from jdiff.data import tokenizer as tokenizers
from jdiff.interop import clip_weights, diffusers_weights, positions
from jdiff.interop.foreign import Hints
from reference import torch_models
from tests.interop import toys

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other libraries' own making
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
GOLDEN = json.loads((Path(__file__).parent / "clip_tokens.json").read_text())


def equal(found, wanted):
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:6]
    for name in wanted:
        np.testing.assert_array_equal(found[name].numpy().squeeze(), wanted[name].numpy().squeeze(), err_msg=name)


@pytest.mark.parametrize("second", [False, True], ids=["stable diffusion 1", "stable diffusion 2"])
def test_single_files_are_what_diffusers_converts(second, tmp_path):
    """Our names for a single file, turned into diffusers' by its own converter, are the model that diffusers wrote."""
    from diffusers.loaders import single_file_utils as theirs

    pipeline = torch_models.stable_diffusion(tmp_path / "folder", second=second)
    model = runs.find(tmp_path / "folder")
    weights = jax.tree.map(np.asarray, model.weights(ONE))
    text_rules = clip_weights.OPENAI if second else clip_weights.HUGGING_FACE
    text_prefix = diffusers_weights.TEXT_2_IN_FILE if second else diffusers_weights.TEXT_1_IN_FILE
    stored = {}
    for part, rules, prefix in (
        ("unet", diffusers_weights.single_file_unet(model.setup.config["unet"]), diffusers_weights.UNET_IN_FILE),
        ("autoencoder", diffusers_weights.SINGLE_FILE_AUTOENCODER, diffusers_weights.VAE_IN_FILE),
        ("text", text_rules, text_prefix),
    ):
        stored |= toys.theirs({part: weights[part]}, rules, prefix)
    stored = {name: torch.tensor(value) for name, value in stored.items()}
    unet = theirs.convert_ldm_unet_checkpoint(dict(stored), dict(pipeline.unet.config))
    equal(unet, pipeline.unet.state_dict())
    vae = theirs.convert_ldm_vae_checkpoint(dict(stored), dict(pipeline.vae.config))
    equal(vae, pipeline.vae.state_dict())
    if second:
        text = theirs.convert_open_clip_checkpoint(pipeline.text_encoder, dict(stored))
    else:
        text = theirs.convert_ldm_clip_checkpoint(dict(stored))
    bare = {name.removeprefix("text_model."): value for name, value in text.items()}
    equal(bare, {name.removeprefix("text_model."): v for name, v in pipeline.text_encoder.state_dict().items()})
    # Files hold more: averages, tables, and in the second version a last layer that is not listened to.
    stored["model_ema.decay"], stored["betas"] = torch.zeros(1), torch.zeros(1000)
    torch_models.save(stored, tmp_path / "single.safetensors")
    hints = Hints(tokenizer=tmp_path / "folder" / "tokenizer", prediction_type="v" if second else None)
    single = runs.find(tmp_path / "single.safetensors", hints)
    jax.tree.map(np.testing.assert_array_equal, single.weights(ONE), weights)
    assert single.setup.diffusion == model.setup.diffusion
    assert single.setup.config["unet"]["channels"] == model.setup.config["unet"]["channels"]
    assert single.setup.config["unet"]["attention"] == model.setup.config["unet"]["attention"]


def vocabulary():
    """CLIP's own vocabulary, as open_clip ships it."""
    try:
        found = next(path for path in files("open_clip_torch") if path.name == "bpe_simple_vocab_16e6.txt.gz").locate()
    except PackageNotFoundError:
        pytest.skip("open_clip_torch, which ships CLIP's vocabulary, is not installed")
    assert hashlib.sha256(Path(found).read_bytes()).hexdigest() == GOLDEN["sha256"]
    return tokenizers.clip_merges(found)[0]


HUGGING_FACE_DIFFERS = {"Tom &amp;amp; Jerry", "ﬁre ﬂy", "sâ€™il", "ＦＵＬＬ ｗｉｄｔｈ"}  # it mends no text


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
    ours = tokenizers.clip(merges, dialect="hugging_face")
    numbers = json.loads(ours._model.to_str())["model"]["vocab"]
    theirs = transformers.CLIPTokenizer(vocab=numbers, merges=merges)
    for text in (
        *(text for text, _ in GOLDEN["cases"]),
        "It's 3.50€, isn't it?!",
        "Don’t",
        "naïve  cafe\u0301\n\ttabs",
    ):
        assert [49406, *ours.ids(text), 49407] == theirs(text).input_ids, text


@pytest.mark.parametrize("after", [9, 16, 24])
def test_positions_are_resized_as_by_pytorch(after):
    old = np.random.default_rng(0).standard_normal((1 + 14 * 14, 6)).astype(np.float32)
    grid = torch.tensor(old[1:]).reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
    for antialias in (False, True):
        wanted = torch.nn.functional.interpolate(grid, (after, after), mode="bicubic", antialias=antialias)
        found = positions.resize(old, 1 + after * after, first=1, antialias=antialias)
        np.testing.assert_array_equal(found[0], old[0])
        # Theirs computes the kernel in float32.
        np.testing.assert_allclose(found[1:], wanted[0].permute(1, 2, 0).reshape(-1, 6), atol=1e-5)
