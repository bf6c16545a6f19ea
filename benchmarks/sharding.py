"""The claims of sharding, on eight fake CPU devices: a run is the same on any layout of them; so are the contrastive
losses over devices, which take a part of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import layouts
from benchmarks.claims import Claim, report
from jdiff.contrastive.loss import FORMS, KINDS, Loss

WIDTH, LARGE, CHUNK = 512, 65_536, 512
WAYS = {"dense": {}, "gathered": {}, "ring": {}, f"ring, chunks of {CHUNK}": {"chunk": CHUNK}}
START = {"softmax": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}  # scale and bias, where the papers begin


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim. Returns the exit status."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    return report("sharding", chain(_losses(quick), () if quick else _layouts()))


LAYOUTS = {
    "one device": ({"data": 1}, {}),
    "data 8": ({"data": 8}, {}),
    "fsdp 8": ({"data": 1, "fsdp": 8}, {}),
    "2 x 2 x 2": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "8 microbatches": ({"data": 1}, {"microbatches": 8}),
}
FIXED = ({"data": 2}, {"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2}, {"data": 2, "fsdp": 4})


def _layouts() -> Iterator[Claim]:
    """The same batches and seed on every layout, and in two processes."""
    for task in layouts.TASKS:
        alone = None
        for name, (mesh, train) in (LAYOUTS | {"two processes x 4": (None, {})}).items():
            found = layouts.in_processes(task) if mesh is None else layouts.run(task, mesh, **train)
            alone = alone or found
            text = f"{task}, {layouts.STEPS} steps, {name} beside one device"
            if found is alone:
                continue
            if found.drawn:
                unlike = sum(int(np.sum(found.drawn[key] != alone.drawn[key])) for key in alone.drawn)
                note = f"(of {sum(x.size for x in alone.drawn.values()):,})"
                yield Claim(f"{text}: numbers drawn that differ", unlike, 0, at_most=True, note=note)
            off = float(np.linalg.norm(found.params - alone.params) / np.linalg.norm(alone.params))
            note = f"(losses {np.max(np.abs(found.losses / alone.losses - 1)):.1e})"
            yield Claim(f"{text}: parameters off, of their norm", off, 1e-5, at_most=True, note=note)
        bits = {layouts.run(task, mesh, deterministic_reduction=16).params.tobytes() for mesh in FIXED}
        text = f"{task}, fixed order: parameters that {len(FIXED)} layouts of two to eight devices end with"
        yield Claim(text, len(bits), 1, at_most=True)


def _loss(kind: str, way: str, devices: int, **options: int) -> Loss:
    form = FORMS[way.partition(",")[0]]
    return form(KINDS[kind], Mesh(np.array(jax.devices()[:devices]), ("data",)), ("data",), **options)


def _graded(loss: Loss, **options):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True), **options)


def _losses(quick: bool) -> Iterator[Claim]:
    yield from _same(64 if quick else 1024)
    for kind in KINDS:
        yield from _memory(kind)


def _same(b: int) -> Iterator[Claim]:
    """Every form on 1, 2, 4 and 8 devices beside the dense one on a single device."""
    text, image = np.random.default_rng(0).standard_normal((2, b, WIDTH)).astype(np.float32)
    image += 0.5 * text
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
    value, slope, norm = [], [], []
    for kind, start in START.items():
        given = [jnp.asarray(x, jnp.float32) for x in (text, image, *start)]
        (right, _), slopes = _graded(_loss(kind, "dense", 1))(*given)
        for devices in (1, 2, 4, 8):
            for way, options in WAYS.items():
                loss = _loss(kind, way, devices, **({"chunk": b // 32} if options else {}))
                (found, _), gradients = _graded(loss)(*given)
                value.append(abs(float(found - right)))
                differences = [np.asarray(mine - theirs) for mine, theirs in zip(gradients, slopes)]
                slope.append(max(float(np.abs(x).max()) for x in differences))
                norm += [np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(differences[:2], slopes)]
    text = (
        f"{len(KINDS) * len(WAYS)} forms of the contrastive loss on 1, 2, 4, 8 devices, batch {b}, beside dense on one"
    )
    yield Claim(f"{text}: value", max(value), 1e-6, at_most=True)
    note = f"(by embeddings, norm of the difference over the norm {max(norm):.1e})"
    yield Claim("... any element of the gradient", max(slope), 1e-6, at_most=True, note=note)


def _memory(kind: str) -> Iterator[Claim]:
    """Temporary memory of a device, of the value and its gradient over a batch that eight share, as compiled."""
    rows, number = jax.ShapeDtypeStruct((LARGE, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread, one = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    of_all, mib = (spread, spread, one, one), {}
    for way, options in WAYS.items():
        graded = _graded(_loss(kind, way, 8, **options), in_shardings=of_all, out_shardings=((one, one), of_all))
        memory = graded.lower(rows, rows, number, number).compile().memory_analysis()
        mib[way] = memory.temp_size_in_bytes / 2**20
        yield Claim(f"{kind}, {way}: MiB of each of 8 devices, batch {LARGE:,} x {WIDTH}", mib[way])
    for (way, _), share in zip(list(WAYS.items())[2:], (9, 40)):
        yield Claim(f"{kind}, {way}: of the dense form's", mib[way] / mib["dense"], 1 / share, at_most=True)
