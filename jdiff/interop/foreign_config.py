"""Config files of other libraries: every key is read, known to have no effect here, or refused by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jdiff.interop.safetensors_files import WrongWeights

# Keys that transformers writes into every model's config, of training, generation and output.
TRANSFORMERS_KEYS = frozenset(
    """
    add_cross_attention architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range
    is_decoder is_encoder_decoder label2id length_penalty logit_scale_init_value max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16
    """.split()  # noqa: SIM905
)


class ForeignConfig:
    """A config file of another library, whose keys are counted as they are read.

    Keys that begin with an underscore say who wrote the file.
    """

    def __init__(self, content: Mapping[str, Any], file: str):
        """file: its name, for errors."""
        self._content, self._file = dict(content), file
        self._read_keys: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value, or the library's default where the file leaves it out.

        Raises ``WrongWeights`` where the value is of another kind than the default.
        """
        self._read_keys.add(key)
        value = self._content.get(key, default)
        if default is not None and not _is_of_kind(value, default):
            raise WrongWeights(f"its {self._file} has {key} = {value!r}; expected {_kind(default)}")
        return value

    def required(self, key: str, example: Any) -> Any:
        """The value of a key that has no default. example: of its kind. Raises ``WrongWeights``."""
        if key not in self._content:
            raise WrongWeights(f"its {self._file} has no {key}")
        return self.get(key, example)

    def lookup(self, key: str, default: Any, table: Mapping[str, Any]) -> Any:
        """What a table has for a key's value. Raises ``WrongWeights`` where it has nothing."""
        value = self.get(key, default)
        if value not in table:
            raise WrongWeights(f"its {self._file} has {key} = {value!r}; supported are {', '.join(map(repr, table))}")
        return table[value]

    def require(self, defaults: Mapping[str, Any]) -> None:
        """Raise ``WrongWeights`` at the first key that has another value than the library's default."""
        for key, default in defaults.items():
            value = self.get(key, default)
            if (list(value) if isinstance(value, tuple) else value) != default:
                raise WrongWeights(
                    f"its {self._file} has {key} = {value!r}, which is not supported; expected {default!r}"
                )

    def finish(self, keys_without_effect: Iterable[str] = ()) -> None:
        """Raise ``WrongWeights`` at a key that was not read. keys_without_effect: those that need not be."""
        for key, value in self._content.items():
            if not (key.startswith("_") or key in self._read_keys or key in keys_without_effect):
                raise WrongWeights(f"its {self._file} has {key} = {value!r}, a setting that is not known here")


def _is_of_kind(value: Any, example: Any) -> bool:
    """Whether a value is a list, number, text, ... as the example is, and its items, too; whole numbers: 0 or more."""
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(example, bool) and isinstance(value, bool)
    if isinstance(example, list | tuple):
        return isinstance(value, list | tuple) and (not example or all(_is_of_kind(item, example[0]) for item in value))
    if isinstance(example, int):
        return isinstance(value, int) and 0 <= value < 2**31
    if isinstance(example, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, Mapping if isinstance(example, Mapping) else type(example))


def _kind(example: Any) -> str:
    kinds = {bool: "true or false", int: "a number of 0 or more", float: "a number", str: "a text", dict: "an object"}
    if isinstance(example, list | tuple):
        return f"a list, of {_kind(example[0])} each" if example else "a list"
    return kinds[type(example)]
