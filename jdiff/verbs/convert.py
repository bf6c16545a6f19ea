"""jdiff convert: a run made of somebody else's weights."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
from etils import epath

from jdiff import runs
from jdiff.construct import ConfigError
from jdiff.interop import pretrained
from jdiff.interop.pretrained import Hints
from jdiff.training.state import TrainState


def convert(source: str, destination: str, hints: Hints) -> None:
    """Read the weights at ``source`` and write them as a run of 0 steps, all of them frozen.

    Raises ``ConfigError`` where ``destination`` has something already.
    """
    path = runs.new_folder(destination)
    if not epath.Path(source).exists():
        raise ConfigError(f"there is no {source}, to be converted")
    if runs.is_run(source):
        raise ConfigError(f"{source} is a run of jdiff already; nothing is to be converted")
    theirs = pretrained.find(source, hints)
    if theirs is None:
        raise ConfigError(
            f"{source} is nothing that can be converted; expected is a folder with a model_index.json, a config.json "
            "of CLIP or SigLIP or an open_clip_config.json, or a .safetensors file"
        )
    model = runs.of_foreign(theirs)
    for note in model.notes:
        print(f"{source}: {note}")
    weights = model.weights(runs.first_device())
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    print(f"read {count / 1e6:.2f} M parameters of {', '.join(weights)} from {source}")
    with runs.checkpoints(path, keep=1) as store:
        store.save(TrainState(jnp.int32(0), {}, {}, None, weights))
        store.wait()
    model.tokenizer.save(path / "tokenizer.json")
    (path / "config.json").write_text(json.dumps(model.setup.config, indent=2) + "\n")
    print(f"wrote {path / 'config.json'}, {path / 'tokenizer.json'} and {path / 'checkpoints'}")
