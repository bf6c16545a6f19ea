"""Captions to tokens: any Unicode round-trips, words have the same tokens at any position, lengths are fixed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdiff.data import tokenizer
from jdiff.text import clean_text

CAPTIONS = ["a small red circle at the top left", "a large blue star", "three green triangles"] * 20
EXACT = tokenizer.train_tokenizer(CAPTIONS, vocab_size=400, context_length=64, lowercase=False)
LOWER = tokenizer.train_tokenizer(CAPTIONS, vocab_size=400, context_length=12)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=15))
def test_any_unicode_round_trips_but_for_white_space(text):
    tokens, mask = EXACT.encode([text])
    assert EXACT.decode(tokens[0]) == clean_text(text)
    assert mask[0].sum() == 2 + len(EXACT.ids(text))


@pytest.mark.parametrize("text", ["a cat", " two  spaces ", "日本語 🐱👩‍🚀", "naïve\n\ttabs", "<|end|>", ""])
def test_chosen_texts_round_trip(text):
    assert EXACT.decode(EXACT.encode([text])[0][0]) == clean_text(text)


@pytest.mark.parametrize("mark", [tokenizer.PAD, tokenizer.START, tokenizer.END])
def test_special_tokens_in_a_caption_are_encoded_as_text(mark, tmp_path):
    EXACT.save(tmp_path / "tokenizer.json")
    for model in (EXACT, tokenizer.load_tokenizer(tmp_path / "tokenizer.json", context_length=64)):
        assert not {0, 1, 2} & set(model.ids(f"a {mark} cat"))


def test_layout_of_an_encoded_caption():
    tokens, mask = LOWER.encode(["red circle", ""])
    assert tokens.shape == mask.shape == (2, 12)
    assert tokens.dtype == np.int32
    assert tokens[0].tolist()[: mask[0].sum()] == [1, *LOWER.ids("red circle"), 2]
    assert tokens[1].tolist() == [1, 2] + [0] * 10
    assert mask[1].tolist() == [True, True] + [False] * 10


def test_a_word_has_the_same_tokens_at_the_beginning_and_within():
    assert LOWER.ids("red") == LOWER.ids("a red")[-len(LOWER.ids("red")) :]


def test_long_captions_are_truncated_and_keep_the_end_token():
    tokens, mask = LOWER.encode(["red " * 40])
    assert mask.all()
    assert tokens[0, -1] == 2
    assert not LOWER.fits("red " * 40)
    assert LOWER.fits("red circle")


def test_lowercase_makes_capitals_equal_to_lower_case():
    assert LOWER.ids("Red CIRCLE") == LOWER.ids("red circle")
    assert EXACT.ids("Red") != EXACT.ids("red")


def test_a_saved_tokenizer_loads_unchanged(tmp_path):
    LOWER.save(tmp_path / "tokenizer.json")
    loaded_copy = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", context_length=12)
    np.testing.assert_array_equal(loaded_copy.encode(CAPTIONS)[0], LOWER.encode(CAPTIONS)[0])
    assert loaded_copy.vocab_size == LOWER.vocab_size


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="must be at least 259"):
        tokenizer.train_tokenizer(CAPTIONS, vocab_size=100, context_length=8)


def test_a_normalizer_that_multiplies_texts_is_refused(tmp_path):
    model = json.loads(tokenizer.train_tokenizer(["a red circle"] * 3, vocab_size=300, context_length=16).text)
    parts = [{"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 3000}] * 3
    model["normalizer"] = {"type": "Sequence", "normalizers": parts}
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    with pytest.raises(ValueError, match=r"normalizer.*limit is 64"):
        tokenizer.load_tokenizer(tmp_path / "tokenizer.json", context_length=16)
