"""Vmapped runs: each ends as its run does alone, whatever the others are."""

import json
import re
import runpy
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.commands.flags import config_file, shipped_configs
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.sweep import vectorize
from jdiff.sweep.cells import read_sweep
from jdiff.sweep.run import run_sweep, train_vectorized
from jdiff.sweep.store import Store
from jdiff.sweep.vectorized import VectorizedPoints, VectorizedRuns
from jdiff.tasks import make_task
from jdiff.training.loop import Divergence
from tests.trees import relative_distance


def task_of(name, **changes):
    """The task of a tiny config. changes: values by key, SECTION__KEY."""
    config = runpy.run_path(str(shipped_configs()[name]))["get_config"]("tiny").to_dict()
    for key, value in changes.items():
        section, _, key = key.partition("__")
        config.setdefault(section, {})[key] = value
    return make_task(config)


POINTS = (
    {},
    {"train__seed": 3, "optimizer__learning_rate": 1e-3},
    {"diffusion__schedule": "linear", "ema__decays": (0.5,), "optimizer__b2": 0.9},
    {
        "optimizer__weight_decay": 0.5,
        "optimizer__clip_norm": 0.1,
        "optimizer__final_lr_fraction": 0.9,
        "diffusion__schedule": "sigmoid",
    },
    {"diffusion__weighting": "min_snr"},
)


def test_vmapped_points_equal_sequential_ones():
    tasks = [task_of("spiral", train__steps=30, **changes) for changes in POINTS]
    assert len(vectorize.groups(dict(enumerate(tasks)))) == 1
    xt, timestep = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32), np.linspace(0, 999, 50)
    states = [state() for state in VectorizedPoints(tasks).train(vectorize.Trial(len(POINTS), 30, None))]
    vmapped_outputs = [task.model(state)(xt, timestep) for task, state in zip(tasks, states)]
    sequential = [task.model(task.train())(xt, timestep) for task in tasks]
    for a, b in zip(vmapped_outputs, sequential, strict=True):
        assert relative_distance(a, b) < 1e-5
    assert min(relative_distance(sequential[i], sequential[j]) for i in range(len(POINTS)) for j in range(i)) > 1e-3


CHOICES = """
from jdiff.sweep import chain, grid, product, seeds
BASE = "spiral:tiny"
COMPARE = {"mean_distance": "lower"}
MEASURE = dict(num=50)
def sweep():
    caps = product(seeds(2), grid({"diffusion.weighting": ("min_snr",), "diffusion.weighting.cap": (0.5, 50.0)}))
    ends = grid({"diffusion.schedule": ("linear",), "diffusion.schedule.beta_end": (0.005, 0.04)})
    return product(grid({"train.steps": (30,)}), chain(caps, ends))
"""


@pytest.mark.slow
def test_vectorized_sweep_over_parameters_of_choices_equals_a_sequential_one(tmp_path):
    """Runs of different caps are of different programs; a schedule's parameters are in its traced table."""
    file = str(tmp_path / "choices.py")
    (tmp_path / "choices.py").write_text(CHOICES)
    sweep = read_sweep(file, config_file)
    keys = list(sweep.runs)
    assert len(keys) == len(sweep.cells) == 6
    groups = vectorize.groups({key: cells[0].task for key, cells in sweep.runs.items()})
    caps = [{sweep.runs[key][0].values.get("diffusion.weighting.cap") for key in group} for group in groups]
    assert caps == [{0.5}, {50.0}, {None}] and list(map(len, groups)) == [2, 2, 2]
    distances = {}
    for option in ("always", "never"):
        for group in groups:  # as the jobs of a sweep do
            indices = [keys.index(key) for key in group]
            run_sweep(file, str(tmp_path / option), config_file=config_file, vectorize_runs=option, indices=indices)
        measured_cells = Store(tmp_path / option).measured_cells(sweep)
        distances[option] = [results["mean_distance"] for _, results in measured_cells]
    assert len(set(distances["never"])) == 6
    np.testing.assert_allclose(distances["always"], distances["never"], rtol=1e-4)


def log_lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


RUNS = {
    "demo_clip": (
        {"ema__decays": (0.3, 0.05)},
        {"train__seed": 1, "optimizer__learning_rate": 3e-3, "ema__decays": (0.1, 0.2)},
    ),
    "demo_t2i": (
        {"diffusion__caption_dropout": 0.5},
        {"train__seed": 1, "diffusion__schedule": "linear", "diffusion__weighting": "p2", "ema__decays": (0.9,)},
    ),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny dual encoder, whose text tower the sampler reads."""
    folder = tmp_path_factory.mktemp("encoder")
    task = task_of("demo_clip", data__directory=str(folder / "data"), mesh__data=1)
    prepare(task)
    train(task, str(folder / "run"))
    return folder


@pytest.mark.parametrize("name", ["demo_clip", pytest.param("demo_t2i", marks=pytest.mark.slow)])
def test_vmapped_runs_equal_sequential_ones(name, encoder, tmp_path):
    """Parameters, EMAs and logs, also of a run beside one that diverges, which alone raises."""
    changes = {"data__directory": str(encoder / "data"), "mesh__data": 1, "train__steps": 4, "train__log_every": 2}
    changes |= {"train__save_every": 4, "train__sample_every": 4, "train__batch_size": 4, "optimizer__warmup_steps": 1}
    if name == "demo_t2i":
        changes |= {"text__init_from": str(encoder / "run")}
        changes |= {"denoiser__channels": (16,), "denoiser__attention": (True,), "denoiser__heads": (1,)}
    diverging = RUNS[name][0] | {"optimizer__learning_rate": 1e30}
    tasks = [task_of(name, **changes | run) for run in (*RUNS[name], diverging)]
    assert len(vectorize.groups(dict(enumerate(tasks)))) == 1
    vmapped_dirs = [tmp_path / f"vmapped{i}" for i in range(3)]
    models = VectorizedRuns(tasks, vmapped_dirs).train(vectorize.Trial(3, 4, None))
    assert [model() for model in models[:2]] == list(map(str, vmapped_dirs[:2]))
    with pytest.raises(Divergence):
        models[2]()
    assert directory.latest_step(vmapped_dirs[2]) is None
    for task, path, sequential in zip(tasks[:2], vmapped_dirs, (tmp_path / "sequential0", tmp_path / "sequential1")):
        train(task, str(sequential))
        for ema in ("none", *task.config.ema.config().names):
            a, b = (directory.restore_params(run, directory.first_device(), ema=ema) for run in (path, sequential))
            assert relative_distance(a, b) < 1e-5
        for a, b in zip(log_lines(path), log_lines(sequential), strict=True):
            assert a.keys() == b.keys()
            np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "is_one_program"),
    [
        ({"train__seed": 1}, True),
        ({"optimizer__learning_rate": 1.0}, True),
        ({"sample__steps": 3}, True),
        ({"ema__decays": (0.9,)}, True),
        ({"ema__decays": (0.9, 0.99)}, False),
        ({"diffusion__schedule": "linear"}, True),
        ({"diffusion__schedule": {"name": "linear", "beta_end": 0.01}}, True),
        ({"diffusion__weighting": "sigmoid"}, True),
        ({"diffusion__weighting": {"name": "sigmoid", "bias": 1.0}}, False),
        ({"diffusion__timestep_sampling": "logit_normal"}, False),
        ({"diffusion__continuous": True}, False),
        ({"diffusion__timesteps": 500}, False),
        ({"diffusion__prediction_type": "eps"}, False),
        ({"optimizer__warmup_steps": 3}, False),
        ({"train__steps": 3}, False),
    ],
    ids=str,
)
def test_runs_of_one_program_differ_in_traced_hyperparameters_only(changes, is_one_program):
    tasks = {i: task_of("spiral", **values) for i, values in enumerate(({}, changes))}
    assert len(vectorize.groups(tasks)) == (1 if is_one_program else 2)


@pytest.mark.parametrize(("sequential_seconds", "aborts"), [(22.0, False), (17.0, True), (None, False)])
def test_trial_aborts_where_sequential_runs_are_faster(monkeypatch, capsys, sequential_seconds, aborts):
    """1,000 steps of 10 ms, after the first, which is compiled."""
    clock = [0.0]
    monkeypatch.setattr(vectorize.time, "perf_counter", lambda: clock[0])
    trial, decisions = vectorize.Trial(8, 1000, sequential_seconds), []
    for step in range(1, 1001):
        clock[0] += 60.0 if step == 1 else 0.01
        decisions.append(trial.should_abort(step))
    assert any(decisions) is aborts and decisions.count(True) == int(aborts)
    lines = re.findall(vectorize.LOG_PATTERN, capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == (sequential_seconds is not None)
    for line in lines:
        assert "a vmapped step takes 10.0 ms" in line
        assert line.startswith("8 runs one after another" if aborts else "8 runs vmapped in one program")
    if aborts:
        assert decisions.index(True) in (100, 101)  # after a second


def test_compile_time_is_measured_apart():
    def work():
        time.sleep(0.2)
        return jax.jit(lambda x: jnp.linalg.svd(x @ x.T))(np.ones((7, 7)))

    start = time.perf_counter()
    result, seconds, compile_seconds = vectorize.time_without_compiling(work)
    assert result[0].shape == (7, 7) and compile_seconds > 0.01 and seconds >= 0.2
    np.testing.assert_allclose(seconds + compile_seconds, time.perf_counter() - start, atol=0.05)
    assert vectorize.time_without_compiling(lambda: None)[2] == 0.0


def test_vmapping_is_not_tried_where_compiling_could_cost_more_than_it_saves(monkeypatch, capsys):
    tasks = [task_of("spiral", train__steps=30, train__seed=seed) for seed in range(3)]
    sequential = [lambda i=i: f"model {i}" for i in range(3)]
    monkeypatch.setattr(vectorize, "time_without_compiling", lambda work: (work(), 10.0, 1.0))  # 20 s for the others
    models = train_vectorized(tasks, [""] * 3, sequential, skip_trial=False)
    assert [model() for model in models] == ["model 0", "model 1", "model 2"]
    line = "2 runs one after another: the others take 20 s, and compiling one took 1 s"
    assert re.findall(vectorize.LOG_PATTERN, capsys.readouterr().out, re.MULTILINE) == [line]
    assert not vectorize.compile_cost_too_high(0.1, 20.0)
    monkeypatch.setattr(vectorize.jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")])
    assert vectorize.compile_cost_too_high(11.0, 20.0) and not vectorize.compile_cost_too_high(9.0, 20.0)


def test_first_run_is_trained_alone_and_the_others_where_vmapping_is_slower(monkeypatch):
    tasks = [task_of("spiral", train__steps=30, train__seed=seed) for seed in range(3)]
    calls = []
    sequential = [lambda i=i: calls.append(i) or f"model {i}" for i in range(3)]
    monkeypatch.setattr(vectorize, "TRIAL_SECONDS", 0.0)
    models = train_vectorized(tasks, [""] * 3, sequential, skip_trial=False)  # these take no time at all
    assert [model() for model in models] == ["model 0", "model 1", "model 2"] and calls == [0, 1, 2]
    models = train_vectorized(tasks, [""] * 3, sequential, skip_trial=True)
    xt, timestep = np.ones((1, 2), np.float32), np.ones(1, np.float32)
    networks = [task.model(model()) for task, model in zip(tasks, models)]
    assert all(network(xt, timestep).shape == (1, 2) for network in networks) and calls == [0, 1, 2]
