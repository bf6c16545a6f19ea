"""The claims of sharding, on eight fake CPU devices.

A run is the same on every mesh, and so is every form of the contrastive losses, with a fraction of the memory.
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
from jdiff.contrastive.loss import FORMS, LOSSES, Loss

WIDTH, LARGE, CHUNK = 512, 65_536, 512
FORM_OPTIONS = {"dense": {}, "gathered": {}, "ring": {}, f"ring, chunks of {CHUNK}": {"chunk": CHUNK}}
START = {"softmax": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}  # scale and bias, as the papers initialize them


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
DETERMINISTIC = ({"data": 2}, {"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2}, {"data": 2, "fsdp": 4})


def _layouts() -> Iterator[Claim]:
    """The same batches and seed on every mesh, and in two processes."""
    for task in layouts.TASKS:
        single = None
        for name, (mesh, train) in (LAYOUTS | {"two processes x 4": (None, {})}).items():
            results = layouts.run_in_processes(task) if mesh is None else layouts.run(task, mesh, **train)
            if single is None:
                single = results
                continue
            text = f"{task}, {layouts.STEPS} steps, {name} against one device"
            if results.draws:
                count = sum(int(np.sum(results.draws[key] != single.draws[key])) for key in single.draws)
                note = f"(of {sum(x.size for x in single.draws.values()):,})"
                yield Claim(f"{text}: random numbers that differ", count, 0, at_most=True, note=note)
            difference = float(np.linalg.norm(results.params - single.params) / np.linalg.norm(single.params))
            note = f"(losses {np.max(np.abs(results.losses / single.losses - 1)):.1e})"
            yield Claim(f"{text}: relative difference of the parameters", difference, 1e-5, at_most=True, note=note)
        bits = {layouts.run(task, mesh, deterministic_reduction=16).params.tobytes() for mesh in DETERMINISTIC}
        text = f"{task}, deterministic reduction: different final parameters of {len(DETERMINISTIC)} meshes"
        yield Claim(text, len(bits), 1, at_most=True)


def _loss(kind: str, form_label: str, devices: int, **options: int) -> Loss:
    form = FORMS[form_label.partition(",")[0]]
    return form(LOSSES[kind], Mesh(np.array(jax.devices()[:devices]), ("data",)), ("data",), **options)


def _loss_and_grads(loss: Loss, **options):
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True), **options)


def _losses(quick: bool) -> Iterator[Claim]:
    yield from _agreement(64 if quick else 1024)
    for kind in LOSSES:
        yield from _memory(kind)


def _agreement(b: int) -> Iterator[Claim]:
    """Every form on 1, 2, 4 and 8 devices against the dense one on a single device."""
    text, image = np.random.default_rng(0).standard_normal((2, b, WIDTH)).astype(np.float32)
    image += 0.5 * text
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
    value_errors, grad_errors, relative_errors = [], [], []
    for kind, start in START.items():
        inputs = [jnp.asarray(x, jnp.float32) for x in (text, image, *start)]
        (dense_value, _), dense_grads = _loss_and_grads(_loss(kind, "dense", 1))(*inputs)
        for devices in (1, 2, 4, 8):
            for form, options in FORM_OPTIONS.items():
                loss = _loss(kind, form, devices, **({"chunk": b // 32} if options else {}))
                (value, _), grads = _loss_and_grads(loss)(*inputs)
                value_errors.append(abs(float(value - dense_value)))
                differences = [np.asarray(grad - dense_grad) for grad, dense_grad in zip(grads, dense_grads)]
                grad_errors.append(max(float(np.abs(x).max()) for x in differences))
                relative_errors += [np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(differences[:2], dense_grads)]
    count = len(LOSSES) * len(FORM_OPTIONS)
    text = f"{count} forms of the contrastive loss on 1, 2, 4, 8 devices, batch {b}, against dense on one"
    yield Claim(f"{text}: largest difference of the value", max(value_errors), 1e-6, at_most=True)
    note = f"(by embeddings, relative difference {max(relative_errors):.1e})"
    yield Claim("... of any element of the gradient", max(grad_errors), 1e-6, at_most=True, note=note)


def _memory(kind: str) -> Iterator[Claim]:
    """Temporary memory per device of the loss and its gradient, compiled for a batch that eight devices share."""
    rows, number = jax.ShapeDtypeStruct((LARGE, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch_sharding, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    in_shardings, mib = (batch_sharding, batch_sharding, replicated, replicated), {}
    out_shardings = ((replicated, replicated), in_shardings)
    for form, options in FORM_OPTIONS.items():
        loss = _loss(kind, form, 8, **options)
        program = _loss_and_grads(loss, in_shardings=in_shardings, out_shardings=out_shardings)
        memory = program.lower(rows, rows, number, number).compile().memory_analysis()
        mib[form] = memory.temp_size_in_bytes / 2**20
        yield Claim(f"{kind}, {form}: MiB on each of 8 devices, batch {LARGE:,} x {WIDTH}", mib[form])
    for (form, _), divisor in zip(list(FORM_OPTIONS.items())[2:], (9, 40)):
        text = f"{kind}, {form}: share of the dense form's memory"
        yield Claim(text, mib[form] / mib["dense"], 1 / divisor, at_most=True)
