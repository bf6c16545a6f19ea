"""Twenty steps of training on one layout of devices after another: ``python -m benchmarks sharding`` compares them.

As a program, one process of a run of several: python -m benchmarks.layouts OBJECTIVE HOST:PORT PROCESS FILE
"""

from __future__ import annotations

import runpy
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jdiff import build, rng, runtime
from jdiff.cli import shipped_configs
from jdiff.data import tokenizer as tokenizers
from jdiff.data.pipeline import Batches
from jdiff.data.shapes.source import Shapes
from jdiff.diffusion import loss as diffusion
from jdiff.runtime import distributed
from jdiff.sharding import mesh as meshes

STEPS, PROCESSES, EACH = 20, 2, 4
TASKS = {"contrastive": "demo_clip", "text_to_image": "demo_t2i"}
TRAIN = {"batch_size": 16, "steps": STEPS}


class Run(NamedTuple):
    """What a run drew for its first step, by name, its parameters at the end, and its losses."""

    drawn: dict[str, np.ndarray]
    params: np.ndarray
    losses: np.ndarray


@cache
def _data() -> tuple[list[dict], tokenizers.Tokenizer]:
    examples = list(Shapes(train=128).examples("train"))
    captions = [example.captions[0] for example in examples]
    rows = [{"image": example.image, "captions": [example.captions[0].encode()]} for example in examples]
    return rows, tokenizers.train(captions, vocab_size=400, context_length=16)


def setup(task: str, mesh: dict, **train) -> build.Experiment:
    """The demo's model, in its tiny variant, whose learning rate is at its height from the first step."""
    text = _config("contrastive")["text"]
    own = {"text": text, "tokenizer": {"context_length": 16}, "mesh": mesh}
    config = _config(task)
    said = {"optimizer": config["optimizer"] | {"warmup_steps": 1}, "train": config["train"] | TRAIN | train}
    return build.experiment(config | own | said)


def _config(task: str) -> dict:
    config = runpy.run_path(str(shipped_configs()[TASKS[task]]))["get_config"]("tiny").to_dict()
    config["data"] = {"image_size": 32}
    return config


def run(task: str, mesh: dict, **train) -> Run:
    """Train on a layout. Every process of it calls this."""
    experiment, (rows, tokenizer) = setup(task, mesh, **train), _data()
    mesh, step = experiment.mesh(), experiment.step(tokenizer)
    state, losses, drawn = experiment.initial_state(tokenizer, mesh, {}), [], None
    own, shares = meshes.local_batch_shards(mesh), meshes.num_batch_shards(mesh)
    batches = Batches(rows, tokenizer, batch_size=TRAIN["batch_size"], seed=0, own=own, parts=shares)
    for _ in range(STEPS):
        batch = meshes.place_batch(mesh, next(batches))
        drawn = drawn or _numpy(mesh, _drawn(experiment, batch))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].compute()))
    batches.close()
    params = [leaf.ravel() for leaf in jax.tree.leaves(_numpy(mesh, state.params))]
    return Run(drawn, np.concatenate(params), np.array(losses))


def _drawn(experiment: build.Experiment, batch: dict) -> dict:
    """What the first step draws for its batch, as ``training.steps`` does; nothing where nothing is drawn."""
    if experiment.train.task == "contrastive":
        return {}
    parts, dropout = experiment.parts(), experiment.diffusion.caption_dropout

    def draw(rows: dict) -> dict:
        def keys(name: str) -> jax.Array:
            return rng.example_keys(rng.stream(experiment.train.seed, name), 0, rows["index"])

        timestep, noise = diffusion.draw(
            keys("noise"),
            rows["image"].astype(np.float32),
            experiment.schedule(),
            experiment.diffusion.timestep_sampling,
        )
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(keys("caption_dropout"))
        return {"timestep": timestep, "noise": noise, "caption_dropout": dropped}

    if experiment.train.deterministic_reduction:
        return jax.jit(draw)(batch)
    return jax.jit(lambda batch: parts.each(lambda _, rows: draw(rows), None, batch))(batch)


def _numpy(mesh, tree):
    return jax.tree.map(np.asarray, meshes.gather_to_local_device(mesh, tree))


def in_processes(task: str) -> Run:
    """A run of ``PROCESSES`` processes with ``EACH`` devices, cut by data and fsdp."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "run.npz")
        command = [sys.executable, "-m", "benchmarks.layouts", task, address]
        processes = [subprocess.Popen([*command, str(i), file]) for i in range(PROCESSES)]
        try:
            if any([process.wait() for process in processes]):
                raise RuntimeError("a process of the run has failed; what it says is above")
        finally:
            for process in processes:
                process.kill()
        found = dict(np.load(file))
    return Run({k: v for k, v in found.items() if k not in Run._fields}, found["params"], found["losses"])


def main(task: str, address: str, process: str, file: str) -> None:
    runtime.setup()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", EACH)
    distributed.initialize(distributed.Cluster("auto", address, PROCESSES, int(process), PROCESSES * EACH))
    found = run(task, {"data": PROCESSES, "fsdp": EACH})
    if distributed.is_primary_process():
        np.savez(file, params=found.params, losses=found.losses, **found.drawn)


if __name__ == "__main__":
    main(*sys.argv[1:])
