"""Lanes of one program: each ends as its run does alone, whatever the others are."""

import json
import re
import runpy
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdiff import build, runs
from jdiff.cli import shipped_configs
from jdiff.sweep import lanes
from jdiff.training.loop import Diverged
from jdiff.verbs import spiral, sweep
from jdiff.verbs.prepare import prepare
from jdiff.verbs.together import Points, Runs
from jdiff.verbs.train import train


def config(name, **changes):
    made = runpy.run_path(str(shipped_configs()[name]))["get_config"]("tiny")
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


def apart(a, b):
    return float(optax.tree.norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), a, b)) / optax.tree.norm(b))


POINTS = (
    {},
    {"train__seed": 3, "optimizer__learning_rate": 1e-3},
    {"diffusion__schedule": "linear", "ema__decays": (0.5,), "optimizer__b2": 0.9},
    {
        "optimizer__weight_decay": 0.5,
        "optimizer__clip_norm": 0.1,
        "optimizer__decay_to": 0.9,
        "diffusion__schedule": "sigmoid",
    },
    {"diffusion__weighting": "min_snr"},
)


def test_points_learnt_side_by_side_are_those_learnt_alone():
    setups = [build.spiral(config("spiral", train__steps=30, **changes)) for changes in POINTS]
    assert len(lanes.groups(dict(enumerate(setups)))) == 1
    xt, timestep = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32), np.linspace(0, 999, 50)
    states = [learnt() for learnt in Points(setups).trained(lanes.Trial(len(POINTS), 30, None))]
    found = [spiral.network(setup, state)(xt, timestep) for setup, state in zip(setups, states)]
    alone = [spiral.network(setup, spiral.learnt(setup))(xt, timestep) for setup in setups]
    for a, b in zip(found, alone):
        assert apart(a, b) < 1e-5
    assert min(apart(alone[i], alone[j]) for i in range(len(POINTS)) for j in range(i)) > 1e-3


def reports(path):
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
    setup = build.experiment(config("demo_clip", data__directory=str(folder / "data"), mesh__data=1))
    prepare(setup)
    train(setup, str(folder / "run"))
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_runs_trained_side_by_side_are_those_trained_alone(name, encoder, tmp_path):
    """Weights, averages and reports, also of a run beside one that diverges, which is said of that one alone."""
    about = {"data__directory": str(encoder / "data"), "mesh__data": 1, "train__steps": 6, "train__log_every": 3}
    about |= {"train__save_every": 6, "train__sample_every": 6}
    if name == "demo_t2i":
        about["text__init_from"] = str(encoder / "run")
    changed = [*RUNS[name], RUNS[name][0] | {"optimizer__learning_rate": 1e30}]
    setups = [build.experiment(config(name, **about, optimizer__warmup_steps=1, **changes)) for changes in changed]
    assert len(lanes.groups(dict(enumerate(setups)))) == 1
    together = Runs(setups, [tmp_path / f"lane{i}" for i in range(3)])
    models = together.trained(lanes.Trial(3, 6, None))
    assert [model() for model in models[:2]] == [str(tmp_path / f"lane{i}") for i in range(2)]
    with pytest.raises(Diverged):
        models[2]()
    assert runs.latest_step(tmp_path / "lane2") is None
    for i, setup in enumerate(setups[:2]):
        train(setup, str(tmp_path / f"alone{i}"))
        lane, alone = tmp_path / f"lane{i}", tmp_path / f"alone{i}"
        for average in ("none", *setup.ema_config().names):
            a, b = (runs.restore_weights(path, runs.first_device(), average=average) for path in (lane, alone))
            assert apart(a, b) < 1e-5
        for mine, theirs in zip(reports(lane), reports(alone), strict=True):
            assert mine.keys() == theirs.keys()
            np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=2e-4)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"train__seed": 1}, True),
        ({"optimizer__learning_rate": 1.0}, True),
        ({"sample__steps": 3}, True),
        ({"ema__decays": (0.9,)}, True),
        ({"ema__decays": (0.9, 0.99)}, False),
        ({"diffusion__schedule": "linear"}, True),
        ({"diffusion__weighting": "sigmoid"}, True),
        ({"diffusion__timesteps": 500}, False),
        ({"diffusion__prediction_type": "eps"}, False),
        ({"optimizer__warmup_steps": 3}, False),
        ({"train__steps": 3}, False),
    ],
    ids=str,
)
def test_what_a_program_is_compiled_for(changes, shared):
    setups = {i: build.spiral(config("spiral", **more)) for i, more in enumerate(({}, changes))}
    assert len(lanes.groups(setups)) == (1 if shared else 2)


@pytest.mark.parametrize(("within", "lost"), [(22.0, False), (17.0, True), (None, False)])
def test_a_short_trial_finds_what_is_sooner(monkeypatch, capsys, within, lost):
    """Of 1,000 steps of 10 ms, after the first, which is compiled."""
    now = [0.0]
    monkeypatch.setattr(lanes.time, "perf_counter", lambda: now[0])
    trial, asked = lanes.Trial(8, 1000, within), []
    for step in range(1, 1001):
        now[0] += 60.0 if step == 1 else 0.01
        asked.append(trial.lost(step))
    assert any(asked) is lost and asked.count(True) == int(lost)
    said = re.findall(lanes.SAID, capsys.readouterr().out, re.MULTILINE)
    assert [line.startswith("8 runs one after another: a step of all takes 10.0 ms") for line in said] == (
        [] if within is None else [lost]
    )
    if lost:
        assert asked.index(True) in (100, 101)  # after a second


def test_what_is_compiled_is_not_counted_where_it_is_not_again():
    def work():
        time.sleep(0.2)
        return jax.jit(lambda x: jnp.linalg.svd(x @ x.T))(np.ones((7, 7)))

    began = time.perf_counter()
    found, seconds, compiling = lanes.timed(work)
    assert found[0].shape == (7, 7) and compiling > 0.01 and seconds >= 0.2
    np.testing.assert_allclose(seconds + compiling, time.perf_counter() - began, atol=0.05)
    assert lanes.timed(lambda: None)[2] == 0.0


def test_a_trial_that_may_cost_more_than_it_saves_is_not_begun(monkeypatch, capsys):
    setups = [build.spiral(config("spiral", train__steps=30, train__seed=seed)) for seed in range(3)]
    alone = [lambda i=i: f"model {i}" for i in range(3)]
    monkeypatch.setattr(lanes, "timed", lambda work: (work(), 10.0, 1.0))  # and so 20 s for the others
    models = sweep.as_lanes(setups, [""] * 3, alone, always=False)
    assert [model() for model in models] == ["model 0", "model 1", "model 2"]
    said = "2 runs one after another: the others take 20 s, and to compile one took 1 s"
    assert re.findall(lanes.SAID, capsys.readouterr().out, re.MULTILINE) == [said]
    assert not lanes.risky(0.1, 20.0)
    monkeypatch.setattr(lanes.jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")])
    assert lanes.risky(11.0, 20.0) and not lanes.risky(9.0, 20.0)


def test_lanes_that_are_too_slow_are_given_up(monkeypatch):
    """The first is trained alone; where lanes would take longer, the others are as well, and else are lanes."""
    setups = [build.spiral(config("spiral", train__steps=30, train__seed=seed)) for seed in range(3)]
    asked = []
    alone = [lambda i=i: asked.append(i) or f"model {i}" for i in range(3)]
    monkeypatch.setattr(lanes, "TRIED", 0.0)
    models = sweep.as_lanes(setups, [""] * 3, alone, always=False)  # nothing takes no time at all
    assert [model() for model in models] == ["model 0", "model 1", "model 2"] and asked == [0, 1, 2]
    models = sweep.as_lanes(setups, [""] * 3, alone, always=True)
    xt, timestep = np.ones((1, 2), np.float32), np.ones(1, np.float32)
    networks = [spiral.network(setup, model()) for setup, model in zip(setups, models)]
    assert all(predict(xt, timestep).shape == (1, 2) for predict in networks) and asked == [0, 1, 2]
