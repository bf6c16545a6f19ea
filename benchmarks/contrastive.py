"""``python -m benchmarks contrastive``: memory of the contrastive losses, sharded over eight fake CPU devices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.claims import Claim, report
from jdiff.contrastive.loss import FORMS, LOSSES

WIDTH, LARGE, CHUNK = 512, 65_536, 512
FORM_OPTIONS = {"dense": {}, "gathered": {}, "ring": {}, f"ring, chunks of {CHUNK}": {"chunk": CHUNK}}


def measure(*, quick: bool, runs: str) -> int:
    """Measure every claim; quickly, those of one loss. Returns the exit status."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    return report("contrastive", chain(*map(_memory, list(LOSSES)[: 1 if quick else None])), quick=quick)


def _memory(kind: str) -> Iterator[Claim]:
    """Temporary memory per device of the loss and its gradient, compiled for a batch that eight devices share."""
    rows, number = jax.ShapeDtypeStruct((LARGE, WIDTH), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    batch_sharding, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    in_shardings, mib = (batch_sharding, batch_sharding, replicated, replicated), {}
    out_shardings = ((replicated, replicated), in_shardings)
    for form, options in FORM_OPTIONS.items():
        loss = FORMS[form.partition(",")[0]](LOSSES[kind], mesh, ("data",), **options)
        loss_and_grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        program = jax.jit(loss_and_grads, in_shardings=in_shardings, out_shardings=out_shardings)
        memory = program.lower(rows, rows, number, number).compile().memory_analysis()
        mib[form] = memory.temp_size_in_bytes / 2**20
        yield Claim(f"{kind}, {form}: MiB on each of 8 devices, batch {LARGE:,} x {WIDTH}", mib[form])
    for (form, _), divisor in zip(list(FORM_OPTIONS.items())[2:], (9, 40)):
        text = f"{kind}, {form}: share of the dense form's memory"
        yield Claim(text, mib[form] / mib["dense"], 1 / divisor, at_most=True)
