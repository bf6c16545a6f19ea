"""The demo's networks at their full learning rate are trained to the same end on every mesh."""

from functools import cache

import numpy as np
import pytest

from tests.sharding import layouts

ONE_DEVICE = {"data": 1}
LAYOUTS = {
    "data 8": ({"data": 8}, {}),
    "fsdp 8": ({"data": 1, "fsdp": 8}, {}),
    "2 x 2 x 2": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "8 microbatches": (ONE_DEVICE, {"microbatches": 8}),
    "two processes x 4": (None, {}),
}
DETERMINISTIC = ({"data": 2}, {"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2}, {"data": 2, "fsdp": 4})


@cache
def on_one_device(task):
    return layouts.run(task, ONE_DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", layouts.TASKS)
def test_twenty_steps_are_the_same_on_every_layout(task, layout):
    """Random numbers equal to the bit, parameters within 1e-5 of their norm."""
    mesh, train = LAYOUTS[layout]
    single = on_one_device(task)
    results = layouts.run_in_processes(task) if mesh is None else layouts.run(task, mesh, **train)
    for name, draws in single.draws.items():
        np.testing.assert_array_equal(results.draws[name], draws)
    difference = np.linalg.norm(results.params - single.params) / np.linalg.norm(single.params)
    assert difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("task", layouts.TASKS)
def test_deterministic_reduction_ends_with_the_same_bits_on_every_mesh(task):
    runs = [layouts.run(task, mesh, deterministic_reduction=16) for mesh in DETERMINISTIC]
    assert len({run.params.tobytes() for run in runs}) == 1
