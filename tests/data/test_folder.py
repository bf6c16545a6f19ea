"""The folder source on realistic folders: files written here, many of them broken."""

import json
import os
import resource
import shutil
import time
import tracemalloc
import unicodedata

import numpy as np
import pytest
from PIL import Image

from jdiff.data.captions import metadata_rows
from jdiff.data.decoding import CROPS
from jdiff.data.files import MAX_BYTES, File
from jdiff.data.folder import SPLIT_OF_FOLDER, Folder
from jdiff.data.labelled import LabelledFolder
from jdiff.data.record_writer import write_records
from jdiff.data.records import (
    DatasetNotPreparedError,
    Example,
    Records,
    changed_files,
    dataset_name,
    prepared_name,
)
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
        "binary.png": "caption file binary.txt contains NUL bytes",
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


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_lines_of_metadata_end_at_cr_lf_and_crlf(tmp_path, name, end):
    json_rows = [json.dumps({"file_name": f"{key}.png", "text": key}) for key in "ab"]
    rows = json_rows if name.endswith("jsonl") else ["file_name,text", "a.png,a", "b.png,b"]
    root = write(tmp_path, {"a.png": picture(), "b.png": picture(), name: end.join(rows).encode()})
    examples, rejected = read(Folder(root))
    assert {key: example.captions for key, example in examples.items()} == {"a.png": ("a",), "b.png": ("b",)}
    assert not rejected


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
    assert list(examples) == ["a.png"] and rejected["b.png"] == "It is a link to nowhere."


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
    assert set(SPLIT_OF_FOLDER.values()) == {"train", "test", "validation"}


def test_split_folders_with_metadata_at_the_root(tmp_path):
    rows = [{"file_name": "train/a.png", "text": "a"}, {"file_name": "test/a.png", "text": "b"}]
    files = {"train/a.png": picture(), "test/a.png": picture(), "metadata.jsonl": lines(*rows)}
    source = Folder(write(tmp_path, files))
    assert keys_by_split(source) == {"train": ["train/a.png"], "test": ["test/a.png"]}


def keys_by_split(source):
    return {split: [item.key for item in source.examples(split)] for split in source.splits()}


@pytest.mark.parametrize("folder", SPLIT_OF_FOLDER)
@pytest.mark.parametrize("parent", ["", "data/", "my pictures/Images/"])
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
def test_a_folder_with_the_name_of_a_split_is_that_split(tmp_path, folder, parent, spelling):
    other = "train" if SPLIT_OF_FOLDER[folder] != "train" else "test"
    names = {SPLIT_OF_FOLDER[folder]: f"{parent}{spelling(folder)}/x/a", other: f"{parent}{spelling(other)}/a"}
    files = {f"{name}.png": picture() for name in names.values()} | {f"{name}.txt": "a" for name in names.values()}
    root = write(tmp_path, files | {"README.md": "a set"})
    assert keys_by_split(Folder(root)) == {split: [f"{name}.png"] for split, name in names.items()}


def test_a_kind_of_thing_that_is_called_train_is_no_split_on_request(tmp_path):
    files = {f"{folder}/{i}.png": picture() for folder in ("car", "train") for i in range(3)}
    root = write(tmp_path, files | {name.replace("png", "txt"): "a" for name in files})
    assert all("config.data.split_folders" in reason for reason in read(Folder(root))[1].values())
    assert set(read(Folder(root, split_folders=False))[0]) == set(files)


def test_metadata_of_a_split_may_not_reach_into_another(tmp_path):
    files = {"train/a.png": picture(), "test/a.png": picture(), "train/a.txt": "a", "test/a.txt": "b"}
    files["train/metadata.jsonl"] = lines({"file_name": "../test/a.png", "text": "c"})
    examples, rejected = read(Folder(write(tmp_path, files)))
    assert examples["test/a.png"].captions == ("b",) and "leads out" in rejected["train/metadata.jsonl:1"]


def test_test_fraction_zero_gives_no_test_split(tmp_path):
    root = write(tmp_path, {"a.png": picture(), "a.txt": "x"})
    assert Folder(root, test_fraction=0).splits() == ("train",)


def test_examples_are_in_the_order_of_their_names(tmp_path):
    root = write(tmp_path, {f"{name}.png": picture() for name in "cab"} | {f"{name}.txt": "x" for name in "cab"})
    assert [item.key for item in Folder(root, test_fraction=0).examples("train")] == ["a.png", "b.png", "c.png"]


# --- identity and errors ---------------------------------------------------------------------------------------------


def with_captions(*names):
    return {f"{name}.png": picture() for name in names} | {f"{name}.txt": name for name in names}


def change_nothing(root):
    """What a copy, an editor, an operating system and jdiff itself do to a folder of images."""
    os.utime(root / "a.txt", (1_000_000, 1_000_000))
    files = {
        "README.md": "mine",
        "Thumbs.db": b"\0",
        ".DS_Store": b"\0",
        "data/captioned_images/folder_64_abc/1.1.0/x.png": picture(),
        "run/config.json": "{}",
        "run/tokenizer.json": "{}",
        "run/samples/step_2.png": picture(),
        "out/000000.png": picture(),
        "out/000000.json": json.dumps({"workdir": "run", "step": 2}),
    }
    write(root, files)


CHANGES = {
    "caption": lambda root: (root / "a.txt").write_text("b"),  # of the same length
    "pixels": lambda root: (root / "a.png").write_bytes(picture(GREEN)),
    "added": lambda root: write(root, with_captions("c")),
    "removed": lambda root: (root / "b.png").unlink(),
    "renamed": lambda root: [(root / f"b.{suffix}").rename(root / f"z.{suffix}") for suffix in ("png", "txt")],
    "metadata": lambda root: (root / "metadata.csv").write_text("file_name,text\na.png,other\n"),
}


def test_equal_pictures_and_captions_are_equal_data(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name, with_captions("a", "b"))
    first, second = (Folder(str(tmp_path / name)) for name in ("first", "second"))
    assert json.loads(json.dumps(first.identity())) == first.identity() == second.identity()
    change_nothing(tmp_path / "second")
    copy = Folder(str(tmp_path / "second"))
    assert copy.identity() == first.identity() and copy.file_sizes() == first.file_sizes()
    assert read(copy)[1] == {}
    for options in ({"crop": "pad"}, {"image_size": 32}, {"test_fraction": 0.0}, {"split_folders": False}):
        assert Folder(str(tmp_path / "first"), **options).identity() != first.identity()


@pytest.mark.parametrize("change", CHANGES)
def test_another_picture_or_caption_is_other_data(tmp_path, change):
    root = tmp_path / "set"
    write(root, with_captions("a", "b"))
    identity = Folder(str(root)).identity()
    CHANGES[change](root)
    assert Folder(str(root)).identity() != identity


def test_records_are_found_without_the_folder_and_changes_of_it_are_reported(tmp_path):
    root = tmp_path / "set"
    write(root, with_captions("a", "b"))
    with pytest.raises(DatasetNotPreparedError, match=r"no prepared data of .*set .*run `jdiff prepare`"):
        prepared_name(Folder(str(root)), tmp_path)
    write_records(Folder(str(root)), tmp_path)
    name = dataset_name(Folder(str(root)))
    assert changed_files(Folder(str(root)), tmp_path) == ""
    write(root, {**with_captions("c"), "b.txt": "longer"})
    (root / "a.png").unlink()
    changes = changed_files(Folder(str(root)), tmp_path)
    assert changes == "2 added (c.png, ...), 2 removed (a.png, ...), 1 changed (b.txt)"
    shutil.rmtree(root)
    assert changed_files(Folder(str(root)), tmp_path) == ""
    assert prepared_name(Folder(str(root)), tmp_path) == name and len(Records(tmp_path, name).split("train")) == 2


def test_errors_name_the_config_key_or_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*config.data.path"):
        Folder(str(tmp_path / "none")).check()
    with pytest.raises(ValueError, match="There are no images in"):
        Folder(write(tmp_path / "empty", {"a.txt": "x"})).check()
    with pytest.raises(ValueError, match="There are no captions in .*metadata.jsonl"):
        Folder(write(tmp_path / "silent", {"a.png": picture()})).check()
    table = "image,caption\na.png,x\n"
    with pytest.raises(ValueError, match="expected file_name, found image, caption"):
        Folder(write(tmp_path / "columns", {"a.png": picture(), "metadata.csv": table})).check()
    root = write(tmp_path / "good", {"a.png": picture(), "a.txt": "x"})
    with pytest.raises(ValueError, match="expected one of center, squash, pad, clip"):
        Folder(root, crop="middle")
    with pytest.raises(ValueError, match="test_fraction is 5"):
        Folder(root, test_fraction=5)
    with pytest.raises(ValueError, match="image_size is 0"):
        Folder(root, image_size=0)
    with pytest.raises(ValueError, match="expected one of train"):
        next(Folder(root, test_fraction=0).examples("dev"))


# --- files that are passed over, or may not be opened ----------------------------------------------------------------


KINDS = {
    **dict.fromkeys((".jfif", ".jpe", ".JPG"), "JPEG"),
    **dict.fromkeys((".apng", ".Png"), "PNG"),
    **{".webp": "WEBP", ".avif": "AVIF", ".gif": "GIF"},
}


@pytest.mark.parametrize("suffix", KINDS)
def test_images_of_every_suffix_are_read(tmp_path, suffix):
    kind = KINDS[suffix]
    examples, rejected = read(Folder(write(tmp_path, {f"a{suffix}": picture(kind=kind), "a.txt": "x"})))
    assert list(examples) == [f"a{suffix}"] and not rejected


@pytest.mark.parametrize("suffix", [".heic", ".heif", ".jxl"])
def test_formats_of_other_packages_are_read(tmp_path, suffix):
    plugin = pytest.importorskip("pillow_jxl" if suffix == ".jxl" else "pillow_heif")
    if suffix != ".jxl":
        plugin.register_heif_opener()
    image = picture(size=(64, 64), kind="JXL" if suffix == ".jxl" else "HEIF")
    examples, rejected = read(Folder(write(tmp_path, {f"a{suffix}": image, "a.txt": "x"})))
    assert not rejected
    assert np.abs(examples[f"a{suffix}"].image.astype(int) - RED).mean() < 5  # lossy


@pytest.mark.parametrize("name", ["a.svg", "a.psd", "a.tga", "a.dng", "a.unheard_of", "a"])
def test_a_file_with_a_caption_that_is_not_read_is_named(tmp_path, name):
    root = write(tmp_path, {name: b"x", "a.txt": "x", "b.png": picture(), "b.txt": "x"})
    examples, rejected = read(Folder(root))
    assert list(examples) == ["b.png"] and list(rejected) == [name]


@pytest.mark.parametrize("sidecar", ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.png.txt", "a.png.caption"])
def test_captions_beside_images_have_these_names(tmp_path, sidecar):
    examples, rejected = read(Folder(write(tmp_path, {"a.png": picture(), sidecar: "x", "a.json": "{}"})))
    assert examples["a.png"].captions == ("x",) and not rejected


def test_one_of_two_names_that_differ_in_composition_is_named(tmp_path):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    root = write(tmp_path, {f"{name}.{suffix}": content for name in names for suffix, content in SIDE_BY_SIDE.items()})
    examples, rejected = read(Folder(root))
    assert len(examples) == 1 and "Unicode composition" in " ".join(rejected.values())


SIDE_BY_SIDE = {"png": picture(), "txt": "x"}


@pytest.mark.parametrize("name", ["train\\a.png", "{root}/train/a.png", "./train/a.png", " train/a.png"])
def test_names_in_metadata_may_be_spelt_in_these_ways(tmp_path, name):
    rows = lines({"file_name": name.format(root=tmp_path), "text": "x"})
    examples, rejected = read(Folder(write(tmp_path, {"train/a.png": picture(), "metadata.jsonl": rows})))
    assert examples["train/a.png"].captions == ("x",) and not rejected


def make_pipe(root, elsewhere):
    os.mkfifo(root / "b.png")


def make_caption_pipe(root, elsewhere):
    write(root, {"b.png": picture()})
    os.mkfifo(root / "b.txt")


def link_device(root, elsewhere):
    os.symlink("/dev/zero", root / "b.png")


def link_caption(root, elsewhere):
    write(root, {"b.png": picture()})
    os.symlink("/etc/passwd", root / "b.txt")


def link_image(root, elsewhere):
    os.symlink(elsewhere / "secret.png", root / "b.png")


def link_folder(root, elsewhere):
    os.symlink(elsewhere, root / "b", target_is_directory=True)


@pytest.mark.parametrize(
    "trap", [make_pipe, make_caption_pipe, link_device, link_caption, link_image, link_folder], ids=lambda f: f.__name__
)
def test_only_regular_files_inside_the_folder_are_opened(tmp_path, trap):
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    write(root, with_captions("a"))
    write(elsewhere, with_captions("secret"))
    trap(root, elsewhere)
    examples, rejected = read(Folder(str(root)))
    assert list(examples) == ["a.png"] and len(rejected) == 1 and next(iter(rejected)).startswith("b")


def test_what_cannot_be_read_is_named(tmp_path):
    """A link to nowhere, a linked folder with a dot in its name, and an image beside which there is nested JSON."""
    write(tmp_path, with_captions("a") | {"b.txt": "b", "elsewhere/c.png": picture(), "d.png": picture()})
    (tmp_path / "d.json").write_text("[" * 200_000)
    os.symlink("/nonexistent", tmp_path / "b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "cats.v2", target_is_directory=True)
    examples, rejected = read(Folder(str(tmp_path)))
    assert list(examples) == ["a.png"] and set(rejected) == {"b.png", "cats.v2", "elsewhere/c.png", "d.png"}


def test_a_file_that_changes_while_the_folder_is_read_is_rejected(tmp_path):
    write(tmp_path, with_captions("a", "b"))
    source = Folder(str(tmp_path), test_fraction=0.0)
    source.identity()
    (tmp_path / "a.png").write_bytes(picture(GREEN)[: len(picture())].ljust(len(picture()), b"\0"))
    examples, rejected = read(source)
    assert list(examples) == ["b.png"] and "was changed" in rejected["a.png"]


def test_unusable_items_are_part_of_the_identity(tmp_path):
    """So that prepare counts them again, and compares them with config.data.max_rejected."""
    write(tmp_path, with_captions("a"))
    identity = Folder(str(tmp_path)).identity()
    write(tmp_path, {"b.png": picture()})
    assert Folder(str(tmp_path)).identity() != identity


def test_reading_takes_time_in_proportion_to_the_files(tmp_path):
    """No list is searched for every file, and no line is read again for every row."""
    text = "file_name,text\n" + "".join(f"{i}.png,caption {i}\n" for i in range(100_000))
    start = time.process_time()
    assert sum(1 for _ in metadata_rows(text, "metadata.csv", "/set")) == 100_000
    source = Folder(str(tmp_path))
    names = [f"{i}.{suffix}" for i in range(20_000) for suffix in ("png", "txt")]
    vars(source)["_files"] = {name: File(name, 0) for name in names}
    assert source._problems == [] and len(source._images) == 20_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("spelling", ["{root}/set", "{root}/set/", "{root}/./set", "{root}/x/../set"])
def test_records_are_found_by_any_spelling_of_the_path(tmp_path, spelling):
    write(tmp_path / "set", with_captions("a"))
    write_records(Folder(str(tmp_path / "set")), tmp_path)
    source = Folder(spelling.format(root=tmp_path))
    assert prepared_name(source, tmp_path) == dataset_name(Folder(str(tmp_path / "set")))


def test_a_link_within_the_folder_is_read(tmp_path):
    write(tmp_path, with_captions("a"))
    os.symlink(tmp_path / "a.png", tmp_path / "b.png")
    os.symlink("a.txt", tmp_path / "b.txt")
    os.symlink(tmp_path, tmp_path / "loop", target_is_directory=True)
    examples, rejected = read(Folder(str(tmp_path)))
    assert list(examples) == ["a.png", "b.png"] and list(rejected) == ["loop"]


def test_a_strip_takes_little_memory(tmp_path):
    """An image of 1 x 65,000 pixels has 332 bytes; as a whole at 224 pixels it would have 13 GB."""
    write(tmp_path, {"a/strip.png": picture(size=(1, 65_000)), "b/plain.png": picture()})
    tracemalloc.start()
    for crop in CROPS:
        assert len(list(LabelledFolder(tmp_path, 224, crop).examples())) == 2
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**22  # in KiB
