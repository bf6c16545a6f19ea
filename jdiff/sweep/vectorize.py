"""Which runs can be trained as one vmapped program, and whether that is worth it.

Hyperparameters that the compiled step takes as arrays (``Task.traced_hparams``) may differ between the runs of one
program; everything else of a config must agree, since the program is compiled for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.sweep.cells import NOT_TRAINED
from jdiff.tasks import AnyTask
from jdiff.training.hyperparameters import TracedHyperparameters

TRIAL_SECONDS = 1  # that the vmapped program is tried for
MAX_TRIAL_SHARE = 0.04  # on a CPU: of the time of the runs one after another, what compiling one may take for a trial
MIN_SPEEDUP = 2  # over one run after another: vmapped runs are saved only at their end, and all finish or none
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX reports each program by it
LOG_PATTERN = r"^\d+ runs (?:vmapped|one after another).*"  # the line that reports the choice


def program_key(task: AnyTask) -> str:
    """What a run's program is compiled for; runs of one key can be vmapped."""
    config: dict[str, Any] = {
        name: dict(section) for name, section in task.config.raw.items() if name not in NOT_TRAINED
    }
    hparams, traced = task.traced_hparams()
    for section, keys in traced.items():
        for key in keys:
            config.get(section, {}).pop(key, None)
    return json.dumps([config, len(hparams.ema_decays)], sort_keys=True)


def stack_hparams(tasks: Sequence[AnyTask]) -> TracedHyperparameters:
    """The traced hyperparameters of several runs, each an array (runs, ...)."""
    rows = [task.traced_hparams()[0] for task in tasks]
    return jax.tree.map(lambda *values: jnp.stack([jnp.asarray(value) for value in values]), *rows)


@jax.jit
def unstack(tree: Any, i: int) -> Any:
    """Run i of arrays (runs, ...)."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def is_slow(task: AnyTask) -> bool:
    """Whether vmapping is known to be slow: on a CPU, gradients of convolutions with different kernels are."""
    return task.has_convolutions and _on_cpu()


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def groups(tasks: Mapping[str, AnyTask]) -> list[list[str]]:
    """The keys of runs, those that can be vmapped together in one list."""
    by_program: dict[str, list[str]] = {}
    for key, task in tasks.items():
        by_program.setdefault(program_key(task), []).append(key)
    return list(by_program.values())


def constant(model: Any) -> Callable[[], Any]:
    """A function that returns a model that exists, as one that trains it would."""
    return lambda: model


def time_without_compiling(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What some work returns, the seconds it took without compiling, and those of compiling."""
    compile_seconds = 0.0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal compile_seconds
        compile_seconds += seconds * (event == COMPILE_EVENT)

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    try:
        result = work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return result, time.perf_counter() - start - compile_seconds, compile_seconds


def compile_cost_too_high(compile_seconds: float, sequential_seconds: float) -> bool:
    """True if compiling the vmapped program could cost more than it saves: it takes half as long as compiling a single
    run, up to as long. On a CPU, where vmapping saves no arithmetic and is often given up, if a trial could cost much.

    compile_seconds: of one run.   sequential_seconds: of the other runs one after another.
    """
    return compile_seconds > sequential_seconds * (MAX_TRIAL_SHARE if _on_cpu() else 1 / MIN_SPEEDUP)


class Trial:
    """Decides while vmapped runs are trained whether they are worth it, or are given up after a moment.

    sequential_seconds: what their runs would take one after another; None to vmap whatever it takes.
    """

    def __init__(self, count: int, steps: int, sequential_seconds: float | None):
        self._count, self._steps, self._sequential_seconds = count, steps, sequential_seconds
        self._start: tuple[int, float] | None = None

    def should_abort(self, step: int) -> bool:
        """Asked after some steps, the first of which the program was compiled for; prints its decision."""
        current_time = time.perf_counter()
        if self._start is None:
            self._start = step, current_time
        steps, seconds = step - self._start[0], current_time - self._start[1]
        if self._sequential_seconds is None or not steps or seconds < TRIAL_SECONDS:
            return False
        step_seconds, sequential, self._sequential_seconds = seconds / steps, self._sequential_seconds, None
        vmapped_seconds = (self._steps - step) * step_seconds
        abort = MIN_SPEEDUP * vmapped_seconds > sequential
        times = f"{vmapped_seconds:.0f} s are left vmapped, {sequential:.0f} s one after another"
        log_choice(self._count, not abort, f"a vmapped step takes {1e3 * step_seconds:.1f} ms, so {times}")
        return abort


def log_choice(count: int, is_vectorized: bool, reason: str) -> None:
    """Print how runs are trained, in the form of ``LOG_PATTERN``."""
    print(f"{count} runs {'vmapped in one program' if is_vectorized else 'one after another'}: {reason}", flush=True)
