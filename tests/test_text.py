"""People's text: encodings, line ends, white space; and that every file of text is read by the same function."""

import sys
from functools import partial

import pytest

from jdiff.data.folder import Folder
from jdiff.data.labelled import LabelledFolder
from jdiff.evaluation.zero_shot import read_templates
from jdiff.text import NotText, clean_text, decode_text, read_lines, split_lines
from tests.data.pictures import picture

SENTENCE = "ein rotes Fahrrad, größer als 你"
UNICODE_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


def encoded(text, encoding):
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    return marks.get(encoding, b"") + text.encode(encoding)


@pytest.mark.parametrize("encoding", UNICODE_ENCODINGS)
def test_unicode_text_is_read_with_and_without_a_mark(encoding):
    assert decode_text(encoded(SENTENCE, encoding)) == SENTENCE


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gbk", "一只红色的狗"),
        ("big5", "一隻紅色的狗"),
        ("shift_jis", "赤い犬"),
        ("euc_kr", "빨간 개"),
        ("koi8_r", "красная собака"),
        ("cp1251", "красная собака"),
        ("latin-1", "café"),
        ("utf_16_be", "a red dog"),
        ("utf_32", "a red dog"),
    ],
)
def test_other_encodings_are_refused_by_the_name_of_the_file(encoding, text):
    with pytest.raises(NotText, match=r"a\.txt .*save it as UTF-8"):
        decode_text(text.encode(encoding), "a.txt")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_end_at_cr_lf_and_crlf(end):
    assert split_lines(f"a{end}{end}b{end}") == ["a", "", "b"]


def test_no_other_character_ends_a_line():
    separators = [c for c in map(chr, range(sys.maxunicode)) if len(f"a{c}b".splitlines()) > 1 and c not in "\r\n"]
    assert len(separators) > 5
    for separator in separators:
        assert split_lines(f"a{separator}b") == [f"a{separator}b"]


def test_white_space_of_any_kind_is_one_space_and_halves_of_characters_go():
    spaces = [c for c in map(chr, range(sys.maxunicode)) if c.isspace()]
    assert {"\u00a0", "\u2028", "\u3000"} < set(spaces)
    for space in spaces:
        assert clean_text(f"{space}a{space}{space}red dog{space}") == "a red dog"
    assert clean_text("caf\udce9") == "caf"


def readers(folder):
    """What reads a file of text that contains the line "a {} of SENTENCE", as (file, function, result)."""
    line, folder_source = f"a {{}} of {SENTENCE}", partial(Folder, folder, 8, test_fraction=0.0)
    (folder / "kind").mkdir()
    (folder / "kind" / "a.png").write_bytes(picture())
    yield "lines.txt", line, lambda path: read_lines(path) == [line]
    yield "templates.txt", line, lambda path: read_templates(path) == [line]
    yield "classes.txt", f"kind\t{line}", lambda path: LabelledFolder(folder, 8).names() == [line]
    rows = f'file_name,text\nkind/a.png,"{line}"\n'
    for name, content in (("kind/a.txt", line), ("metadata.csv", rows)):
        yield name, content, lambda path: next(folder_source().examples("train")).captions == (line,)


@pytest.mark.parametrize("encoding", UNICODE_ENCODINGS)
@pytest.mark.parametrize("kind", range(5))
def test_every_file_of_text_is_read_in_every_encoding(tmp_path, kind, encoding):
    name, content, is_read = list(readers(tmp_path))[kind]
    (tmp_path / name).write_bytes(encoded(content, encoding))
    assert is_read(tmp_path / name)
