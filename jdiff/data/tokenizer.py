"""Captions to token numbers and back: a byte-level BPE trained on the captions themselves.

Every caption is laid out as ``[start] its tokens [end] [pad] ...``. The empty caption, which
caption dropout trains and guidance samples with, is ``[start] [end]`` and padding.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"


class Tokenizer:
    """A trained tokenizer with the length that captions are padded or cut to."""

    def __init__(self, model: tokenizers.Tokenizer, context_length: int):
        self._model = model
        self._model.encode_special_tokens = True  # "<|end|>" in a caption is text, and no mark
        self.context_length = context_length
        self._pad, self._start, self._end = (model.token_to_id(token) for token in (PAD, START, END))

    @property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size()

    def ids(self, caption: str) -> list[int]:
        """The caption's own tokens, uncut. Words read the same wherever they stand: a space is put before the first."""
        return self._model.encode(" " + caption).ids if caption else []

    def encode(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Captions as the networks take them; a long one is cut before its end token.

        Returns tokens (b, context_length) int32 and mask (b, context_length) bool, true up to the end token.
        """
        tokens = np.full((len(captions), self.context_length), self._pad, np.int32)
        for row, caption in zip(tokens, captions, strict=True):
            ids = [self._start, *self.ids(caption)[: self.context_length - 2], self._end]
            row[: len(ids)] = ids
        return tokens, tokens != self._pad

    def decode(self, tokens: Iterable[int]) -> str:
        """The caption that ``tokens`` came from, whatever its script."""
        special = {self._pad, self._start, self._end}
        return self._model.decode([int(t) for t in tokens if t not in special]).removeprefix(" ")

    def fits(self, caption: str) -> bool:
        """Whether the caption is read whole."""
        return len(self.ids(caption)) <= self.context_length - 2

    def save(self, path: epath.PathLike) -> None:
        epath.Path(path).write_text(self._model.to_str(pretty=True))


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


def load(path: epath.PathLike, *, context_length: int) -> Tokenizer:
    """A saved tokenizer."""
    return Tokenizer(tokenizers.Tokenizer.from_str(epath.Path(path).read_text()), context_length)
