"""Folders that broke other tools, by their public reports, each through `jdiff prepare`: its status and words."""

import os
import struct
import zlib

import pytest

from tests.data.pictures import picture
from tests.data.test_folder import lines, write
from tests.running import run_in_process

RED = picture()
CAPTIONED = {f"{name}.png": picture((i * 40, 0, 0)) for i, name in enumerate("abcd")} | {f"{n}.txt": n for n in "abcd"}


def png_with_text():
    text = b"workflow\0\0" + zlib.compress(b"{node: 1} " * 200_000)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return RED[:33] + chunk + RED[33:]


def table(*rows, separator=","):
    return "\n".join(["file_name,text".replace(",", separator), *rows]) + "\n"


PAIR = {"png": RED, "txt": "x"}


def without_captions(*names):
    return {f"{name}.png": RED for name in names}


# report -> files, exit status, what is printed
FOLDERS = {
    "HF datasets #5021: splits with capitals": (
        {"Train/a.png": RED, "Train/a.txt": "a", "Test/b.png": RED, "Test/b.txt": "b"},
        0,
        ["train: 1 captioned", "test: 1 captioned", "copies: 1 images of other splits have the pixels of one in train"],
    ),
    "HF datasets #4895: training and testing, below data": (
        {"data/training/a.png": RED, "data/training/a.txt": "a", "data/testing/b.png": RED, "data/testing/b.txt": "b"},
        0,
        ["train: 1 captioned", "test: 1 captioned"],
    ),
    "HF datasets #5021: a kind of thing called train": (
        {
            f"{name}/{i}.{suffix}": content
            for name in ("car", "train")
            for i in "ab"
            for suffix, content in PAIR.items()
        },
        0,
        ["2 x The image is outside the split folders: train. If they are no splits, set config.data.split_folders"],
    ),
    "lora-trainer PR #72: suffixes that are passed over": (
        CAPTIONED | {"e.jfif": picture(kind="JPEG"), "e.txt": "e", "f.jpe": picture(kind="JPEG"), "f.txt": "f"},
        0,
        ["train: 6 captioned"],
    ),
    "supervisely PR #839: a format that is not read": (
        CAPTIONED | {"e.psd": b"8BPS", "e.txt": "e"},
        0,
        ["rejected: 1", "1 x The format PSD is not read; convert it."],
    ),
    "kohya: captions in .caption": ({"a.png": RED, "a.caption": "a"}, 0, ["train: 1 captioned"]),
    "captions in a.png.txt": ({"a.png": RED, "a.png.txt": "a"}, 0, ["train: 1 captioned"]),
    "IMG.JPG and IMG.Txt": ({"IMG.JPG": picture(kind="JPEG"), "IMG.Txt": "a"}, 0, ["train: 1 captioned"]),
    "img2dataset, output format files": (
        {"000000000.jpg": picture(kind="JPEG"), "000000000.txt": "a", "000000000.json": "{}", "00000.parquet": b"PAR1"},
        0,
        ["train: 1 captioned"],
    ),
    "HF datasets PR #4069: metadata with semicolons": (
        without_captions("a") | {"metadata.csv": table("a.png;x", separator=";")},
        2,
        ["First of 1 problems: metadata.csv:2: The line names no image: expected file_name, found file_name;text"],
    ),
    "HF datasets PR #4069: a space in the header": (
        without_captions("a") | {"metadata.csv": "file_name, text\na.png, x\n"},
        0,
        ["train: 1 captioned"],
    ),
    "paths of Windows in metadata": (
        {"train/a.png": RED, "metadata.jsonl": lines({"file_name": "train\\a.png", "text": "x"})},
        0,
        ["train: 1 captioned"],
    ),
    "R: EOF within quoted string": (
        without_captions(*"abcd") | {"metadata.csv": table("a.png,one", 'b.png,"a 6 inch ruler', "c.png,3", "d.png,4")},
        0,
        ["train: 3 captioned", "The row is not valid CSV: a quote that opens here is not closed. (metadata.csv:3)"],
    ),
    "csvkit #382: a cell above the field limit": (
        without_captions(*"abc") | {"metadata.csv": table("a.png,one", "b.png," + "word " * 40_000, "c.png,three")},
        0,
        ["train: 2 captioned", "field larger than field limit"],
    ),
    "kohya sd-scripts #513: captions in Shift-JIS": (
        CAPTIONED | {"d.txt": "赤い犬".encode("shift_jis")},
        0,
        ["train: 3 captioned", "1 x The caption file d.txt is neither UTF-8 nor UTF-16"],
    ),
    "captions in GBK": (
        CAPTIONED | {"d.txt": "一只红色的狗".encode("gbk")},
        0,
        ["train: 3 captioned", "neither UTF-8"],
    ),
    "UTF-16 without a mark": (CAPTIONED | {"d.txt": "a dog".encode("utf-16-le")}, 0, ["contains NUL bytes"]),
    "a file name with U+2028": (
        CAPTIONED | {"x\u2028y.png": b"no picture", "x\u2028y.txt": "x"},
        0,
        ["train: 4 captioned", "rejected: 1"],
    ),
    "Pillow #2445: texts above a megabyte": ({"a.png": png_with_text(), "a.txt": "a"}, 0, ["train: 1 captioned"]),
    "a JPEG without its last bytes": (
        CAPTIONED | {"d.png": picture(kind="JPEG", size=(64, 64))[:-200]},
        0,
        ["rejected: 1", "truncated or broken"],
    ),
    "openai/CLIP #215: a strip": ({"a.png": picture(size=(1, 30_000)), "a.txt": "a"}, 0, ["train: 1 captioned"]),
    "DreamBooth: one image, whose digest is in test's share": (
        {"a.png": RED, "a.txt": "a"},
        0,
        ["train: 1 captioned"],
    ),
    "OneTrainer #62: captions of 300 words": (
        {"a.png": RED, "a.txt": "word " * 300},
        0,
        ["1 of 1 captions are truncated to config.tokenizer.context_length = 48 tokens; the longest has 302"],
    ),
    "a folder without captions": (without_captions("a"), 2, ["There are no captions in set: expected metadata.jsonl"]),
    "a folder without images": ({"a.doc": b"x"}, 2, ["There are no images in set"]),
}


@pytest.mark.parametrize("report", FOLDERS)
def test_a_reported_folder_is_prepared_or_refused_by_one_sentence(report, tmp_path):
    files, status, sentences = FOLDERS[report]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", files)
    command = ("prepare", "--config=folder_clip:tiny", "--config.data.path=set", "--config.data.max_rejected=0.7")
    test_fraction = "--config.data.test_fraction=" + ("0.99" if "DreamBooth" in report else "0.0")
    for _ in range(2):  # the second time the records are there, and the same is printed
        result = run_in_process(*command, test_fraction, cwd=tmp_path, check=False)
        output = result.stdout + result.stderr
        assert result.returncode == status, output
        assert "Traceback" not in output and (not status or len(result.stderr.strip().splitlines()) == 1)
        for sentence in sentences:
            assert sentence in " ".join(output.split()), output


@pytest.mark.parametrize("name", ["[a] b", "a*b", "x{y}", "back\\slash", "what?", "é", "a:b", "~t", "#", "$x"])
def test_folders_of_any_name_are_read_and_written(name, tmp_path):
    """tensorflow #34290, ray #15367, ultralytics PR #24353."""
    root = tmp_path / name
    root.mkdir()
    write(root, CAPTIONED)
    command = ("prepare", "--config=folder_clip:tiny", f"--config.data.path={root}", "--config.data.test_fraction=0.0")
    command += (f"--config.data.directory={tmp_path / name / 'data'}",)
    assert "train: 4 captioned" in run_in_process(*command, cwd=tmp_path).stdout
    assert "prepared already" in run_in_process(*command, cwd=tmp_path).stdout
    os.utime(root / "a.txt", (1e9, 1e9))
    (root / "README.md").write_text("mine")
    assert "prepared already" in run_in_process(*command, cwd=tmp_path).stdout
