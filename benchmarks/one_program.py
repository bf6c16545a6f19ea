"""One compiled program draws everything, at no cost beside a program for one thing, and so does its exported file."""

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
from jdiff import rng, runs, sample
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS
from jdiff.interop.pretrained import NO_HINTS
from jdiff.sample import Sampler
from jdiff.verbs.export import export

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


def claims(path: Path, quick: bool) -> Iterator[Claim]:
    """All claims of this page, on a trained run."""
    yield from _company(path, quick)
    yield from _cost(path, quick)
    yield from _exported(path)


def _company(path: Path, quick: bool) -> Iterator[Claim]:
    """Every method, number of steps and guidance in mixed batches of one program; each alone in it, and in one of 1."""
    model = runs.load(path)
    every = [
        replace(model.settings, solver=solver, steps=steps, eta=0.5 if solver == "ddim" else 0.0, **guidance)
        for steps in STEPS
        for solver in SOLVERS
        for guidance in GUIDANCE
    ]
    every = every[:: 61 if quick else 1]
    n = len(every)
    captions = captions_of(model, n)
    program = jax.jit(partial(sample.denoised, model.program()))

    def run(at: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        method = model.method([every[i] for i in at])
        return np.asarray(program(model.weights, method, [column[at] for column in captions], noise)[0])

    mixed = np.random.default_rng(0).permutation(n)
    together = np.zeros((n, *model.shape), np.float32)
    for at in sample.batches([model.tableau(every[i]) for i in mixed], BATCH):
        together[mixed[at]] = run(mixed[at])
    alone, took = np.zeros_like(together), defaultdict(list)
    for i in range(n):
        began = time.perf_counter()
        alone[i] = run(np.full(BATCH, i))[0]
        took[every[i].steps].append(time.perf_counter() - began)
    compiled = program._cache_size()
    single = np.concatenate([run(np.array([i])) for i in range(n)])
    text = f"programs compiled for {len(SOLVERS)} methods x {len(STEPS)} numbers of steps x {len(GUIDANCE)} guidances"
    yield Claim(text, compiled, 1, at_most=True)
    different = (together != alone).any((1, 2, 3)).sum()
    yield Claim(f"... of {n} images those that differ, in any bit, in other company", float(different), 0, at_most=True)
    worst, moved = np.abs(single - alone).max((1, 2, 3)), np.zeros(n)
    for i in np.flatnonzero(worst > 1e-4):  # by how much another rounding of what they begin from moves these
        at = np.array([i])
        start = np.asarray(sampler.initial_noise(rng.image_keys(captions[-1][at]), model.shape))
        moved[i] = np.abs(run(at, np.nextafter(start, np.inf)) - run(at, start)).max()
    for guidance in GUIDANCE:
        of = [i for i, one in enumerate(every) if all(getattr(one, key) == value for key, value in guidance.items())]
        said = ", ".join(f"{key} {value:g}" for key, value in guidance.items())
        note = f"(median {np.median(worst[of]):.1e}, {np.mean(worst[of] <= 1e-4):.1%} within 1e-4)"
        if moved[of].any():
            note += f"; of the others, where the noise begins one rounding higher: {moved[of].max():.1e}"
        text = f"... largest difference from a batch of one, of values from -1 to 1, {said}"
        yield Claim(text, float(worst[of].max()), 1e-4, at_most=True, note=note)
    for steps, seconds in took.items():
        text = f"... {BATCH} images of {steps} steps, mean over methods and guidances, in seconds"
        yield Claim(text, float(np.mean(seconds)))


def _cost(path: Path, quick: bool) -> Iterator[Claim]:
    """The one program, at 20 of 1000 rows, beside a program written for that case alone."""
    model = runs.load(path)
    for b in (8,) if quick else (1, 8):
        for scale in (1.0, 3.0):
            settings = replace(model.settings, solver="ddim", eta=0.0, steps=20, guidance_scale=scale)
            general, alone = _general(model, settings, b), dedicated(model, settings, b)
            a, c = np.asarray(general()), np.asarray(alone())
            ratios = _ratios(general, alone, 4 if quick else 25)
            least = float(ratios.min()) if quick else None  # of four, the interval of a median is all of them
            kind = "guided" if scale != 1 else "unguided"
            text = f"time over a dedicated program's, batch {b}, {kind}"
            yield Claim(text, float(np.median(ratios)), 1.03, at_most=True, at_best=least)
            off = np.abs(a.astype(int) - c.astype(int)).max()
            yield Claim(f"... and the largest difference of a pixel, of 255, {kind}", float(off), 1, at_most=True)


def _ratios(a: Callable, b: Callable, repeats: int) -> np.ndarray:
    """The ratios of the two's times, side by side in turns."""
    ratios = []
    for i in range(repeats):
        times = {}
        for call in (a, b) if i % 2 else (b, a):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[call] = time.perf_counter() - began
        ratios.append(times[a] / times[b])
    return np.array(ratios)


def captions_of(model: Sampler, b: int) -> list:
    """``sample.CAPTIONS`` of so many images."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(b)]
    negatives = [NEGATIVES[i % len(NEGATIVES)] for i in range(b)]
    return [*model.tokenizer.encode(prompts), *model.tokenizer.encode(negatives), np.arange(b, dtype=np.uint32)]


def _general(model: Sampler, settings: Settings, b: int) -> Callable:
    program, method = model.program(), jax.device_put(model.method([settings] * b))
    captions = jax.device_put(captions_of(model, b))
    return lambda: sample.draw(program, model.weights, method, captions, None)[0]


def dedicated(model: Sampler, settings: Settings, b: int) -> Callable:
    """DDIM of so many steps, guided or not, as one would write it for nothing else."""
    tableau = jax.tree.map(lambda c: c.astype(np.float32), model.tableau(settings))
    scale = settings.guidance_scale
    captions = jax.device_put(captions_of(model, b))

    @jax.jit
    def draw(weights, captions):
        tokens, mask, negative, negative_mask, seeds = captions

        def encode(tokens, mask):
            hidden, pooled = model.text.apply({"params": weights["text"]}, tokens, mask)
            return hidden, mask, pooled

        caption = encode(tokens, mask)
        if scale != 1:
            caption = jax.tree.map(lambda p, n: jnp.concatenate([p, n]), caption, encode(negative, negative_mask))

        def step(xt, row):
            x, t = (jnp.concatenate([xt, xt]), jnp.full(2 * b, row.timestep)) if scale != 1 else (xt, row.timestep)
            output = model.unet.apply({"params": weights["unet"]}, x, jnp.broadcast_to(t, x.shape[:1]), *caption)
            if scale != 1:
                output = output[b:] + scale * (output[:b] - output[b:])
            level = jax.tree.map(lambda rate: jnp.broadcast_to(rate, (b,)), row.level)
            answer = prediction.solve(model.prediction_type, output, xt, level)
            x0 = jnp.clip(answer.x0, -1, 1)
            eps = (xt - row.level.alpha * x0) / row.level.sigma
            return row.x0_coef * x0 + row.eps_coef * eps, None

        xt = sampler.initial_noise(rng.image_keys(seeds), model.shape)
        x0, _ = jax.lax.scan(step, xt, tableau)
        return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return lambda: draw(model.weights, captions)


ALONE = """
import sys
sys.modules["jdiff"] = sys.modules["flax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import draw
captions = np.load(sys.argv[2])
np.save(sys.argv[3], draw.load(sys.argv[1])(*(captions[name] for name in captions.files)))
"""


def _exported(path: Path) -> Iterator[Claim]:
    """The exported folder, in a process that can import neither jdiff nor flax, beside the run itself."""
    model, changes, n = runs.load(path), {"solver": "dpmpp_2m", "steps": 20, "guidance_scale": 3.0}, 5
    with tempfile.TemporaryDirectory() as folder:
        export(str(path), f"{folder}/alone", hints=NO_HINTS, changes=changes, max_rows=sample.MAX_ROWS)
        np.savez(f"{folder}/captions.npz", *captions_of(model, n))
        arguments = [f"{folder}/{name}" for name in ("alone", "captions.npz", "images.npy")]
        subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True)
        drawn = np.load(f"{folder}/images.npy")
    settings, captions = replace(model.settings, **changes), captions_of(model, n)
    ours = sample.draw(model.program(), model.weights, model.method([settings] * n), captions, None)[0]
    off = np.abs(drawn.astype(int) - np.asarray(ours).astype(int)).max()
    yield Claim("exported, without jdiff and flax: largest difference of a pixel, of 255", float(off), 0, at_most=True)
