"""jdiff convert: make a run from pretrained weights."""

from __future__ import annotations

from typing import Any

from absl import flags as absl_flags

from jdiff.commands import flags

USAGE = "SOURCE DESTINATION"


def define_flags() -> None:
    flags.define_hints()
    absl_flags.DEFINE_integer("image_size", None, "Side in pixels to use a CLIP at (default: its own).", 1)


def run(arguments: list[str]) -> None:
    source, destination = flags.take_paths("convert", arguments, "the weights", "the new run")
    convert(source, destination, flags.hints(image_size=absl_flags.FLAGS.image_size))


def convert(source: str, destination: str, hints: Any) -> None:
    """Read the pretrained weights at ``source`` and write them as a run of 0 steps, all of them frozen.

    Raises ``ConfigError`` where ``destination`` is not empty, or ``source`` is nothing that can be converted.
    """
    import jax
    import jax.numpy as jnp
    from etils import epath

    from jdiff.config.construct import ConfigError
    from jdiff.interop import pretrained as pretrained_weights
    from jdiff.runs import directory
    from jdiff.training.state import TrainState

    path = directory.new_folder(destination)
    if not epath.Path(source).exists():
        raise ConfigError(f"SOURCE is {source}, which does not exist")
    if directory.is_run(source):
        raise ConfigError(f"SOURCE is {source}, which is a run of jdiff already; there is nothing to convert")
    pretrained = pretrained_weights.find(source, hints)
    if pretrained is None:
        raise ConfigError(
            f"SOURCE is {source}, which cannot be converted; expected is a folder with a model_index.json, a "
            "config.json of CLIP or SigLIP or an open_clip_config.json, or a .safetensors file"
        )
    model = directory.pretrained_model(pretrained)
    for note in model.notes:
        print(f"{source}: {note}")
    params = model.params(directory.first_device())
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"read {size / 1e6:.2f} M parameters of {', '.join(params)} from {source}")
    with directory.open_checkpoints(path, model.task) as store:
        store.finish(TrainState(jnp.int32(0), {}, {}, {}, params))
    model.task.tokenizer.save(path / directory.TOKENIZER)
    directory.write_config(path, model.task.config.raw)
    print(f"wrote {path / 'config.json'}, {path / 'tokenizer.json'} and {path / 'checkpoints'}")
