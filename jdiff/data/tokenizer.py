"""Captions to token numbers and back: byte-level BPE, trained on one's captions or come with somebody's weights.

Every caption is laid out as ``[start] its tokens [end] [pad] ...``. The empty caption, which
caption dropout trains and guidance samples with, is ``[start] [end]`` and padding.

Weights only mean what their own tokenizer says, and CLIP's vocabulary is read in three dialects, which
differ in what they do to a text first; the padding differs too, and is read where padding is (Stable Diffusion).
"""

from __future__ import annotations

import gzip
import html
import json
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import ftfy
import numpy as np
import tokenizers
from etils import epath
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 49152 - 256 - 2  # that many of its merges file belong to the vocabulary


@dataclass(frozen=True)
class Dialect:
    """How a family of tokenizers reads a caption.

    clean: what is done to the text before its model reads it.   start: the mark before it, None for none.
    """

    clean: Callable[[str], str]
    start: str | None
    end: str
    pad: str


def _spaced(text: str) -> str:
    """Words read the same wherever they stand: a space is put before the first."""
    return f" {text}" if text else ""


def _mended(text: str) -> str:
    """Broken encodings and HTML entities undone, even twice encoded ones."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _openai(text: str) -> str:
    return re.sub(r"\s+", " ", _mended(text)).strip().lower()


def _open_clip(text: str) -> str:
    return " ".join(_mended(text).split()).lower()


def _canonical(text: str) -> str:
    """Small letters, no punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


DIALECTS = {
    "jdiff": Dialect(_spaced, START, END, PAD),
    "openai": Dialect(_openai, "<|startoftext|>", "<|endoftext|>", "!"),
    "open_clip": Dialect(_open_clip, "<start_of_text>", "<end_of_text>", "!"),
    "hugging_face": Dialect(str, "<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "siglip": Dialect(_canonical, None, "</s>", "</s>"),
}


class Tokenizer:
    """A tokenizer with the length that captions are padded or cut to."""

    def __init__(
        self, model: tokenizers.Tokenizer, context_length: int, *, dialect: str = "jdiff", pad: int | None = None
    ):
        """pad: number of the token that fills up; the dialect's own if not said."""
        self._model = model
        self._model.encode_special_tokens = True  # "<|end|>" in a caption is text, and no mark
        self.context_length = context_length
        spoken = DIALECTS[dialect]
        self._clean = spoken.clean
        self._start = [] if spoken.start is None else [self._id(spoken.start)]
        self._end = self._id(spoken.end)
        self.pad = self._id(spoken.pad) if pad is None else pad

    def _id(self, token: str) -> int:
        found = self._model.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token '{token}', which its dialect needs")
        return found

    @property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size()

    def ids(self, caption: str) -> list[int]:
        """The caption's own tokens, uncut."""
        return self._model.encode(self._clean(caption), add_special_tokens=False).ids

    @property
    def room(self) -> int:
        """How many tokens of a caption are read."""
        return self.context_length - len(self._start) - 1

    def encode(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Captions as the networks take them; a long one is cut before its end token.

        Returns tokens (b, context_length) int32 and mask (b, context_length) bool, true up to the end token.
        """
        tokens = np.full((len(captions), self.context_length), self.pad, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, seen, caption in zip(tokens, mask, captions, strict=True):
            ids = [*self._start, *self.ids(caption)[: self.room], self._end]
            row[: len(ids)] = ids
            seen[: len(ids)] = True
        return tokens, mask

    def decode(self, tokens: Iterable[int]) -> str:
        """The caption that ``tokens`` came from, whatever its script."""
        special = {self.pad, *self._start, self._end}
        return self._model.decode([int(t) for t in tokens if t not in special]).removeprefix(" ")

    def fits(self, caption: str) -> bool:
        """Whether the caption is read whole."""
        return len(self.ids(caption)) <= self.room

    def layout(self) -> dict:
        """What one needs beside the saved model to read captions: how they are laid out, and what is done first.

        Not told is the mending of broken encodings, which CLIP's own dialects do.
        """
        return {
            "context_length": self.context_length,
            "start": self._start,
            "end": self._end,
            "pad": int(self.pad),
            "before": " " if self._clean is _spaced else "",
            "lowercase": self._clean in (_openai, _open_clip),
        }

    @property
    def text(self) -> str:
        """The vocabulary as JSON."""
        return self._model.to_str(pretty=True)

    def save(self, path: epath.PathLike) -> None:
        epath.Path(path).write_text(self.text)


def train(captions: Iterable[str], *, vocab_size: int, context_length: int, lowercase: bool = True) -> Tokenizer:
    """Learn a vocabulary from captions.

    vocab_size: at most this many tokens, 259 or more: three marks and the 256 bytes come first.
    lowercase: read capitals as small letters, as CLIP does; without it every text round-trips exactly.
    """
    if vocab_size < 259:
        raise ValueError(
            f"config.tokenizer.vocab_size is {vocab_size}; it must be 259, the bytes and three marks, or more"
        )
    model = tokenizers.Tokenizer(models.BPE())
    if lowercase:
        model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator((" " + caption for caption in captions), trainer)
    return Tokenizer(model, context_length)


def load(path: epath.PathLike, *, context_length: int, dialect: str = "jdiff", pad: int | None = None) -> Tokenizer:
    """A saved tokenizer."""
    model = tokenizers.Tokenizer.from_str(epath.Path(path).read_text())
    return Tokenizer(model, context_length, dialect=dialect, pad=pad)


def clip(
    merges: Sequence[tuple[str, str]],
    vocabulary: dict[str, int] | None = None,
    *,
    context_length: int = 77,
    dialect: str,
    pad: int | None = None,
) -> Tokenizer:
    """CLIP's tokenizer: bytes, of which the last of a word are marked, merged in order.

    merges: pairs, the first merged first.   vocabulary: numbers of the tokens; by default OpenAI's order: bytes,
    bytes that end a word, what the merges make, and the two marks.
    """
    spoken = DIALECTS[dialect]
    if vocabulary is None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
        vocabulary = {token: i for i, token in enumerate([*made, spoken.start, spoken.end])}
    # open_clip spells the marks otherwise than the files it shares with the others.
    spelt = {DIALECTS["hugging_face"].start: spoken.start, DIALECTS["hugging_face"].end: spoken.end}
    vocabulary = {spelt.get(token, token): i for token, i in vocabulary.items()}
    model = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(merges), end_of_word_suffix="</w>", unk_token=spoken.end, fuse_unk=False)
    )
    model.add_special_tokens([spoken.start, spoken.end])
    if dialect == "hugging_face":
        model.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Strip(" ", 0, 1)])
    return Tokenizer(model, context_length, dialect=dialect, pad=pad)


def clip_merges(path: epath.PathLike) -> tuple[list[tuple[str, str]], dict[str, int] | None]:
    """The merges of a CLIP vocabulary, and its numbers where they lie with them.

    path: OpenAI's ``bpe_simple_vocab_16e6.txt.gz``, or Hugging Face's ``merges.txt`` (with ``vocab.json`` beside it)
    or ``tokenizer.json``.
    """
    path = epath.Path(path)
    if path.suffix == ".json":
        model = json.loads(path.read_text())["model"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        return [tuple(pair) for pair in pairs], model["vocab"]
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")
    pairs = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line.strip()]
    beside = path.parent / "vocab.json"
    return pairs, json.loads(beside.read_text()) if beside.exists() and path.suffix == ".txt" else None
