"""A short training and sampling run of the whole path on whatever JAX finds: images per second, device named.

On a GPU the networks are wide enough to keep it busy; on a CPU they are the demo's, for a few steps, so that
this code is tested everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Claim, settle
from jdiff import build
from jdiff.build.experiment import SECTIONS
from jdiff.data import tokenizer as tokenizers
from jdiff.data.shapes.source import Shapes
from jdiff.sharding import mesh as meshes

TOWER = {"width": 128, "layers": 3, "heads": 2, "embed_dim": 512, "activation": "gelu"}
SMALL = {"channels": (64, 128), "attention": (False, True), "heads": (1, 2), "blocks": 1, "groups": 16}
WIDE = {"channels": (128, 256, 512), "attention": (False, True, True), "heads": (2, 4, 8), "blocks": 2}


def config(objective: str, *, wide: bool, batch_size: int) -> dict:
    """The run that is timed, as a config."""
    sections = {
        "data": {"image_size": 32},
        "tokenizer": {"context_length": 16},
        "text": {**TOWER, "causal": False},
        "vision": {**TOWER, "patch_size": 8},
        "unet": {**(WIDE if wide else SMALL), "patch_size": 1 if wide else 2, "pooled": True},
        "optimizer": {"warmup_steps": 1},
        "diffusion": {"schedule": "cosine", "prediction_type": "x0", "weighting": "min_snr"},
        "train": {"objective": objective, "batch_size": batch_size, "steps": 10_000},
        "ema": {"decays": (0.999,)},
        "sample": {"steps": 50, "guidance_scale": 3.0},
    }
    return {name: section for name, section in sections.items() if name in SECTIONS[objective]}


def measure(*, quick: bool, runs: str) -> int:
    """Train each model for some steps on shapes drawn on the spot, then sample. Returns the exit status."""
    return settle("gpu_check", _claims(quick))


def _claims(quick: bool) -> Iterator[Claim]:
    gpu = jax.default_backend() == "gpu"
    batch_size, steps = (256, 10 if quick else 50) if gpu else (16, 3)
    examples = list(Shapes(train=batch_size).examples("train"))
    captions = [example.captions[0] for example in examples]
    tokenizer = tokenizers.train(captions, vocab_size=400, context_length=16)
    tokens, mask = tokenizer.encode(captions)
    rows = {"image": np.stack([e.image for e in examples]), "tokens": tokens, "mask": mask}
    rows["index"] = np.arange(batch_size, dtype=np.int32)
    towers = {}
    for objective in ("contrastive", "diffusion"):
        setup = build.experiment(config(objective, wide=gpu, batch_size=batch_size))
        mesh = setup.mesh()
        state, step = setup.initial_state(tokenizer, mesh, towers), setup.step(tokenizer)
        batch = meshes.place(mesh, rows)
        seconds, losses = [], []
        for _ in range(steps + 2):  # the first two compile and warm up
            began = time.perf_counter()
            state, report = step(state, batch)
            losses.append(float(report["loss"].compute()))
            seconds.append(time.perf_counter() - began)
        rate = batch_size / float(np.median(seconds[2:]))
        weights = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
        yield Claim(f"{objective} training, seconds until the first step is done", seconds[0])
        yield Claim(f"{objective} training, images a second", rate, note=f"({weights:.1f} M parameters)")
        state, report = step(state.replace(step=jnp.int32(0)), batch)  # the noise of the first step again
        fall = losses[0] - float(report["loss"].compute())
        yield Claim(f"{objective} training, loss falls by", fall, 0.0)
        towers = {"text": state.params["text"]} if objective == "contrastive" else towers
    sampler = setup.sampler(tokenizer, state.best)
    count = 64 if gpu else 4
    first = sampler.sample(captions[:count])
    began = time.perf_counter()
    again = sampler.sample(captions[:count])
    rate = count / (time.perf_counter() - began)
    yield Claim("sampling of 50 guided DDIM steps, images a second", rate)
    yield Claim("the same seed draws the same images", float(np.array_equal(first, again)), 1.0)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    yield Claim("peak memory, GiB", peak and peak / 2**30)
