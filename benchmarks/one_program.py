"""One compiled program samples with all settings, as fast as a program for one of them; so does its exported file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Claim
from jdiff import rng
from jdiff.commands.export import export
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.inference import program
from jdiff.inference.sampler import MAX_ROWS, Sampler, make_batches
from jdiff.interop.pretrained import NO_HINTS
from jdiff.runs import directory

PROMPTS = ("a large red circle above a small blue star", "two green rings", "a small black cross at the top", "")
NEGATIVES = ("", "a blue star")
STEPS = (1, 5, 10, 20, 50, 100)
GUIDANCE = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"guidance_scale": 3.0, "guidance_rescale": 0.7},
    {"guidance_scale": 8.0, "apg_parallel": 0.0, "apg_norm": 0.3, "apg_momentum": -0.5, "threshold_percentile": 99.0},
    {"guidance_scale": 4.0, "guidance_from": -4.0, "guidance_to": 3.0},
)
BATCH = 4


def claims(run: Path, quick: bool) -> Iterator[Claim]:
    """All claims of this page, on a trained run."""
    yield from _mixed_batches(run, quick)
    yield from _cost(run, quick)
    yield from _exported_sampler(run)


def _mixed_batches(run: Path, quick: bool) -> Iterator[Claim]:
    """All methods, numbers of steps and guidances in mixed batches of one program, in uniform batches, and one by one.

    A uniform batch repeats one image; its bits must be those of the mixed batch.
    """
    model = directory.load(run)
    settings = [
        replace(model.settings, solver=solver, steps=steps, eta=0.5 if solver == "ddim" else 0.0, **guidance)
        for steps in STEPS
        for solver in SOLVERS
        for guidance in GUIDANCE
    ]
    settings = settings[:: 61 if quick else 1]
    n = len(settings)
    captions = captions_of(model, n)
    compiled_sampler = jax.jit(partial(program.denoised, model.spec()))

    def sample(indices: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        inputs = model.inputs([settings[i] for i in indices])
        return np.asarray(compiled_sampler(model.params, inputs, [column[indices] for column in captions], noise)[0])

    order = np.random.default_rng(0).permutation(n)
    mixed_x0 = np.zeros((n, *model.shape), np.float32)
    for batch in make_batches([model.tableau(settings[i]) for i in order], BATCH):
        mixed_x0[order[batch]] = sample(order[batch])
    uniform_x0, batch_seconds = np.zeros_like(mixed_x0), defaultdict(list)
    for i in range(n):
        start = time.perf_counter()
        uniform_x0[i] = sample(np.full(BATCH, i))[0]
        batch_seconds[settings[i].steps].append(time.perf_counter() - start)
    num_programs = compiled_sampler._cache_size()
    single_x0 = np.concatenate([sample(np.array([i])) for i in range(n)])
    text = f"programs compiled for {len(SOLVERS)} methods x {len(STEPS)} numbers of steps x {len(GUIDANCE)} guidances"
    yield Claim(text, num_programs, 1, at_most=True)
    count = (mixed_x0 != uniform_x0).any((1, 2, 3)).sum()
    yield Claim(f"... of {n} images, those with any bit that depends on their batch", float(count), 0, at_most=True)
    errors, sensitivity = np.abs(single_x0 - uniform_x0).max((1, 2, 3)), np.zeros(n)
    for i in np.flatnonzero(errors > 1e-4):  # how much these change if their initial noise is rounded up
        index = np.array([i])
        noise = np.asarray(sampler.initial_noise(rng.image_keys(captions[-1][index]), model.shape))
        sensitivity[i] = np.abs(sample(index, np.nextafter(noise, np.inf)) - sample(index, noise)).max()
    for guidance in GUIDANCE:
        indices = [i for i in range(n) if all(getattr(settings[i], key) == value for key, value in guidance.items())]
        label = ", ".join(f"{key} {value:g}" for key, value in guidance.items())
        note = f"(median {np.median(errors[indices]):.1e}, {np.mean(errors[indices] <= 1e-4):.1%} within 1e-4)"
        if sensitivity[indices].any():
            note += f"; the others change by {sensitivity[indices].max():.1e} if their initial noise is rounded up"
        text = f"... largest difference from a batch of one, of values from -1 to 1, {label}"
        yield Claim(text, float(errors[indices].max()), 1e-4, at_most=True, note=note)
    for steps, seconds in batch_seconds.items():
        text = f"... {BATCH} images of {steps} steps, mean over methods and guidances, in seconds"
        yield Claim(text, float(np.mean(seconds)))


def _cost(run: Path, quick: bool) -> Iterator[Claim]:
    """The time of the program for all settings, at 20 of 1000 rows, over that of a dedicated scan of the 20 rows."""
    model = directory.load(run)
    for b in (8,) if quick else (1, 8):
        for scale in (1.0, 3.0):
            settings = replace(model.settings, solver="ddim", eta=0.0, steps=20, guidance_scale=scale)
            general, special = general_sampler(model, settings, b), dedicated_sampler(model, settings, b)
            images, special_images = np.asarray(general()), np.asarray(special())
            ratios = _time_ratios(general, special, 4 if quick else 25)
            lowest = float(ratios.min()) if quick else None  # of four, the interval of a median is all of them
            kind = "guided" if scale != 1 else "unguided"
            text = f"time over a dedicated program's, batch {b}, {kind}"
            yield Claim(text, float(np.median(ratios)), 1.03, at_most=True, at_best=lowest)
            difference = np.abs(images.astype(int) - special_images.astype(int)).max()
            text = f"... and the largest difference of a pixel, of 255, {kind}"
            yield Claim(text, float(difference), 1, at_most=True)


def _time_ratios(a: Callable, b: Callable, repeats: int) -> np.ndarray:
    """The times of a over those of b, (repeats,), measured in alternating order."""
    ratios = []
    for i in range(repeats):
        times = {}
        for call in (a, b) if i % 2 else (b, a):
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[call] = time.perf_counter() - start
        ratios.append(times[a] / times[b])
    return np.array(ratios)


def captions_of(model: Sampler, b: int) -> list:
    """The columns of ``program.CAPTIONS`` for b images."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(b)]
    negatives = [NEGATIVES[i % len(NEGATIVES)] for i in range(b)]
    return [*model.tokenizer.encode(prompts), *model.tokenizer.encode(negatives), np.arange(b, dtype=np.uint32)]


def general_sampler(model: Sampler, settings: Settings, b: int) -> Callable:
    """The program for all settings, with these as its inputs."""
    spec, inputs = model.spec(), jax.device_put(model.inputs([settings] * b))
    captions = jax.device_put(captions_of(model, b))
    return lambda: program.draw(spec, model.params, inputs, captions, None)[0]


def dedicated_sampler(model: Sampler, settings: Settings, b: int) -> Callable:
    """A program for DDIM of these steps alone, guided or not, as one would write it for nothing else."""
    tableau = jax.tree.map(lambda c: c.astype(np.float32), model.tableau(settings))
    scale = settings.guidance_scale
    captions = jax.device_put(captions_of(model, b))

    @jax.jit
    def draw(params, captions):
        tokens, mask, negative, negative_mask, seeds = captions

        def encode(tokens, mask):
            hidden, pooled = model.text.apply({"params": params["text"]}, tokens, mask)
            return hidden, mask, pooled

        caption = encode(tokens, mask)
        if scale != 1:
            caption = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), caption, encode(negative, negative_mask))

        def step(xt, row):
            x, t = (jnp.concatenate([xt, xt]), jnp.full(2 * b, row.timestep)) if scale != 1 else (xt, row.timestep)
            output = model.denoiser.apply({"params": params["denoiser"]}, x, jnp.broadcast_to(t, x.shape[:1]), *caption)
            if scale != 1:
                output = output[b:] + scale * (output[:b] - output[b:])
            level = jax.tree.map(lambda rate: jnp.broadcast_to(rate, (b,)), row.level)
            estimate = prediction.solve(model.prediction_type, output, xt, level)
            x0 = jnp.clip(estimate.x0, -1, 1)
            eps = (xt - row.level.alpha * x0) / row.level.sigma
            return row.x0_coef * x0 + row.eps_coef * eps, None

        xt = sampler.initial_noise(rng.image_keys(seeds), model.shape)
        x0, _ = jax.lax.scan(step, xt, tableau)
        return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return lambda: draw(model.params, captions)


STANDALONE = """
import sys
sys.modules["jdiff"] = sys.modules["flax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import draw
captions = np.load(sys.argv[2])
np.save(sys.argv[3], draw.load_exported(sys.argv[1])(*(captions[name] for name in captions.files)))
"""


def _exported_sampler(run: Path) -> Iterator[Claim]:
    """The exported folder, in a process that can import neither jdiff nor flax, against the run itself."""
    model, changes, n = directory.load(run), {"solver": "dpmpp_2m", "steps": 20, "guidance_scale": 3.0}, 5
    with tempfile.TemporaryDirectory() as folder:
        export(str(run), f"{folder}/exported", hints=NO_HINTS, changes=changes, max_rows=MAX_ROWS)
        np.savez(f"{folder}/captions.npz", *captions_of(model, n))
        arguments = [f"{folder}/{name}" for name in ("exported", "captions.npz", "images.npy")]
        subprocess.run([sys.executable, "-c", STANDALONE, *arguments], check=True)
        exported_images = np.load(f"{folder}/images.npy")
    settings, captions = replace(model.settings, **changes), captions_of(model, n)
    images = program.draw(model.spec(), model.params, model.inputs([settings] * n), captions, None)[0]
    difference = np.abs(exported_images.astype(int) - np.asarray(images).astype(int)).max()
    text = "exported, without jdiff and flax: largest difference of a pixel, of 255"
    yield Claim(text, float(difference), 0, at_most=True)
