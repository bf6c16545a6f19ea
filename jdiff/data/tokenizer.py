"""Captions to token ids and back: byte-level BPE, trained on the data set's captions or of pretrained weights.

Every caption is encoded as ``[start] its tokens [end] [pad] ...``. The empty caption, which caption dropout trains and
classifier-free guidance samples with, is ``[start] [end]`` and padding.

Pretrained weights need exactly their tokenizer. CLIP's vocabulary has three dialects, which normalize the text
differently. Their padding tokens differ, too, which matters to models that attend to padding (Stable Diffusion).
"""

from __future__ import annotations

import gzip
import html
import json
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ftfy
import numpy as np
import tokenizers
from etils import epath
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from jdiff import storage
from jdiff.text import clean_text, read_text, well_formed

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"
MAX_GROWTH = 64  # characters that a normalizer may make of one
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 49152 - 256 - 2  # entries of CLIP's merges file that belong to its vocabulary


@dataclass(frozen=True)
class Dialect:
    """A family of tokenizers: its text normalization and its special tokens.

    clean: normalizes the text before the BPE model encodes it.   start: token before the caption, None for none.
    end, pad: tokens after the caption.
    """

    clean: Callable[[str], str]
    start: str | None
    end: str
    pad: str


def _prepend_space(text: str) -> str:
    """Put a space before the first word, so that it has the same tokens as elsewhere in a caption."""
    return f" {words}" if (words := clean_text(text)) else ""


def _fix_encoding(text: str) -> str:
    """Repair broken encodings, and decode HTML entities, even doubly encoded ones."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _openai(text: str) -> str:
    return re.sub(r"\s+", " ", _fix_encoding(text)).strip().lower()


def _open_clip(text: str) -> str:
    return " ".join(_fix_encoding(text).split()).lower()


def _canonical(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


DIALECTS = {
    "jdiff": Dialect(_prepend_space, START, END, PAD),
    "openai": Dialect(_openai, "<|startoftext|>", "<|endoftext|>", "!"),
    "open_clip": Dialect(_open_clip, "<start_of_text>", "<end_of_text>", "!"),
    "hugging_face": Dialect(str, "<|startoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "siglip": Dialect(_canonical, None, "</s>", "</s>"),
}


class Tokenizer:
    """A tokenizer that pads or truncates captions to ``context_length`` tokens."""

    def __init__(
        self, model: tokenizers.Tokenizer, context_length: int, *, dialect: str = "jdiff", pad: int | None = None
    ):
        """dialect: a name in ``DIALECTS``.   pad: id of the padding token; None takes the dialect's."""
        self._model = model
        self._model.encode_special_tokens = True  # "<|end|>" in a caption is text, not the end token
        self.context_length = context_length
        tokens = DIALECTS[dialect]
        self._clean = tokens.clean
        self._start = [] if tokens.start is None else [self._token_id(tokens.start)]
        self._end = self._token_id(tokens.end)
        self.pad = self._token_id(tokens.pad) if pad is None else pad

    def _token_id(self, token: str) -> int:
        token_id = self._model.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token '{token}', which its dialect needs")
        return token_id

    @property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size()

    def ids(self, caption: str) -> list[int]:
        """The caption's token ids, without start, end and padding, and not truncated."""
        return self._model.encode(self._clean(well_formed(caption)), add_special_tokens=False).ids

    @property
    def max_caption_tokens(self) -> int:
        """The context length without start and end tokens; a longer caption is truncated."""
        return self.context_length - len(self._start) - 1

    def encode(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode a batch of captions for the networks; a long caption is truncated, and keeps its end token.

        Returns tokens (b, context_length) int32 and mask (b, context_length) bool, true up to the end token.
        """
        tokens = np.full((len(captions), self.context_length), self.pad, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for token_row, mask_row, caption in zip(tokens, mask, captions, strict=True):
            ids = [*self._start, *self.ids(caption)[: self.max_caption_tokens], self._end]
            token_row[: len(ids)] = ids
            mask_row[: len(ids)] = True
        return tokens, mask

    def decode(self, tokens: Iterable[int]) -> str:
        """The caption of ``tokens``, without special tokens."""
        special = {self.pad, *self._start, self._end}
        return self._model.decode([int(t) for t in tokens if t not in special]).removeprefix(" ")

    def fits(self, caption: str) -> bool:
        """Whether the caption is encoded without truncation."""
        return len(self.ids(caption)) <= self.max_caption_tokens

    def layout(self) -> dict:
        """What another program needs besides the saved model to encode captions, as exports store it.

        It omits the repair of broken encodings that the dialects "openai" and "open_clip" do.
        """
        return {
            "context_length": self.context_length,
            "start": self._start,
            "end": self._end,
            "pad": int(self.pad),
            "before": " " if self._clean is _prepend_space else "",
            "lowercase": self._clean in (_openai, _open_clip),
        }

    @property
    def text(self) -> str:
        """The vocabulary as JSON."""
        return self._model.to_str(pretty=True)

    def save(self, path: epath.PathLike) -> None:
        storage.write_text(path, self.text)


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int, context_length: int, lowercase: bool = True
) -> Tokenizer:
    """Train a byte-level BPE vocabulary on captions.

    vocab_size: the most tokens, at least 259: three special tokens and the 256 bytes come first.
    lowercase: convert to lower case, as CLIP does; without it every text round-trips exactly.
    """
    if vocab_size < 259:
        raise ValueError(
            f"config.tokenizer.vocab_size is {vocab_size}; it must be at least 259: 256 bytes and 3 special tokens"
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


def load_tokenizer(
    path: epath.PathLike, *, context_length: int, dialect: str = "jdiff", pad: int | None = None
) -> Tokenizer:
    """Load a saved tokenizer."""
    return Tokenizer(read_model(path), context_length, dialect=dialect, pad=pad)


def read_model(path: epath.PathLike) -> tokenizers.Tokenizer:
    """The model in a tokenizer.json. Raises ValueError, which names the file."""
    text = read_text(path)
    try:
        model = tokenizers.Tokenizer.from_str(text)
        growth = _growth(json.loads(text).get("normalizer"))
        if growth <= MAX_GROWTH:
            return model
    except Exception as error:  # that library has no class for it
        raise ValueError(f"{path} is no tokenizer, or was cut short: {error}") from error
    problem = f"a normalizer that makes texts up to {growth} times as long"
    raise ValueError(f"{path} has {problem}; the limit is {MAX_GROWTH}")


def _growth(normalizer: dict[str, Any] | None) -> int:
    """How many characters a normalizer makes of one at most."""
    parts = (normalizer or {}).get("normalizers", ())
    content = len((normalizer or {}).get("content", ""))
    return math.prod(map(_growth, parts)) * max(1, content)


def clip(
    merges: Sequence[tuple[str, str]],
    vocabulary: dict[str, int] | None = None,
    *,
    context_length: int = 77,
    dialect: str,
    pad: int | None = None,
    added_tokens: Mapping[int, str] = MappingProxyType({}),
) -> Tokenizer:
    """CLIP's tokenizer: byte-level BPE whose last token of each word ends in ``</w>``.

    merges: pairs in order of priority.   added_tokens: by id; each is one token wherever it occurs.
    vocabulary: token ids; None takes OpenAI's order: bytes, bytes that end a word, merged tokens, start and end.
    """
    special_tokens = DIALECTS[dialect]
    if vocabulary is None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
        vocabulary = {token: i for i, token in enumerate([*tokens, special_tokens.start, special_tokens.end])}
    # The vocabulary files spell start and end as Hugging Face does; open_clip's dialect spells them differently.
    hugging_face = DIALECTS["hugging_face"]
    spellings = {hugging_face.start: special_tokens.start, hugging_face.end: special_tokens.end}
    vocabulary = {spellings.get(token, token): i for token, i in vocabulary.items()}
    options: dict[str, Any] = {"end_of_word_suffix": "</w>", "unk_token": special_tokens.end, "fuse_unk": False}
    try:
        model = tokenizers.Tokenizer(models.BPE(vocabulary, list(merges), **options))
    except Exception as error:  # that library has no class for it
        raise ValueError(f"the merges and the vocabulary of the tokenizer do not fit: {error}") from error
    model.add_special_tokens([special_tokens.start, special_tokens.end])
    for number, token in sorted(added_tokens.items()):
        if spellings.get(token, token) not in vocabulary:
            if number != model.get_vocab_size():
                raise ValueError(f"the added token '{token}' has id {number}, expected {model.get_vocab_size()}")
            model.add_tokens([token])
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


def added_tokens(path: epath.PathLike) -> dict[int, str]:
    """The tokens that were added to a CLIP vocabulary, such as those of textual inversion, by id.

    path: of ``clip_merges``; ``added_tokens.json`` and ``tokenizer_config.json`` beside it are read, too.
    """
    path, result = epath.Path(path), {}
    if path.suffix == ".json":
        result |= {token["id"]: token["content"] for token in json.loads(read_text(path)).get("added_tokens", ())}
    if (file := path.parent / "added_tokens.json").exists():
        result |= {number: token for token, number in json.loads(read_text(file)).items()}
    if (file := path.parent / "tokenizer_config.json").exists():
        tokens = json.loads(read_text(file)).get("added_tokens_decoder", {})
        result |= {int(number): token["content"] for number, token in tokens.items()}
    return result


def clip_merges(path: epath.PathLike) -> tuple[list[tuple[str, str]], dict[str, int] | None]:
    """The merges of a CLIP vocabulary, and its token ids if the file or its folder has them.

    path: OpenAI's ``bpe_simple_vocab_16e6.txt.gz``, or Hugging Face's ``merges.txt`` (with ``vocab.json`` beside it)
    or ``tokenizer.json``.
    """
    path = epath.Path(path)
    if path.suffix == ".json":
        model = json.loads(read_text(path))["model"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        return [tuple(pair) for pair in pairs], model["vocab"]
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().split("\n")
    pairs = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1] if line.strip()]
    vocabulary = path.parent / "vocab.json"
    return pairs, json.loads(vocabulary.read_text()) if vocabulary.exists() and path.suffix == ".txt" else None
