"""What every checkpoint says of its run: config, records and the digest of the tokenizer, as training had them.

So a config or a tokenizer that was changed afterwards is refused, and a damaged config.json is written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import Any

from etils import epath

from jdiff.config.construct import ConfigError
from jdiff.data.tokenizer import Tokenizer
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.manifest import DamagedCheckpoint

# Keys that a resumed run may change: no step depends on the first, and changes of the others go to its history.
FREE_KEYS = re.compile(
    r"(mesh|watchdog)(\..*)?|train\.(log_every|save_every|sample_every|evaluate_every|evaluate_num|keep(_every)?)"
)
RECORDED_KEYS = ("train.steps", "optimizer.learning_rate")
Changes = dict[str, tuple[Any, Any]]  # dotted key of the config -> old and new value


def make_origin(config: dict[str, Any], tokenizer: Tokenizer, data: dict[str, str] | None) -> dict[str, Any]:
    """What the manifests of a run's checkpoints say of it. data: the content of its data.json."""
    return {"config": config, "tokenizer": digest(tokenizer.text.encode()), "data": data}


def digest(data: bytes) -> str:
    """The SHA-256 of a file's content."""
    return hashlib.sha256(data).hexdigest()


def newest_origin(checkpoints: epath.PathLike) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint with an intact manifest, and what it says of its run; None where there is none."""
    with Checkpoints(checkpoints) as store:
        for step in reversed(store.steps):
            with contextlib.suppress(DamagedCheckpoint, OSError):
                if origin := store.origin(step):
                    return step, origin
    return None


def check_origin(workdir: epath.PathLike, step: int, origin: dict[str, Any], config: dict, tokenizer: bytes) -> None:
    """Compare a run's files with what a checkpoint says of the run.

    config: the sections of its config.json.   tokenizer: the content of its tokenizer.json.
    Raises ``ConfigError`` where they are not what the checkpoint was trained with.
    """
    for key, (trained, current) in sorted(differences(origin.get("config", config), config).items()):
        if not (FREE_KEYS.fullmatch(key) or key in RECORDED_KEYS):
            raise ConfigError(
                f"{workdir}/config.json has {key} = {current!r}, but its checkpoint {step} was trained with "
                f"{trained!r}; change it back, or delete config.json, which `jdiff train` then writes again"
            )
    if origin.get("tokenizer", digest(tokenizer)) != digest(tokenizer):
        raise ConfigError(
            f"{workdir}/tokenizer.json is not the one that its checkpoint {step} was trained with; copy it from a "
            "backup, or delete it, and `jdiff train` writes it again"
        )


def differences(old: dict, new: dict, prefix: str = "") -> Changes:
    """Dotted keys whose values differ."""
    changes: Changes = {}
    for key in {*old, *new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            changes[prefix + key] = (a, b)
    return changes
