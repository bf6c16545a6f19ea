"""Twenty steps of the demo's training on one mesh of devices, in this process or in several.

As a program, one process of a run of several: python -m tests.sharding.layouts TASK HOST:PORT PROCESS FILE
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
from jax.sharding import Mesh

from jdiff import rng, runtime
from jdiff.commands.flags import shipped_configs
from jdiff.data import tokenizer as tokenizers
from jdiff.data.pipeline import Batches
from jdiff.data.shapes.source import Shapes
from jdiff.diffusion import loss as diffusion
from jdiff.runtime import distributed
from jdiff.sharding import mesh as meshes
from jdiff.tasks import make_task
from jdiff.tasks.task import ImageTextTask

STEPS, PROCESSES, DEVICES_PER_PROCESS = 20, 2, 4
TASKS = {"contrastive": "demo_clip", "text_to_image": "demo_t2i"}
TRAIN = {"batch_size": 16, "steps": STEPS}


class RunResults(NamedTuple):
    """draws: random numbers of the first step, by name.   params: at the end, flat.   losses: of every step."""

    draws: dict[str, np.ndarray]
    params: np.ndarray
    losses: np.ndarray


@cache
def _data() -> tuple[list[dict], tokenizers.Tokenizer]:
    examples = list(Shapes(train=128).examples("train"))
    captions = [example.captions[0] for example in examples]
    rows = [{"image": example.image, "captions": [example.captions[0].encode()]} for example in examples]
    return rows, tokenizers.train_tokenizer(captions, vocab_size=400, context_length=16)


def demo_task(name: str, mesh: dict, **train) -> ImageTextTask:
    """The demo's task in its tiny variant, with one warmup step."""
    config = _config(name)
    config |= {"text": _config("contrastive")["text"], "tokenizer": {"context_length": 16}, "mesh": mesh}
    config |= {"optimizer": config["optimizer"] | {"warmup_steps": 1}, "train": config["train"] | TRAIN | train}
    return make_task(config).with_tokenizer(_data()[1])


def _config(task_name: str) -> dict:
    config = runpy.run_path(str(shipped_configs()[TASKS[task_name]]))["get_config"]("tiny").to_dict()
    config["data"] = {"image_size": 32}
    return config


def run(task_name: str, mesh_sizes: dict, **train) -> RunResults:
    """Train on a mesh. Every process of it calls this."""
    task, (rows, tokenizer) = demo_task(task_name, mesh_sizes, **train), _data()
    mesh = task.config.mesh.make()
    step, state = task.compiled_step(mesh), task.initial_state(mesh, {})
    losses, draws = [], None
    batches = Batches(
        rows,
        tokenizer,
        batch_size=TRAIN["batch_size"],
        seed=0,
        local_shards=meshes.local_batch_shards(mesh),
        num_shards=meshes.num_batch_shards(mesh),
    )
    for _ in range(STEPS):
        batch = meshes.place_batch(mesh, next(batches))
        draws = draws or _numpy(mesh, _draws_of_first_step(task, mesh, batch))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"].compute()))
    batches.close()
    params = [leaf.ravel() for leaf in jax.tree.leaves(_numpy(mesh, state.params))]
    return RunResults(draws, np.concatenate(params), np.array(losses))


def _draws_of_first_step(task: ImageTextTask, mesh: Mesh, batch: dict) -> dict:
    """The random numbers of the first step, as ``DiffusionObjective`` draws them; a contrastive step draws none."""
    if task.name == "contrastive":
        return {}
    section, schedule, seed = task.config.diffusion, task.schedule(), task.config.train.seed

    def draw(rows: dict) -> dict:
        def keys(name: str) -> jax.Array:
            return rng.example_keys(rng.stream(seed, name), 0, rows["index"])

        images = rows["image"].astype(np.float32)
        timestep, noise = diffusion.draw_timesteps_and_noise(
            keys("noise"), images, schedule, section.timestep_sampling_function()
        )
        is_dropped = jax.vmap(lambda key: jax.random.bernoulli(key, section.caption_dropout))(keys("caption_dropout"))
        return {"timestep": timestep, "noise": noise, "caption_dropout": is_dropped}

    if task.config.train.deterministic_reduction:
        return jax.jit(draw)(batch)
    return jax.jit(lambda batch: task.reduction(mesh).map(draw, batch))(batch)


def _numpy(mesh: Mesh, tree):
    return jax.tree.map(np.asarray, meshes.gather_to_local_device(mesh, tree))


def run_in_processes(task_name: str) -> RunResults:
    """A run of ``PROCESSES`` processes with ``DEVICES_PER_PROCESS`` devices, sharded along data and fsdp."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "run.npz")
        command = [sys.executable, "-m", "tests.sharding.layouts", task_name, address]
        processes = [subprocess.Popen([*command, str(i), file]) for i in range(PROCESSES)]
        try:
            if any([process.wait() for process in processes]):
                raise RuntimeError("a process of the run failed; its error is printed above")
        finally:
            for process in processes:
                process.kill()
        arrays = dict(np.load(file))
    draws = {name: array for name, array in arrays.items() if name not in RunResults._fields}
    return RunResults(draws, arrays["params"], arrays["losses"])


def main(task_name: str, address: str, process: str, file: str) -> None:
    runtime.setup()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES_PER_PROCESS)
    num_devices = PROCESSES * DEVICES_PER_PROCESS
    distributed.initialize(distributed.Cluster("auto", address, PROCESSES, int(process), num_devices))
    results = run(task_name, {"data": PROCESSES, "fsdp": DEVICES_PER_PROCESS})
    if distributed.is_primary_process():
        np.savez(file, params=results.params, losses=results.losses, **results.draws)


if __name__ == "__main__":
    main(*sys.argv[1:])
