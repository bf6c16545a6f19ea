"""Random and damaged input: folders, images, texts, weights and their configs end in a result or in one sentence."""

import io
import json
import resource
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jdiff.data.captions import metadata_rows
from jdiff.data.decoding import Undecodable, decode_square
from jdiff.data.tokenizer import train_tokenizer
from jdiff.interop import pretrained
from jdiff.interop.safetensors_files import WrongWeights, scan
from jdiff.text import NotText, clean_text, decode_text, split_lines
from tests.interop import toys
from tests.running import run_in_process

pytestmark = pytest.mark.slow
MAX_MEMORY = 4 * 2**20  # KiB of the whole process


def fuzz(max_examples):
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=checks)


def assert_memory_is_bounded():
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MAX_MEMORY


# --- images and texts ------------------------------------------------------------------------------------------------

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO", "QOI")


def image_file(kind, mode="RGB", size=(24, 17)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


FILES = [image_file(kind) for kind in KINDS] + [image_file("PNG", mode) for mode in ("P", "LA", "I;16", "1")]


@st.composite
def damage(draw, contents):
    """A file of which some bytes are exchanged, removed or repeated."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 6))):
        i = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(("byte", "number", "cut", "repeat", "insert")))
        if change == "byte" and content:
            content[i] = draw(st.integers(0, 255))
        elif change == "number":
            content[i : i + 4] = struct.pack(">I", draw(st.sampled_from((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1))))
        elif change == "cut":
            del content[i : i + draw(st.integers(1, 200))]
        elif change == "repeat":
            content[i:i] = content[i : i + draw(st.integers(1, 50))]
        else:
            content[i:i] = draw(st.binary(max_size=20))
    return bytes(content)


@fuzz(40_000)
@given(damage(FILES), st.sampled_from(("center", "squash", "pad", "clip")))
def test_damaged_images_are_decoded_or_refused_with_a_sentence(data, crop):
    try:
        assert decode_square(data, 16, crop=crop).shape == (16, 16, 3)
    except Undecodable as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1
    assert_memory_is_bounded()


TOKENIZER = train_tokenizer(["a red dog", "a blue cat"], vocab_size=300, context_length=16)


@fuzz(10_000)
@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode("utf-16")))
def test_any_bytes_are_text_or_refused(data):
    try:
        text = decode_text(data)
    except NotText as error:
        assert len(str(error).splitlines()) == 1
        return
    assert "".join(split_lines(text)) == text.replace("\r", "").replace("\n", "")


@fuzz(10_000)
@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_caption_has_tokens_which_do_not_change_when_it_is_cleaned(text):
    tokens, mask = TOKENIZER.encode([text, clean_text(text)])
    assert (tokens[0] == tokens[1]).all() and (mask[0] == mask[1]).all() and mask.sum(1).min() >= 2


CELLS = st.text(st.sampled_from('ab,"\n\r\t;{}[]:\\\u2028é'), max_size=20)
LINES = st.lists(CELLS | st.just("file_name,text") | st.just('{"file_name": "a.png", "text": "x"}'), max_size=8)


@fuzz(10_000)
@given(LINES, st.sampled_from(("metadata.csv", "metadata.jsonl")))
def test_any_metadata_gives_rows_and_reasons(lines, name):
    for key, row in metadata_rows("\n".join(lines), name, "/set"):
        assert row.location.startswith(f"{name}:")
        assert row.captions or row.reason or key is not None
        assert key is None or not (key.startswith(("/", "../")) or key in ("", ".", ".."))


# --- folders ---------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ("a", "b", "train/a", "Test/b", "val/x", "deep/er/c", "metadata", "é", "e\u0301", "x y", "[z]", "~")
)
SUFFIXES = st.sampled_from((".png", ".jpg", ".txt", ".caption", ".csv", ".jsonl", ".json", ".svg", ".heic", ""))
CONTENTS = (
    damage(FILES)
    | st.sampled_from(FILES)
    | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | LINES.map(lambda lines: "\n".join(["file_name,text", "a.png,x", *lines]).encode())
    | st.binary(max_size=50)
)


@fuzz(3_000)
@given(st.dictionaries(st.tuples(NAMES, SUFFIXES), CONTENTS, max_size=10))
def test_any_folder_is_prepared_or_refused_with_a_sentence(files):
    with tempfile.TemporaryDirectory() as path:
        root = Path(path) / "set"
        root.mkdir()
        for (name, suffix), content in files.items():
            file = root / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.is_dir():
                file.write_bytes(content)
        command = ("prepare", "--config=folder_clip:tiny", "--config.data.path=set", "--config.data.max_rejected=1.0")
        result = run_in_process(*command, cwd=path, check=False)
        assert result.returncode in (0, 1, 2), result.stderr
        if result.returncode:
            assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr
    assert_memory_is_bounded()


# --- weights ---------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-2, 40) | st.sampled_from((2**31, 2**40, 2**63, 1.5, None, "8", True))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "F16", "BF16", "U8", "F8_E4M3", "X", 3)),
        "shape": st.lists(NUMBERS, max_size=3) | NUMBERS,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NUMBERS,
    }
)
HEADERS = st.dictionaries(
    st.text(max_size=5), ENTRIES | NUMBERS | st.dictionaries(st.text(max_size=3), NUMBERS), max_size=4
)


@fuzz(10_000)
@given(HEADERS.map(json.dumps) | st.text(max_size=60), st.binary(max_size=60), st.integers(-3, 3))
def test_any_safetensors_header_is_read_or_refused(header, data, length_error):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        content = header.encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<q", max(0, len(content) + length_error)) + content + data)
        try:
            for tensor in scan(path).values():
                assert tensor.read().nbytes <= len(data)
        except WrongWeights as error:
            assert "x.safetensors" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
CONFIG_FILES = {
    "clip": ("config.json", "preprocessor_config.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"),
    "sd": ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"),
}
PREPROCESSOR = {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": [0.5] * 3, "do_normalize": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    toys.clip(folder / "clip")
    toys.stable_diffusion(folder / "sd")
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "clip" / "added_tokens.json").write_text("{}")
    (folder / "clip" / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}, "pad_token": "!"}))
    return folder


@pytest.mark.parametrize("name", CONFIG_FILES)
@fuzz(15_000)
@given(data=st.data())
def test_any_config_of_weights_is_read_or_refused(models, name, data):
    file = models / name / data.draw(st.sampled_from(CONFIG_FILES[name]))
    content = file.read_text()
    values = json.loads(content)
    key = data.draw(st.sampled_from(sorted(values)) if values else st.text(max_size=5))
    try:
        if data.draw(st.booleans()):
            file.write_text(json.dumps({**values, key: data.draw(JSON)}))
        else:
            file.write_bytes(data.draw(damage([content.encode()])))
        pretrained.find(models / name)
    except ValueError as error:  # of which WrongWeights is one
        assert str(error).strip()
    finally:
        file.write_text(content)


def test_the_toys_are_unchanged_after_fuzzing(models):
    for name in CONFIG_FILES:
        assert pretrained.find(models / name) is not None
    shutil.rmtree(models)
