"""Runs that differ in numbers alone, as lanes of one compiled program.

Learning rate and the like, decays of averages, caption dropout, the seed, the table of a noise schedule and how losses
are weighed are data to a program; all else of a config is what it is compiled for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jdiff.build import Experiment, Spiral
from jdiff.build.sections import Numbers
from jdiff.diffusion.schedules import Discrete
from jdiff.diffusion.weighting import WEIGHTINGS
from jdiff.sweep.cells import AFTER

OF_TABLE = ("schedule", "shift", "zero_terminal_snr")
TRIED = 1  # seconds that lanes are tried for
RISKED = 0.04  # of what runs take one after another, what compiling one may take for lanes to be tried on a CPU
WORTH = 2  # times as fast as one after another, at least: lanes are saved at their end only, and all end or none
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX tells of each program
SAID = r"^\d+ runs (?:as lanes|one after another).*"  # the line that says which


def told(setup: Experiment | Spiral) -> Numbers:
    """What a run's program is told when it runs."""
    if not _diffuses(setup):
        return setup.numbers
    table = setup.schedule().table if _has_table(setup) else None
    return replace(setup.numbers, table=table, weighting=list(WEIGHTINGS).index(setup.diffusion.weighting))


def _diffuses(setup: Experiment | Spiral) -> bool:
    return setup.train.task != "contrastive"


def _has_table(setup: Experiment | Spiral) -> bool:
    return _diffuses(setup) and not setup.diffusion.learned_variance and isinstance(setup.schedule(), Discrete)


def program(setup: Experiment | Spiral) -> str:
    """What a run's program is compiled for; runs of the same can be lanes of one."""
    config: dict[str, Any] = {name: dict(section) for name, section in setup.config.items() if name not in AFTER}
    numbers = setup.numbers
    gone = {"train": ("seed",), "optimizer": tuple(numbers.optimizer), "ema": ("decays",)}
    gone["diffusion"] = ("caption_dropout", "weighting", *(OF_TABLE if _has_table(setup) else ()))
    for section, keys in gone.items():
        for key in keys:
            config.get(section, {}).pop(key, None)
    return json.dumps([config, len(numbers.decays)], sort_keys=True)


def stack_hyperparameters(setups: Sequence[Experiment | Spiral]) -> Numbers:
    """The numbers of several runs, each an array (lanes, ...)."""
    return jax.tree.map(lambda *each: jnp.stack([jnp.asarray(one) for one in each]), *map(told, setups))


def lane(tree: Any, i: int) -> Any:
    """One lane of arrays (lanes, ...)."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def slow(setup: Experiment | Spiral) -> bool:
    """Whether lanes are known to be slow: on a CPU, gradients of convolutions whose kernels differ are."""
    convolves = setup.train.task == "text_to_image" or setup.section("vision").get("resnet") is not None
    return convolves and _on_cpu()


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def groups(setups: Mapping[str, Experiment | Spiral]) -> list[list[str]]:
    """The keys of runs that can be lanes of one program, together."""
    found: dict[str, list[str]] = {}
    for key, setup in setups.items():
        found.setdefault(program(setup), []).append(key)
    return list(found.values())


def given(model: Any) -> Callable[[], Any]:
    """What gives a model that is there, as what trains one gives it."""
    return lambda: model


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What some work returns, the seconds it took but for compiling, and those of compiling."""
    compiling = 0.0

    def hear(event: str, seconds: float, **_: Any) -> None:
        nonlocal compiling
        compiling += seconds * (event == COMPILED)

    jax.monitoring.register_event_duration_secs_listener(hear)
    began = time.perf_counter()
    try:
        returned = work()
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    return returned, time.perf_counter() - began - compiling, compiling


def risky(compiling: float, within: float) -> bool:
    """Whether lanes cannot be worth it any more: to compile them takes from half as long as a run to as long. On a CPU,
    where they save no arithmetic and are often given up, whether a trial may cost too much.

    compiling, within: seconds that one run was compiled, and that the others take one after another.
    """
    return compiling > within * (RISKED if _on_cpu() else 1 / WORTH)


class Trial:
    """Whether lanes are worth it, found while they are trained: they are, or are given up after a moment.

    within: seconds that their runs would take one after another, None where they are lanes whatever it takes.
    """

    def __init__(self, lanes: int, steps: int, within: float | None):
        self._lanes, self._steps, self._within = lanes, steps, within
        self._begun: tuple[int, float] | None = None

    def lost(self, done: int) -> bool:
        """Asked after some steps, the first of which the program was compiled for; says what it finds."""
        now = time.perf_counter()
        if self._begun is None:
            self._begun = done, now
        steps, seconds = done - self._begun[0], now - self._begun[1]
        if self._within is None or not steps or seconds < TRIED:
            return False
        each, within, self._within = seconds / steps, self._within, None
        left = (self._steps - done) * each
        lost = WORTH * left > within
        times = f"{left:.0f} s are left together, and {within:.0f} s one after another"
        say(self._lanes, not lost, f"a step of all takes {1e3 * each:.1f} ms, so that {times}")
        return lost


def say(count: int, together: bool, why: str) -> None:
    """Print how runs are trained, as ``SAID`` finds it."""
    print(f"{count} runs {'as lanes of one program' if together else 'one after another'}: {why}", flush=True)
