"""The claims of sampling: one program for everything, at no cost, and how many steps a picture needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Claim, settle
from jdiff import rng, runs, sample
from jdiff.data import records
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.solvers import SOLVERS
from jdiff.evaluation import prompt_accuracy, shapes
from jdiff.sample import Sampler, Settings

PROMPTS = ("a large red circle above a small blue star", "two green rings", "a small black cross at the top", "")
STEPS = (1, 5, 10, 20, 50, 100)
GUIDANCE = (
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"guidance_scale": 3.0, "rescale": 0.7},
    {"guidance_scale": 8.0, "parallel": 0.0, "norm": 0.3, "momentum": -0.5, "percentile": 99.0},
    {"guidance_scale": 4.0, "guidance_from": -4.0, "guidance_to": 3.0},
)
# For each method of the figure, what it is beside its name, and the steps it is drawn with.
FEW = (5, 10, 15, 20, 30, 50, 100)
METHODS = {
    "ddpm": ({"solver": "ddpm"}, (*FEW, 250, 1000)),
    "ddim": ({"solver": "ddim", "eta": 0.0}, (*FEW, 250)),
    "heun": ({"solver": "heun"}, FEW),
    "dpmpp_2m": ({"solver": "dpmpp_2m"}, FEW),
    "dpmpp_2m_sde": ({"solver": "dpmpp_2m_sde"}, FEW),
    "unipc_3": ({"solver": "unipc_3"}, FEW),
}
BEST = ("dpmpp_2m", 20)  # what is held against ("ddim", 50) and ("ddpm", 1000)


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim whose run exists. Returns the exit status."""
    path = next((Path(runs) / name for name in ("shapes_t2i", "shapes") if (Path(runs) / name).exists()), None)
    if path is None:
        return settle("mathematics", [Claim("a trained run to sample from", None, note="`make demo` trains one")])
    return settle("mathematics", chain(_one_program(path, quick), _cost(path, quick), _accuracy(path, quick)))


def _one_program(path: Path, quick: bool) -> Iterator[Claim]:
    """Every method, number of steps and guidance in mixed batches of one program, and each image alone."""
    model = runs.load(path)
    every = [
        replace(model.settings, solver=solver, steps=steps, eta=0.5 if solver == "ddim" else 0.0, **guidance)
        for steps in STEPS
        for solver in SOLVERS
        for guidance in GUIDANCE
    ]
    every = every[:: 17 if quick else 1]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(every))]
    draw = partial(model.sample, negative="a blue star", batch_size=8)
    before = sample.draw._cache_size()
    together = draw(prompts, settings=every)
    mixed = np.random.default_rng(0).permutation(len(every))
    again = np.zeros_like(together)
    again[mixed] = draw([prompts[i] for i in mixed], settings=[every[i] for i in mixed], seed=mixed.tolist())
    yield Claim("programs compiled for all of them", sample.draw._cache_size() - before, 1, at_most=True)
    yield Claim("images that differ in other company", float((together != again).any((1, 2, 3)).sum()), 0, at_most=True)


def _cost(path: Path, quick: bool) -> Iterator[Claim]:
    """The one program, at 20 of 1000 rows, beside a program written for that case alone."""
    model = runs.load(path)
    for b in (8,) if quick else (1, 8):
        for scale in (1.0, 3.0):
            settings = replace(model.settings, solver="ddim", eta=0.0, steps=20, guidance_scale=scale)
            general, dedicated = _general(model, settings, b), _dedicated(model, settings, b)
            a, c = np.asarray(general()), np.asarray(dedicated())
            ratio = _ratio(general, dedicated, 5 if quick else 25)
            kind = "guided" if scale != 1 else "unguided"
            yield Claim(f"time over a dedicated program's, batch {b}, {kind}", ratio, 1.03, at_most=True)
            off = np.abs(a.astype(int) - c.astype(int)).max()
            yield Claim(f"... and the largest difference of a pixel, of 255, {kind}", float(off), 1, at_most=True)


def _ratio(a: Callable, b: Callable, repeats: int) -> float:
    """The median of the ratios of the two's times, side by side in turns."""
    ratios = []
    for i in range(repeats):
        times = {}
        for call in (a, b) if i % 2 else (b, a):
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[call] = time.perf_counter() - began
        ratios.append(times[a] / times[b])
    return float(np.median(ratios))


def _captions(model: Sampler, b: int) -> list:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(b)]
    return [*model.tokenizer.encode(prompts), *model.tokenizer.encode([""] * b), np.arange(b, dtype=np.uint32)]


def _general(model: Sampler, settings: Settings, b: int) -> Callable:
    program, method = model.program(), jax.device_put(model.method([settings] * b))
    captions = jax.device_put(_captions(model, b))
    return lambda: sample.draw(program, model.weights, method, captions, None)[0]


def _dedicated(model: Sampler, settings: Settings, b: int) -> Callable:
    """DDIM of so many steps, guided or not, as one would write it for nothing else."""
    tableau = jax.tree.map(lambda c: c.astype(np.float32), model.tableau(settings))
    scale = settings.guidance_scale
    captions = jax.device_put(_captions(model, b))

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
            return row.of_x0 * x0 + row.of_eps * eps, None

        xt = sampler.start(rng.image_keys(seeds), model.shape)
        x0, _ = jax.lax.scan(step, xt, tableau)
        return jnp.round((jnp.clip(x0, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    return lambda: draw(model.weights, captions)


def _accuracy(path: Path, quick: bool) -> Iterator[Claim]:
    """How many of the same prompts, from the same seeds, each method draws right with so many steps."""
    if quick:
        return
    held = records.records(runs.saved_experiment(path).dataset(), "test")
    chosen = shapes.sharp(held, 512)
    asked = [shapes.scenes(held)[i] for i in chosen]
    found = accuracy(path, [shapes.full_caption(held[i]) for i in chosen])
    right = {key: np.mean([v["whole"] for v in prompt_accuracy.verdicts(asked, drawn)]) for key, drawn in found}
    for (name, steps), share in right.items():
        yield Claim(f"{path.name}, {name} of {steps} steps: whole prompt right", float(share), note=f"of {len(asked)}")
    for other in (("ddim", 50), ("ddpm", 1000)):
        lower = right[other] - right[BEST]
        text = f"{BEST[0]} of {BEST[1]} steps, lower than {other[0]} of {other[1]} by"
        yield Claim(text, float(lower), 0.03, at_most=True)


def accuracy(path: Path, captions: list[str]) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """The pictures of every method and number of steps, as ((name, steps), (n, h, w, 3) uint8)."""
    model = runs.load(path)
    for name, (said, counts) in METHODS.items():
        for steps in counts:
            settings = replace(model.settings, **{"eta": 0.0, **said}, steps=steps)
            yield (name, steps), model.sample(captions, settings=settings, seed=0, batch_size=64)
