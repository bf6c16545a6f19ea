"""The U-Net's training step: caption dropout to the empty caption of sampling, frozen parameters, call depth."""

import itertools
import json
import re
import traceback
from functools import cache
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jdiff as package
from jdiff.config.construct import ConfigError
from jdiff.runtime.distributed import StopSignals
from jdiff.runtime.watchdog import Watchdog
from jdiff.tasks import make_task
from jdiff.training import loop
from tests.training.test_training import compiled, run

CONFIG = {
    "data": {"image_size": 8},
    "tokenizer": {"context_length": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 16, "activation": "gelu", "causal": False},
    "denoiser": {"channels": (8,), "attention": (True,), "heads": (1,), "blocks": 1, "groups": 4, "pooled": True},
    "diffusion": {"schedule": "cosine", "prediction_type": "x0", "weighting": "min_snr"},
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
    "ema": {"decays": (0.9,), "widths": (0.1,)},
    "mesh": {"data": 1},
    "train": {"task": "text_to_image", "batch_size": 8, "steps": 1000},
}
EMPTY = np.array([1, 2] + [0] * 6, np.int32)


class Words:
    """The interface of a tokenizer, for tokens without captions: all that it encodes is the empty caption."""

    vocab_size = 20

    def encode(self, captions):
        tokens = np.tile(EMPTY, (len(captions), 1))
        return tokens, tokens > 0


def with_changes(**changes):
    """CONFIG with changed keys, by section."""
    return CONFIG | {name: CONFIG[name] | keys for name, keys in changes.items()}


def make(config):
    return make_task(config).with_tokenizer(Words())


@cache
def start(config_text):
    """A state without zero initialization, so that the caption has an effect. config_text: JSON."""
    task, _ = compiled(config_text, Words)
    state = task.initial_state(task.config.mesh.make(), {})
    return jax.device_get(state.replace(params=jax.tree.map(lambda p: p + 0.1, state.params)))


def batch(word):
    tokens = np.array([[1, word, 2] + [0] * 5] * 8, np.int32)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens, "mask": tokens > 0, "index": np.arange(8, dtype=np.int32)}


def take_step(state, rows, **changes):
    """One step of a config that differs from CONFIG in traced hyperparameters alone, and so runs CONFIG's program."""
    _, compiled_step = compiled(json.dumps(CONFIG), Words)
    state, metrics = compiled_step.func(make(with_changes(**changes)).config.hparams, state, rows)
    return state, float(metrics["loss"].compute())


def loss(dropout, rows):
    return take_step(start(json.dumps(CONFIG)), rows, diffusion={"caption_dropout": dropout})[1]


def test_dropped_captions_are_the_empty_caption():
    assert loss(0.0, batch(5)) != loss(0.0, batch(6))
    assert loss(1.0, batch(5)) == loss(1.0, batch(6))
    tokens = np.tile(EMPTY, (8, 1))
    empty = batch(5) | {"tokens": tokens, "mask": tokens > 0}
    np.testing.assert_allclose(loss(0.0, empty), loss(1.0, batch(5)), rtol=1e-6)


def test_text_tower_stays_frozen_and_ema_is_updated():
    first = start(json.dumps(CONFIG))
    state, _ = take_step(first, batch(5))
    assert list(first.params) == ["denoiser"] and list(first.frozen) == ["text"]
    jax.tree.map(np.testing.assert_array_equal, first.frozen, state.frozen)
    assert int(state.step) == 1
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.ema, state.ema)
    assert max(jax.tree.leaves(differences)) > 0


def test_unet_overfits_one_image():
    """Two hundred steps on one image reduce the loss to less than a quarter."""
    adam = {"learning_rate": 2e-3, "final_lr_fraction": 1.0, "weight_decay": 0.0, "b2": 0.999, "clip_norm": 1e9}
    state, rows, losses = start(json.dumps(CONFIG)), batch(5), []
    rows["image"] = np.repeat(rows["image"][:1], 8, axis=0)
    for _ in range(200):
        state, value = take_step(state, rows, optimizer=adam)
        losses.append(value)
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])


FROZEN_HALF = with_changes(train={"freeze": ("denoiser/down.*", "denoiser/middle.*"), "steps": 3})


def flatten(tree):
    return {"/".join(path): leaf for path, leaf in flatten_dict(tree).items()}


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_frozen_half_of_a_unet_has_no_moments_and_no_ema():
    """Counted in bytes: Adam's two moments, and the EMAs, of the trained parameters alone, beside a few counters."""
    state, full_state = (jax.eval_shape(make(config).first_state, {}) for config in (FROZEN_HALF, CONFIG))
    params = flatten(full_state.params)
    frozen_paths = {path for path in params if re.match("denoiser/(down|middle)", path)}
    frozen_bytes = num_bytes([params[path] for path in frozen_paths])
    trained_bytes = num_bytes(params) - frozen_bytes
    assert 0.3 < frozen_bytes / num_bytes(params) < 0.7
    assert flatten(state.params).keys() == params.keys() - frozen_paths
    assert flatten(state.frozen).keys() == frozen_paths | flatten(full_state.frozen).keys()
    num_emas = len(CONFIG["ema"]["decays"]) + len(CONFIG["ema"]["widths"])
    assert num_bytes(state.ema) == num_emas * trained_bytes
    counters = num_bytes(full_state.opt_state) - 2 * num_bytes(params)
    assert 0 < counters < 64
    assert num_bytes(state.opt_state) == 2 * trained_bytes + counters


def test_frozen_parameters_stay_and_all_others_change_in_three_steps():
    state, (_, step) = start(json.dumps(FROZEN_HALF)), compiled(json.dumps(FROZEN_HALF), Words)
    trained, frozen, averages = (flatten(tree) for tree in (state.params, state.frozen, state.ema))
    for _ in range(3):
        state, _ = step(state, batch(5))
    for path, leaf in flatten(state.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[path], err_msg=path)
    same_leaves = [path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, trained[path])]
    assert same_leaves == []
    assert not any(np.array_equal(leaf, averages[path]) for path, leaf in flatten(state.ema).items())


def test_resume_with_frozen_parameters_is_bit_identical(tmp_path):
    for name in ("uninterrupted", "resumed"):
        (tmp_path / name).mkdir()
    state = run(tmp_path / "uninterrupted", config=FROZEN_HALF, tokenizer=Words)
    with pytest.raises(loop.Interruption):
        run(tmp_path / "resumed", config=FROZEN_HALF, tokenizer=Words, stop_at=1)
    resumed_state = run(tmp_path / "resumed", config=FROZEN_HALF, tokenizer=Words)
    assert int(state.step) == int(resumed_state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state, resumed_state)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "resumed")]
    assert lines[0] == lines[1] and json.loads(lines[0].splitlines()[-1])["step"] == 3


@pytest.mark.parametrize(
    "freeze",
    [
        ("denoiser/dwn.*",),  # matches nothing
        ("denoiser/down.*", "denoiser/conv"),  # the second matches only a part of paths
        ("denoiser/.*",),  # leaves nothing to train
        ("denoiser/(down.*",),  # is no regular expression
        "denoiser/down.*",  # a string is no sequence of patterns
        (7,),
    ],
    ids=str,
)
def test_invalid_freeze_is_rejected(freeze):
    with pytest.raises(ConfigError, match=r"config\.train\.freeze"):
        task = make(with_changes(train={"freeze": freeze}))
        task.initial_state(task.config.mesh.make(), {})


def test_denoiser_is_at_most_six_frames_below_the_loop(monkeypatch):
    """A step is read from the loop to the network: frames of jdiff from ``run_loop`` to the denoiser's first layer,
    without those of networks and of libraries."""

    class LayerCall(Exception):
        pass

    call = nn.Dense.__call__

    def raise_in_denoiser(layer, x):
        if layer.path[0] == "time1":  # the denoiser's; the text tower has none
            raise LayerCall
        return call(layer, x)

    task, _ = compiled(json.dumps(CONFIG), Words)
    step, state = task.compiled_step(task.config.mesh.make()), start(json.dumps(CONFIG))
    monkeypatch.setattr(nn.Dense, "__call__", raise_in_denoiser)
    with pytest.raises(LayerCall) as error_info, StopSignals() as stop:
        loop.run_loop(
            state,
            step,
            itertools.repeat(batch(5)),
            steps=1,
            log_every=1,
            save_every=1,
            checkpoints=None,
            writer=None,
            callbacks=(),
            stop=stop,
            watchdog=Watchdog({}),
        )
    root = Path(package.__file__).parent
    paths = [Path(frame.filename) for frame in traceback.extract_tb(error_info.tb)]
    files = [str(path.relative_to(root)) for path in paths if path.is_relative_to(root)]
    files = [file for file in files if not file.startswith("models/")]
    assert files[0] == "training/loop.py" and "diffusion/loss.py" in files
    assert len(files) <= 6, files
