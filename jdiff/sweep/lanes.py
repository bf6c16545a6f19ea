"""Runs that differ in numbers alone, as lanes of one compiled program.

Learning rate and the like, decays of averages, caption dropout, the seed, and the table of a noise schedule are data
to a program; all else of a config is what it is compiled for.
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

NOT_COMPILED = ("sample", "measure")
OF_TABLE = ("schedule", "shift", "zero_terminal_snr")
TRIED = 3  # seconds, or so, that a number of lanes is tried for


def told(setup: Experiment | Spiral) -> Numbers:
    """What a run's program is told when it runs."""
    numbers = setup.numbers
    return replace(numbers, table=setup.schedule().table) if _has_table(setup) else numbers


def _has_table(setup: Experiment | Spiral) -> bool:
    diffuses = setup.train.objective != "contrastive"
    return diffuses and not setup.diffusion.learned_variance and isinstance(setup.schedule(), Discrete)


def program(setup: Experiment | Spiral) -> str:
    """What a run's program is compiled for; runs of the same can be lanes of one."""
    config: dict[str, Any] = {name: dict(section) for name, section in setup.config.items() if name not in NOT_COMPILED}
    numbers = setup.numbers
    gone = {"train": ("seed",), "optimizer": tuple(numbers.optimizer), "ema": ("decays",)}
    gone["diffusion"] = ("caption_dropout", *(OF_TABLE if _has_table(setup) else ()))
    for section, keys in gone.items():
        for key in keys:
            config.get(section, {}).pop(key, None)
    return json.dumps([config, len(numbers.decays)], sort_keys=True)


def stacked(setups: Sequence[Experiment | Spiral]) -> Numbers:
    """The numbers of several runs, each an array (lanes, ...)."""
    return jax.tree.map(lambda *each: jnp.stack([jnp.asarray(one) for one in each]), *map(told, setups))


def lane(tree: Any, i: int) -> Any:
    """One lane of arrays (lanes, ...)."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def groups(setups: Mapping[str, Experiment | Spiral]) -> list[list[str]]:
    """The keys of runs that can be lanes of one program, together."""
    found: dict[str, list[str]] = {}
    for key, setup in setups.items():
        found.setdefault(program(setup), []).append(key)
    return list(found.values())


def worth(advance: Callable[[int], Callable[[int], None]], lanes: int, steps: int) -> tuple[bool, str]:
    """Whether ``lanes`` runs of ``steps`` steps are done sooner as lanes than one after another, found by trying.

    advance: from a number of lanes to what takes so many steps of them.   Returns also what was found, in words.
    """
    compiled, each = {}, {}
    for count in (1, lanes):
        steps_of = advance(count)
        began = time.perf_counter()
        steps_of(1)
        compiled[count] = time.perf_counter() - began
        began, taken, next_taken = time.perf_counter(), 0, 1
        while time.perf_counter() - began < TRIED:
            steps_of(next_taken)
            taken += next_taken
            next_taken = min(2 * next_taken, 256)
        each[count] = (time.perf_counter() - began) / taken
    together, apart = compiled[lanes] + steps * each[lanes], compiled[1] + lanes * steps * each[1]
    times = (
        f"a step of {lanes} lanes takes {1e3 * each[lanes]:.2f} ms, of one {1e3 * each[1]:.2f} ms; all {steps} "
        f"steps {together:.0f} s together, {apart:.0f} s one after another"
    )
    return together < apart, times
