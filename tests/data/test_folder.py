"""The folder source on realistic folders: files written here, many of them broken."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from jdiff.data.folder import MAX_BYTES, SPLIT_FOLDERS, Folder
from jdiff.data.records import Example
from tests.data.pictures import GREEN, RED, picture, read


def write(root, files: dict) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(root)


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# --- captions --------------------------------------------------------------------------------------------------------


def test_metadata_jsonl_with_one_or_many_captions(tmp_path):
    rows = [
        {"file_name": "a.png", "text": "a red field"},
        {"file_name": "sub/b.png", "text": ["green", "a green field"]},
    ]
    root = write(tmp_path, {"a.png": picture(), "sub/b.png": picture(GREEN), "metadata.jsonl": lines(*rows)})
    examples, rejected = read(Folder(root, image_size=4))
    assert not rejected
    assert examples["a.png"].captions == ("a red field",)
    assert examples["sub/b.png"].captions == ("green", "a green field")
    assert examples["a.png"].image.shape == (4, 4, 3)
    assert (examples["a.png"].image == RED).all() and (examples["sub/b.png"].image == GREEN).all()
    assert examples["a.png"].metadata == {"file_name": "a.png"}


def test_metadata_csv_with_quotes_commas_and_line_breaks(tmp_path):
    table = 'file_name,artist,text\r\na.png,x,"a ""red"", plain field"\r\nb.png,y,"two\nlines"\r\n'
    root = write(tmp_path, {"a.png": picture(), "b.png": picture(), "metadata.csv": "\ufeff" + table})
    examples, rejected = read(Folder(root))
    assert not rejected
    assert examples["a.png"].captions == ('a "red", plain field',)
    assert examples["b.png"].captions == ("two lines",)


def test_sidecars_have_a_caption_per_line(tmp_path):
    root = write(
        tmp_path, {"a.JPG": picture(kind="JPEG"), "a.txt": "one\r\n\r\n  two  words \r\none\r\n", "notes.txt": "x"}
    )
    examples, rejected = read(Folder(root))
    assert not rejected
    assert examples["a.JPG"].captions == ("one", "two words")


@pytest.mark.parametrize(("on_disk", "in_metadata"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_unicode_names_match_composed_and_decomposed(tmp_path, on_disk, in_metadata):
    name = "Bär 日本 😀.png"
    row = {"file_name": unicodedata.normalize(in_metadata, name), "text": "a bear"}
    root = write(tmp_path, {unicodedata.normalize(on_disk, name): picture(), "metadata.jsonl": lines(row)})
    examples, rejected = read(Folder(root))
    assert not rejected and list(examples) == [unicodedata.normalize("NFC", name)]


def test_hidden_files_and_files_of_other_kinds_are_ignored(tmp_path):
    files = {
        "a.png": picture(),
        "a.txt": "x",
        ".DS_Store": b"\0",
        "._a.png": b"\0",
        "README.md": "hi",
        ".cache/b.png": b"x",
    }
    examples, rejected = read(Folder(write(tmp_path, files)))
    assert list(examples) == ["a.png"] and not rejected


def test_an_image_in_the_metadata_needs_no_suffix(tmp_path):
    root = write(tmp_path, {"0001": picture(), "metadata.jsonl": lines({"file_name": "0001", "text": "x"})})
    assert list(read(Folder(root))[0]) == ["0001"]


# --- unusable items --------------------------------------------------------------------------------------------------


def test_every_kind_of_unusable_item_is_rejected_with_its_reason_and_others_are_read(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(tmp_path / "complete.jpg")
    jpeg = (tmp_path / "complete.jpg").read_bytes()
    metadata = [
        json.dumps({"file_name": "good.png", "text": "good"}),
        json.dumps({"file_name": "missing.png", "text": "x"}),
        json.dumps({"file_name": "noise.png", "text": "x"}),
        json.dumps({"file_name": "cut.jpg", "text": "x"}),
        json.dumps({"file_name": "zero.png", "text": "x"}),
        json.dumps({"file_name": "large.png", "text": "x"}),
        json.dumps({"file_name": "blank.png", "text": " \t"}),
        json.dumps({"file_name": "none.png"}),
        json.dumps({"file_name": "number.png", "text": 7}),
        json.dumps({"file_name": "../secret.png", "text": "x"}),
        json.dumps({"file_name": "/etc/hostname", "text": "x"}),
        json.dumps({"file_name": "sub/../../secret.png", "text": "x"}),
        '{"file_name": "good.png", "text": ',
        "[1, 2]",
        json.dumps({"text": "whose?"}),
        json.dumps({"file_name": "good.png", "text": "again"}),
        "",
    ]
    root = tmp_path / "set"
    files = {
        "good.png": picture(),
        "noise.png": b"not an image at all",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "zero.png": b"",
        "large.png": picture(size=(50, 50)),
        "blank.png": picture(),
        "none.png": picture(),
        "number.png": picture(),
        "alone.png": picture(),
        "silent.png": picture(),
        "silent.txt": "\n \n",
        "binary.png": picture(),
        "binary.txt": b"a\0b",
        "../secret.png": picture(),
        "metadata.jsonl": "\n".join(metadata),
    }
    root.mkdir()
    examples, rejected = read(Folder(write(root, files), max_pixels=2000))
    assert list(examples) == ["good.png"] and examples["good.png"].captions == ("good",)
    expected = {
        "missing.png": "no such file",
        "noise.png": "not an image",
        "cut.jpg": "truncated",
        "zero.png": "file is empty",
        "large.png": "50 x 50 pixels",
        "blank.png": "caption is empty",
        "none.png": "no caption",
        "number.png": "text is 7",
        "alone.png": "no caption",
        "silent.png": "caption is empty",
        "binary.png": "binary data",
        "metadata.jsonl:10": "leads out",
        "metadata.jsonl:11": "leads out",
        "metadata.jsonl:12": "leads out",
        "metadata.jsonl:13": "not JSON",
        "metadata.jsonl:14": "expected a JSON object",
        "metadata.jsonl:15": "names no image",
        "metadata.jsonl:16": "duplicate: metadata.jsonl:1 ",
    }
    assert set(rejected) == set(expected)
    for key, words in expected.items():
        assert words in rejected[key], (key, rejected[key])


def test_a_truncated_image_is_rejected_among_sidecars_too(tmp_path):
    files = {"a.jpg": picture(kind="JPEG", size=(64, 64))[:-200], "a.txt": "x", "b.png": picture(), "b.txt": "y"}
    examples, rejected = read(Folder(write(tmp_path, files)))
    assert list(examples) == ["b.png"] and "truncated" in rejected["a.jpg"]


BAD_ROWS = {
    "b.png,two,three": "more cells",
    "b.png": "no caption",
    'b.png,"a quote that is not closed': "not closed",
    'b.png,"closed" too early': "not valid CSV",
    "b.png," + "word " * 40_000: "field limit",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:20])
@pytest.mark.parametrize("last", ["c.png,three", 'c.png,"three"', '"c.png","three"'])
def test_a_malformed_csv_row_takes_no_other_row_with_it(tmp_path, row, last):
    files = {f"{name}.png": picture() for name in "abc"}
    root = write(tmp_path, files | {"metadata.csv": f"file_name,text\na.png,one\n{row}\n{last}\n"})
    examples, rejected = read(Folder(root))
    assert {key: example.captions for key, example in examples.items()} == {"a.png": ("one",), "c.png": ("three",)}
    assert BAD_ROWS[row] in " ".join(rejected.values())


def test_sidecars_are_read_despite_a_broken_metadata_file(tmp_path):
    root = write(tmp_path, {"a.png": picture(), "a.txt": "x", "metadata.jsonl": b"\xff\xfe\0\1\0\0\0"})
    examples, rejected = read(Folder(root))
    assert list(examples) == ["a.png"] and len(rejected) >= 1


def test_a_link_to_nowhere_is_a_missing_file(tmp_path):
    os.symlink(tmp_path / "nowhere.png", tmp_path / "b.png")
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "b.png")]
    root = write(tmp_path, {"a.png": picture(), "metadata.jsonl": lines(*rows)})
    examples, rejected = read(Folder(root))
    assert list(examples) == ["a.png"] and "no such file" in rejected["b.png"]


def test_a_file_too_large_for_memory_is_not_read(tmp_path):
    root = write(tmp_path, {"a.png": picture(), "a.txt": "x", "b.png": b"", "b.txt": "x"})
    os.truncate(tmp_path / "b.png", MAX_BYTES + 1)  # a sparse file
    examples, rejected = read(Folder(root))
    assert list(examples) == ["a.png"] and f"more than the {MAX_BYTES}" in rejected["b.png"]


def test_lone_surrogates_are_removed_from_captions_and_escaped_in_reports(tmp_path):
    """Captions cut in the middle of an emoji, and file names that are not UTF-8, are common in scraped collections."""
    rows = '{"file_name": "a.png", "text": "a dog \\ud83d"}\n{"file_name": "\\ud83d.png", "text": "x"}\n'
    root = write(tmp_path, {"a.png": picture(), "metadata.jsonl": rows})
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(picture())
    examples, rejected = read(Folder(root))
    assert examples["a.png"].captions == ("a dog",)
    assert len(rejected) == 2 and any("not Unicode" in reason for reason in rejected.values())
    assert json.dumps(rejected, ensure_ascii=False).encode()


# --- splits ----------------------------------------------------------------------------------------------------------


def test_split_folders_with_metadata_in_each(tmp_path):
    files = {}
    for number, folder in enumerate(("train", "test", "val")):
        files[f"{folder}/0.png"] = picture()
        files[f"{folder}/metadata.jsonl"] = lines({"file_name": "0.png", "text": f"caption {number}"})
    files["stray.png"] = picture()
    source = Folder(write(tmp_path, files))
    assert source.splits() == ("train", "test", "validation")
    captions = {s: [i.captions for i in source.examples(s) if isinstance(i, Example)] for s in source.splits()}
    assert captions == {"train": [("caption 0",)], "test": [("caption 1",)], "validation": [("caption 2",)]}
    assert "outside" in read(source)[1]["stray.png"]
    assert set(SPLIT_FOLDERS.values()) == {"train", "test", "validation"}


def test_split_folders_with_metadata_at_the_root(tmp_path):
    rows = [{"file_name": "train/a.png", "text": "a"}, {"file_name": "test/a.png", "text": "b"}]
    files = {"train/a.png": picture(), "test/a.png": picture(), "metadata.jsonl": lines(*rows)}
    source = Folder(write(tmp_path, files))
    assert {s: [e.key for e in source.examples(s)] for s in source.splits()} == {
        "train": ["train/a.png"],
        "test": ["test/a.png"],
    }


def test_metadata_of_a_split_may_not_reach_into_another(tmp_path):
    files = {"train/a.png": picture(), "test/a.png": picture(), "train/a.txt": "a", "test/a.txt": "b"}
    files["train/metadata.jsonl"] = lines({"file_name": "../test/a.png", "text": "c"})
    examples, rejected = read(Folder(write(tmp_path, files)))
    assert examples["test/a.png"].captions == ("b",) and "leads out" in rejected["train/metadata.jsonl:1"]


def test_the_hash_split_depends_on_the_file_name_only(tmp_path):
    names = [f"{number:03d}.png" for number in range(300)]
    root = write(tmp_path, {name: picture() for name in names} | {name[:-4] + ".txt": "x" for name in names})
    source = Folder(root, image_size=2, test_fraction=0.2)
    test_keys = {item.key for item in source.examples("test")}
    assert 35 <= len(test_keys) <= 85  # 60 of 300, within 3.6 standard deviations
    assert test_keys | {item.key for item in source.examples("train")} == set(names)
    for name in names[::2]:
        os.remove(f"{root}/{name}")
    fewer = {item.key for item in Folder(root, image_size=2, test_fraction=0.2).examples("test")}
    assert fewer == test_keys & set(names[1::2])


def test_test_fraction_zero_gives_no_test_split(tmp_path):
    root = write(tmp_path, {"a.png": picture(), "a.txt": "x"})
    assert Folder(root, test_fraction=0).splits() == ("train",)


def test_examples_are_in_the_order_of_their_names(tmp_path):
    root = write(tmp_path, {f"{name}.png": picture() for name in "cab"} | {f"{name}.txt": "x" for name in "cab"})
    assert [item.key for item in Folder(root, test_fraction=0).examples("train")] == ["a.png", "b.png", "c.png"]


# --- identity and errors ---------------------------------------------------------------------------------------------


def test_identity_changes_with_content_and_options_but_not_with_the_path(tmp_path):
    files = {
        "a.png": picture(),
        "b.png": picture(),
        "b.txt": "x",
        "metadata.jsonl": lines({"file_name": "a.png", "text": "x"}),
    }
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        write(root, files)
        for name in files:
            os.utime(root / name, (1_000_000, 1_000_000))
    identity = Folder(str(first)).identity()
    assert json.loads(json.dumps(identity)) == identity == Folder(str(second)).identity()
    assert Folder(str(first), crop="pad").identity() != identity
    assert Folder(str(first), image_size=32).identity() != identity

    (first / "metadata.jsonl").write_text(lines({"file_name": "a.png", "text": "y"}))  # same length
    os.utime(first / "metadata.jsonl", (1_000_000, 1_000_000))  # and same second
    assert Folder(str(first)).identity() != identity
    os.utime(second / "b.txt", (2_000_000, 2_000_000))
    assert Folder(str(second)).identity() != identity


def test_errors_name_the_config_key_or_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*config.data.path"):
        Folder(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="There are no images in"):
        Folder(write(tmp_path / "empty", {"a.txt": "x"}))
    with pytest.raises(ValueError, match="There are no captions in .*metadata.jsonl"):
        Folder(write(tmp_path / "silent", {"a.png": picture()}))
    table = "image,caption\na.png,x\n"
    with pytest.raises(ValueError, match="expected file_name, found image, caption"):
        Folder(write(tmp_path / "columns", {"a.png": picture(), "metadata.csv": table}))
    root = write(tmp_path / "good", {"a.png": picture(), "a.txt": "x"})
    with pytest.raises(ValueError, match="expected one of center, squash, pad, clip"):
        Folder(root, crop="middle")
    with pytest.raises(ValueError, match="test_fraction is 5"):
        Folder(root, test_fraction=5)
    with pytest.raises(ValueError, match="image_size is 0"):
        Folder(root, image_size=0)
    with pytest.raises(ValueError, match="expected one of train"):
        next(Folder(root, test_fraction=0).examples("dev"))
