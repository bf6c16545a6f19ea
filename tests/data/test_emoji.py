"""The emoji source: names against Unicode's, pictures against the font, and a split that holds pairs out."""

import unicodedata
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image, ImageFont

from jdiff.data.emoji import Emoji, glyphs, man_woman_pairs, source, symbols
from jdiff.data.emoji.names import GENDERS, PROFESSIONS, TONES


def font_is_here() -> bool:
    try:
        return glyphs.find_font().is_file()
    except FileNotFoundError:
        return False


needs_font = pytest.mark.skipif(not font_is_here(), reason="needs the font Noto Color Emoji: fonts-noto-color-emoji")


def symbol_of(name: str):
    return next(symbol for symbol in symbols() if symbol.name == name)


@pytest.fixture(scope="module")
def emoji():
    return Emoji(image_size=64)


@pytest.fixture(scope="module")
def examples_by_split(emoji):
    return {split: list(emoji.examples(split)) for split in emoji.splits()}


@pytest.fixture(scope="module")
def examples_by_name(examples_by_split):
    return {example.metadata["name"]: example for examples in examples_by_split.values() for example in examples}


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("characters", "name", "group"),
    [  # as in Unicode's emoji-test.txt, but for the punctuation
        ("\U0001f600", "grinning face", "character"),
        ("\U0001f468\u200d\U0001f373", "man cook", "joined"),
        ("\U0001f468\U0001f3fd\u200d\U0001f373", "man cook, medium skin tone", "joined"),
        ("\U0001f469\U0001f3fe\u200d\U0001f680", "woman astronaut, medium-dark skin tone", "joined"),
        ("\U0001f44b\U0001f3ff", "waving hand, dark skin tone", "skin tone"),
        ("\U0001f469\U0001f3fb\u200d\U0001f9b0", "woman with red hair, light skin tone", "joined"),
        ("\U0001f1f3\U0001f1f1", "flag of Netherlands", "flag"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "flag of Scotland", "flag"),
        ("7\ufe0f\u20e3", "keycap 7", "keycap"),
        (
            "\U0001f468\U0001f3ff\u200d\U0001f91d\u200d\U0001f468\U0001f3fb",
            "men holding hands, dark and light skin tone",
            "joined",
        ),
    ],
)
def test_names_are_unicodes(characters, name, group):
    symbol = next(symbol for symbol in symbols() if symbol.characters == characters)
    assert (symbol.name, symbol.captions[0], symbol.group) == (name, name, group)


def test_single_characters_have_the_names_of_the_unicode_database():
    """CLDR's short names differ from the character names, but share the main word of animals and things."""
    for character, word in {
        "\U0001f431": "CAT",
        "\U0001f34e": "APPLE",
        "\U0001f697": "AUTOMOBILE",
        "\u2708": "AIRPLANE",
    }.items():
        assert word in unicodedata.name(character)
        symbol = next(symbol for symbol in symbols() if symbol.characters.startswith(character))
        assert word.lower() in symbol.name


def test_names_and_keys_are_unique():
    assert len({symbol.name for symbol in symbols()}) == len({symbol.key for symbol in symbols()}) == len(symbols())


def test_captions_are_plain_words_and_unique_to_one_emoji():
    owners = defaultdict(set)
    for symbol in symbols():
        assert len(set(symbol.captions)) == len(symbol.captions) >= 2
        for caption in symbol.captions:
            assert "_" not in caption and ":" not in caption and caption == " ".join(caption.split())
            owners[caption.casefold()].add(symbol.key)
    assert not {caption: keys for caption, keys in owners.items() if len(keys) > 1}


def test_aliases_are_extra_captions_unless_another_emoji_has_them():
    assert "car" in symbol_of("automobile").captions
    assert "cat" not in symbol_of("cat face").captions  # the emoji cat has that name


def test_every_person_of_a_profession_has_gender_and_tone_from_its_code_points():
    people = Counter((symbol.profession, symbol.gender, symbol.tone) for symbol in symbols() if symbol.profession)
    assert set(people) == {(job, gender, tone) for job in PROFESSIONS for gender in GENDERS for tone in (*TONES, None)}
    assert set(people.values()) == {1}
    for symbol in symbols():
        if symbol.profession:
            male = "\U0001f468" in symbol.characters or "\u2642" in symbol.characters
            female = "\U0001f469" in symbol.characters or "\u2640" in symbol.characters
            assert symbol.gender == ("man" if male else "woman" if female else "person")
        if symbol.tone:
            assert chr(0x1F3FB + TONES.index(symbol.tone)) in symbol.characters


def test_man_woman_pairs_differ_only_in_gender():
    pairs = man_woman_pairs(symbol.name for symbol in symbols())
    assert {
        ("man", "woman"),
        ("man cook", "woman cook"),
        ("man cook, dark skin tone", "woman cook, dark skin tone"),
    } <= set(pairs)
    assert not any("merman" in man or man.startswith(("mango", "mantelpiece", "manual")) for man, _ in pairs)
    assert man_woman_pairs(["man cook", "woman pilot", "woman cook"]) == [("man cook", "woman cook")]


def test_one_skin_tone_of_each_profession_is_held_out():
    """Training keeps every profession, gender and tone; the split does not depend on the font."""
    people = [symbol for symbol in symbols() if symbol.profession and symbol.tone]
    held_out = [symbol for symbol in people if source.split_of(symbol) == "test"]
    assert Counter((symbol.profession, symbol.gender) for symbol in held_out) == Counter(
        {(job, gender): 1 for job in PROFESSIONS for gender in GENDERS}
    )
    trained = [symbol for symbol in people if source.split_of(symbol) == "train"]
    pairs = [{(symbol.profession, symbol.tone) for symbol in symbols} for symbols in (held_out, trained)]
    assert not pairs[0] & pairs[1]
    assert {symbol.tone for symbol in trained} == {symbol.tone for symbol in held_out} == set(TONES)
    assert max(Counter(symbol.tone for symbol in held_out).values()) < len(held_out) / 2
    assert all(source.split_of(symbol) == "train" for symbol in symbols() if not (symbol.profession and symbol.tone))


# --- pictures --------------------------------------------------------------------------------------------------------


@needs_font
def test_there_are_thousands_of_emoji_with_sequences(emoji, examples_by_split):
    groups = Counter(example.metadata["group"] for examples in examples_by_split.values() for example in examples)
    assert groups["character"] > 1300 and groups["flag"] > 250 and groups["keycap"] == 12
    assert sum(groups.values()) > 3000
    assert len(examples_by_split["test"]) == len(PROFESSIONS) * len(GENDERS)
    counts = emoji.counts()
    assert counts["train"] == len(examples_by_split["train"]) and counts["test"] == len(examples_by_split["test"])
    assert sum(counts[split] for split in ("train", "test")) + counts["not drawn"] == len(symbols())
    assert {group: counts[group] for group in groups} == groups


@needs_font
def test_pictures_are_on_white_and_in_colour(examples_by_split):
    for example in examples_by_split["train"] + examples_by_split["test"]:
        assert example.image.shape == (64, 64, 3) and example.image.dtype == np.uint8
        assert (example.image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # the corners
        assert (example.image < 250).any()


@needs_font
@pytest.mark.parametrize(("name", "channel"), [("red square", 0), ("green circle", 1), ("blue heart", 2)])
def test_colours_match_their_names(examples_by_name, name, channel):
    middle = examples_by_name[name].image[28:36, 28:36].reshape(-1, 3).mean(axis=0)
    assert (middle[channel] - np.delete(middle, channel) > 40).all()


@needs_font
def test_flags_have_their_bands(examples_by_name):
    """Red, white and blue: from top to bottom in the Netherlands, blue, white and red from left to right in France."""

    def strongest(pixel) -> str:
        red, _, blue = (int(value) for value in pixel)
        return "white" if abs(red - blue) < 40 else "red" if red > blue else "blue"

    netherlands, france = examples_by_name["flag of Netherlands"].image, examples_by_name["flag of France"].image
    assert [strongest(netherlands[row, 32]) for row in (18, 32, 46)] == ["red", "white", "blue"]
    assert [strongest(france[32, column]) for column in (10, 32, 54)] == ["blue", "white", "red"]


@needs_font
def test_skin_tones_darken_in_their_order(examples_by_name):
    hands = [examples_by_name[f"raised hand, {tone} skin tone"].image for tone in TONES]
    brightness = [hand[30:44, 26:38].mean() for hand in hands]
    assert brightness == sorted(brightness, reverse=True)


@needs_font
def test_a_sequence_that_is_not_one_glyph_is_left_out(examples_by_name):
    font = glyphs.load_font(glyphs.find_font().read_bytes(), sequences=True)
    assert glyphs.draw_glyph(font, "\U0001f600") is not None
    assert glyphs.draw_glyph(font, "\U0001f600\u200d\U0001f600") is None  # two faces: no such sequence
    assert glyphs.draw_glyph(font, "\U0001f600\U0001f600") is None
    assert glyphs.draw_glyph(font, "a") is None  # no letters
    assert glyphs.draw_glyph(font, "\U0001faff") is None  # not assigned
    assert (
        "snowboarder" in examples_by_name and "snowboarder, dark skin tone" not in examples_by_name
    )  # examples_by_split without the tone


@needs_font
def test_a_flag_newer_than_the_font_is_left_out(examples_by_name):
    """The font draws an unknown country as a flag with a question mark."""
    font = glyphs.load_font(glyphs.find_font().read_bytes(), sequences=True)
    unknown = glyphs.draw_glyph(font, "\U0001f1fd\U0001f1fd")  # XX
    for symbol in symbols():
        if symbol.group == "flag" and symbol.name in examples_by_name:
            assert not np.array_equal(glyphs.draw_glyph(font, symbol.characters), unknown)


@needs_font
def test_emoji_with_equal_pictures_list_each_other_in_same_as(examples_by_split):
    looks = defaultdict(set)
    examples = examples_by_split["train"] + examples_by_split["test"]
    for example in examples:
        looks[example.image.tobytes()].add(example.key)
    for example in examples:
        assert {example.key, *example.metadata.get("same_as", ())} == looks[example.image.tobytes()]
    norway = next(example for example in examples if example.metadata["name"] == "flag of Norway")
    assert any("Bouvet Island" in e.metadata["name"] for e in examples if e.key in norway.metadata["same_as"])


@needs_font
def test_no_test_picture_is_in_training(examples_by_split):
    assert not {e.image.tobytes() for e in examples_by_split["test"]} & {
        e.image.tobytes() for e in examples_by_split["train"]
    }


@needs_font
def test_single_characters_need_no_shaping(examples_by_split):
    single = Emoji(image_size=64, sequences=False)
    assert single.splits() == ("train",)
    with_sequences = {example.key: example for example in examples_by_split["train"]}
    examples = list(single.examples("train"))
    assert {example.metadata["group"] for example in examples} == {"character"} and len(examples) > 1300
    for example in examples[::7]:
        np.testing.assert_array_equal(example.image, with_sequences[example.key].image)


@needs_font
def test_the_glyph_is_centred_and_antialiased(examples_by_name):
    image = examples_by_name["red circle"].image.astype(int)
    ink = (image.sum(axis=2) < 600).nonzero()
    assert abs(ink[0].mean() - 31.5) < 1.5 and abs(ink[1].mean() - 31.5) < 1.5
    assert len(np.unique(image[:, :, 1])) > 20  # soft edges


@needs_font
def test_identity_changes_with_everything_that_determines_the_records(tmp_path):
    assert Emoji().identity() == Emoji(image_size=64, font=glyphs.find_font()).identity()
    assert Emoji().identity() != Emoji(image_size=32).identity()
    assert Emoji().identity() != Emoji(sequences=False).identity()


# --- missing requirements --------------------------------------------------------------------------------------------


def test_a_missing_font_error_says_how_to_install_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"apt-get install fonts-noto-color-emoji.*config\.data\.font"):
        Emoji(font=tmp_path / "none.ttf")


def test_no_font_and_no_fontconfig(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(glyphs, "DEBIAN_PATH", str(tmp_path / "none.ttf"))
    with pytest.raises(FileNotFoundError, match="was not found on this machine: install it"):
        Emoji()


@needs_font
def test_without_fontconfig_debians_path_is_tried(monkeypatch, tmp_path):
    font = glyphs.find_font()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(glyphs, "DEBIAN_PATH", str(font))
    assert glyphs.find_font() == font


def test_a_file_that_is_no_font_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "font.png")
    with pytest.raises(ValueError, match="has no bitmaps of size 109"):
        Emoji(font=tmp_path / "font.png", sequences=False)


def test_a_font_without_colours_is_refused(tmp_path):
    plain = tmp_path / "plain.ttf"
    plain.write_bytes(ImageFont.load_default(20).path.getvalue())  # Pillow's built-in letters
    with pytest.raises(ValueError, match="draws no colours"):
        Emoji(font=plain, sequences=False)


def test_missing_raqm_error_names_package_and_config_key(monkeypatch):
    monkeypatch.setattr(glyphs.features, "check", lambda feature: False)
    with pytest.raises(ValueError, match=r"libfribidi0.*config\.data\.sequences"):
        glyphs.load_font(b"", sequences=True)


@needs_font
def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="expected one of train, test"):
        list(Emoji().examples("validation"))
