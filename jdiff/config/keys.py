"""The keys of a config: as JSON keeps them, by dotted name, and checked before JAX is imported.

``keys.json`` lists the keys of every section and the parameters of every choice that has some, so that a misspelt one
is answered at once; `make docs` writes it from the code, together with the reference of config keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jdiff.config.construct import ConfigError, nearest

TABLES = {"jax", "jdiff.data.sources"}  # the table of sources, and what the modules of all other tables import
KEYS_FILE = Path(__file__).with_name("keys.json")
RENAMED_KEYS = {  # old key -> new key; an old value -> a new value is "key=value"
    "train.objective": "train.task",
    "train.task=diffusion": "train.task=text_to_image",
    "train.hold_text": "train.freeze_text_steps",
    "train.fixed_order": "train.deterministic_reduction",
    "text.run": "text.init_from",
    "vision.run": "vision.init_from",
    "autoencoder.run": "autoencoder.init_from",
    "text.skip": "text.clip_skip",
    "text.reads_padding": "text.attend_to_padding",
    "unet": "denoiser",
    "denoiser.run": "denoiser.init_from",
    "denoiser.reads_padding": "denoiser.attend_to_padding",
    "denoiser.modulated": "denoiser.scale_shift_norm",
    "encoder.biased": "encoder.use_logit_bias",
    "optimizer.decay_to": "optimizer.final_lr_fraction",
    "diffusion.density": "diffusion.timestep_sampling",
    "diffusion.timestep_sampling=rising": "diffusion.timestep_sampling=linear",
    "sample.ends_clean": "sample.final_step_to_zero",
    "sample.offset": "sample.steps_offset",
    "sample.rescale": "sample.guidance_rescale",
    "sample.parallel": "sample.apg_parallel",
    "sample.norm": "sample.apg_norm",
    "sample.momentum": "sample.apg_momentum",
    "sample.percentile": "sample.threshold_percentile",
}


# Far above what any model has: a config may come from a stranger, with a run.
LARGEST = {
    "context_length": 8192,
    "image_size": 8192,
    "patch_size": 8192,
    "timesteps": 1_000_000,
    "width": 65_536,
    "embed_dim": 65_536,
    "channels": 65_536,
    "layers": 1024,
    "blocks": 1024,
    "heads": 1024,
    "groups": 65_536,
}


def check_names(raw: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` at a section, key or parameter that nothing in jdiff has.

    Does nothing where a config file has imported one of jdiff's tables, to which it may have added an entry with keys
    of its own: ``sections`` and the tasks check every key again, in its place.
    """
    if not TABLES.isdisjoint(sys.modules):
        return
    key_names = json.loads(KEYS_FILE.read_text())
    for section, keys in raw.items():
        if section not in key_names:
            raise ConfigError(f"config.{section} is not a section; {nearest(section, key_names)}")
        _check_names(section, keys, key_names)


def _check_names(path: str, keys: Any, key_names: Mapping[str, list[str]]) -> None:
    """Raise ``ConfigError`` at a key of a section, or a parameter of a choice, that is not known; path: dotted."""
    if path in key_names and isinstance(keys, Mapping):
        for key, value in keys.items():
            if key not in key_names[path]:
                raise ConfigError(f"config.{path}.{key} is not a setting; {nearest(key, key_names[path])}")
            _check_names(f"{path}.{key}", value, key_names)


def plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    """A config as JSON keeps it. Raises ``ConfigError`` at a key that was renamed."""
    raw: Any = json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))
    _check_sizes(raw)
    for old, new in RENAMED_KEYS.items():
        key, _, value = old.partition("=")
        section, _, name = key.partition(".")
        keys: Any = raw.get(section)
        if (
            section in raw
            and (not name or (isinstance(keys, dict) and name in keys))
            and (not value or keys[name] == value)
        ):
            raise ConfigError(f"config.{old} is an old name; use config.{new}")
    if raw.get("watchdog") == {}:  # as the bases have it, so that its keys can be set
        del raw["watchdog"]
    return raw


def _check_sizes(raw: Any) -> None:
    """Raise ``ConfigError`` where a config asks for more memory than any model needs, before it is taken."""
    if not isinstance(raw, dict):
        raise ConfigError(f"the config is {str(raw)[:40]!r}, not an object of sections")
    for section, keys in raw.items():
        if not isinstance(keys, dict):
            raise ConfigError(f"config.{section} is {str(keys)[:40]!r}, not an object of keys")
        for key, largest in LARGEST.items():
            values = keys.get(key, 0)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, int | float) and value > largest:
                    raise ConfigError(f"config.{section}.{key} is {value}; it must be {largest} or less")


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a config, such as train.steps, or a parameter of a choice, which keeps its name, such as
    diffusion.schedule.beta_end."""
    section, *names = key.split(".")
    keys = raw.setdefault(section, {})
    for name in names[:-1]:
        choice = keys.get(name, {})
        keys[name] = {"name": choice} if isinstance(choice, str) else dict(choice)
        keys = keys[name]
    keys[names[-1]] = value
