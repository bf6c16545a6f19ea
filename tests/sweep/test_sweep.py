"""Sweeps: their cells, what is refused, that each is done once, and what is said of them."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jdiff import cli
from jdiff.construct import ConfigError
from jdiff.sweep import cells, chain, grid, pool, product, report, seeds, statistics, zipped
from tests.running import jdiff, start

SPIRAL = """
from jdiff.sweep import grid, product, seeds
BASE = "spiral:tiny"
COMPARE = {"mean_distance": "lower"}
MEASURE = dict(num=50)
def sweep():
    return product(seeds(3), grid({"sample.eta": (0.0, 1.0)}))
"""


def test_the_algebra():
    two, three = grid({"a.x": (1, 2)}), grid({"a.y": (3, 4, 5)})
    assert product(two, three) == grid({"a.x": (1, 2), "a.y": (3, 4, 5)})
    assert product(two, three)[:2] == [{"a.x": 1, "a.y": 3}, {"a.x": 1, "a.y": 4}]
    assert len(chain(product(two, three), two)) == 8
    assert zipped({"a.x": (1, 2), "a.y": (3, 4)}) == [{"a.x": 1, "a.y": 3}, {"a.x": 2, "a.y": 4}]
    assert product(two, seeds(2))[1] == {"a.x": 1, "train.seed": 1}
    assert grid({}) == product() == [{}]
    with pytest.raises(ValueError, match=r"a.x has 2, a.y has 1"):
        zipped({"a.x": (1, 2), "a.y": (3,)})
    with pytest.raises(ValueError, match=r"two factors of a product say a.x"):
        product(two, two)


def written(folder, text):
    file = folder / "some.py"
    file.write_text(text)
    return str(file)


def read(folder, text=SPIRAL):
    return cells.read(written(folder, text), cli._resolved)


NUMPY = 'grid({"train.seed": __import__("numpy").arange(3)})'
ON_LISTS = ('"ema.decays": ([0.5], [0.9])', '"ema.decays": ((0.5,), (0.9,))')


def test_cells_are_told_apart_by_what_they_are(tmp_path):
    plan = read(tmp_path)
    assert len(plan.cells) == 6 and len(plan.runs) == 3
    assert len({cell.key for cell in plan.cells}) == 6
    assert [len(own) for own in plan.runs.values()] == [2, 2, 2]
    assert plan.cells[0].variant == (("sample.eta", 0.0),) and plan.cells[0].repetition == (("train.seed", 0),)
    same = read(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', '"sample.eta": (1.0,), "sample.clip": (False,)'))
    assert same.cells[0].key == plan.cells[1].key  # the base says the same of clip
    assert read(tmp_path, SPIRAL.replace("seeds(3)", NUMPY)).cells == plan.cells
    lists, tuples = (read(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', axis)) for axis in ON_LISTS)
    assert lists.cells == tuples.cells and list(lists.axes) == ["train.seed", "ema.decays"]


CONSTANT = '(0.0, 1.0), "train.steps": (2,)}))\nBASELINE = {"train.steps": 2}'


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        ("BASE", "BASES", "must have BASE"),
        ("COMPARE", "COMPARES", "has no COMPARE"),
        ('"lower"', '"less"', "it can be 'higher' or 'lower'"),
        ("spiral:tiny", "spirals", "did you mean 'spiral'"),
        ('"sample.eta"', '"sample.etas"', "cell train.seed=0, sample.etas=0.0: config.sample.etas is not a setting"),
        ('"sample.eta"', '"eta"', "a key is that of a section"),
        ("(0.0, 1.0)", "(0.0, 0.0)", "has one cell twice"),
        ("(0.0, 1.0)", "(0.0, 7.0)", "config.sample cannot be used: eta is 7"),
        ("seeds(3)", "seeds(0)", "has no cells"),
        ("num=50", "number=50", "config.measure.number is not a setting"),
        ("num=50", "num=1", "num must be 0 or 2 and more"),
        ("num=50", 'average="width=9"', "measure.average is width=9, but the run will have none, 0.999"),
        ("(0.0, 1.0)}))", CONSTANT, "which all its variants say; nothing is compared"),
        (
            "seeds(3)",
            'grid({"optimizer.final_lr_fraction": (2.0,)})',
            "final_lr_fraction is 2.0; it must be from 0 to 1",
        ),
        ("num=50", 'average="0.9"', "measure.average is 0.9, but the run will have none, 0.999"),
        ("MEASURE", 'BASELINE = {"sample.eta": 0.5}\nMEASURE', "not one variant of it to compare with"),
        ("MEASURE", 'BASELINE = {"train.steps": 2}\nMEASURE', "not one variant of it to compare with"),
        ('BASE = "spiral:tiny"', 'RUN = "nowhere"', "where there is no run"),
        ("seeds(3)", 'grid({"sample.eta": (1.0,)})', "two factors of a product say sample.eta"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(tmp_path, right, wrong, why):
    assert right in SPIRAL
    with pytest.raises((ConfigError, cli.UsageError), match=re.escape(why)):
        read(tmp_path, SPIRAL.replace(right, wrong))


def left_alone(folder, name):
    done = jdiff("sweep", "some.py", f"--workdir={name}", cwd=folder)
    assert (folder / name / "results.csv").exists(), done.stdout
    return (folder / name / "results.csv").read_text()


def finished(folder):
    return len(list((folder / "cells").glob("*.json")))


def test_a_sweep_that_is_killed_twice_ends_as_one_left_alone(tmp_path):
    """Once by a SIGKILL, which what it has started outlives, and once by a SIGTERM. Each cell is done once."""
    written(tmp_path, SPIRAL)
    right = left_alone(tmp_path, "alone")
    killed = tmp_path / "killed"
    for number, after in ((signal.SIGKILL, 1), (signal.SIGTERM, 3)):
        process = start("sweep", "some.py", "--workdir=killed", cwd=tmp_path)
        until = time.monotonic() + 120
        while finished(killed) < after:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (75, -number)  # 75 where it has begun to run something
    assert left_alone(tmp_path, "killed") == right
    assert len(list(csv.DictReader(right.splitlines()))) == 6
    times = {path: path.stat().st_mtime_ns for path in (killed / "cells").iterdir()}
    assert "0 runs to do" in jdiff("sweep", "some.py", "--workdir=killed", cwd=tmp_path).stdout
    assert {path: path.stat().st_mtime_ns for path in (killed / "cells").iterdir()} == times
    said = "".join(path.read_text() for path in (killed / "logs").glob("*.log"))
    assert len(re.findall(r'^train.seed=\d, sample.eta=\S+: \{"sample_to_data"', said, re.MULTILINE)) == 6


def test_a_run_that_fails_is_said_and_tried_again_on_request(tmp_path):
    """Of learning rates one of which diverges; others are reported."""
    text = SPIRAL.replace("spiral:tiny", "demo_clip:tiny").replace('"sample.eta": (0.0, 1.0)', AXIS)
    written(tmp_path, text.replace("mean_distance", "loss").replace("seeds(3)", "seeds(1)"))
    for more, left in (((), 2), ((), 0), (("--retry",), 1)):
        done = jdiff("sweep", "some.py", "--workdir=out", *more, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert f"2 runs, {left} runs to do" in done.stdout
        assert "1 of 2 runs have failed" in done.stderr
        assert re.search(
            r"failed, .*the loss of step 3 is not a number.*\n  run 1, optimizer.learning_rate=1e\+30\n", done.stdout
        )
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert row["optimizer.learning_rate"] == "0.001" and float(row["loss"]) > 0


AXIS = '"optimizer.learning_rate": (1e-3, 1e30), "train.steps": (4,)'


def test_a_dry_run_prints_a_command_for_each_cell(tmp_path):
    written(tmp_path, SPIRAL)
    lines = jdiff("sweep", "some.py", "--workdir=out", "--dry_run", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 6
    assert lines[1] == "jdiff figures spiral --config=spiral:tiny --config.train.seed=0 --config.sample.eta=1.0"
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_asked_for_twice_is_done_once(tmp_path):
    written(tmp_path, SPIRAL)
    jdiff("sweep", "some.py", "--workdir=out", "--runs=1,1", cwd=tmp_path)
    assert finished(tmp_path / "out") == 2


def test_a_split_that_is_not_there_is_named_before_anything_is_trained(tmp_path):
    axis = '"optimizer.learning_rate": (1e-3, 2e-3)'
    text = SPIRAL.replace("spiral:tiny", "demo_clip:tiny").replace('"sample.eta": (0.0, 1.0)', axis)
    written(tmp_path, text.replace("num=50", 'num=50, split="validation"'))
    done = jdiff("sweep", "some.py", "--workdir=out", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "measure.split of some is validation; known are" in done.stderr, done.stderr
    assert not (tmp_path / "out" / "runs").exists()


def test_every_gpu_has_its_part_of_lanes(tmp_path):
    written(tmp_path, SPIRAL.replace("seeds(3)", "seeds(4)"))
    done = jdiff("sweep", "some.py", "--workdir=out", "--gpus=0,1", cwd=tmp_path)
    assert len(re.findall(r"and 1 more: done after", done.stdout)) == 2
    assert finished(tmp_path / "out") == 8


def test_averages_of_one_run_are_measured_each(tmp_path):
    """As those of a run that keeps it alone."""
    more = '"ema.decays": ((0.5, 0.9),), "measure.average": ("0.9", "0.5", "none"), "train.steps": (30,)'
    alone = '"ema.decays": ((0.9,),), "train.steps": (30,)'
    found = {}
    for name, axes, of_runs in (("kept", more, 2), ("alone", alone, 2)):
        written(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', axes).replace("seeds(3)", "seeds(2)"))
        assert f"{of_runs} runs to do" in jdiff("sweep", "some.py", f"--workdir={name}", cwd=tmp_path).stdout
        rows = csv.DictReader((tmp_path / name / "results.csv").read_text().splitlines())
        found[name] = {
            (row["train.seed"], row.get("measure.average", "0.9")): float(row["mean_distance"]) for row in rows
        }
    assert len(found["kept"]) == 6 and len(set(found["kept"].values())) == 6
    for key, both in found["alone"].items():
        assert abs(both - found["kept"][key]) < 1e-4


def told(tmp_path, values, text=SPIRAL, better="lower"):
    """The verdict on a sweep whose cells have these numbers, by eta and seed."""
    plan = read(tmp_path, text.replace('"lower"', f'"{better}"').replace("seeds(3)", f"seeds({len(values[0])})"))
    store = cells.Store(tmp_path / "out")
    for cell in plan.cells:
        of_eta = values[[0.0, 1.0].index(cell.said["sample.eta"])]
        store.finish(cell, {"mean_distance": float(of_eta[cell.said["train.seed"]])})
    (verdict,) = report.verdicts(plan, store.done(plan))
    return plan, store, verdict


@pytest.mark.parametrize(
    ("apart", "seeds_of", "better", "why"),
    [
        (0.5, 6, "lower", "beside sample.eta=0.0. worse: sample.eta=1.0"),
        (0.5, 6, "higher", "beside sample.eta=1.0. worse: sample.eta=0.0"),
        (0.0, 6, "lower", "not distinguishable: sample.eta=1.0"),
        (0.5, 4, "lower", "fewer than 5 seeds: sample.eta=1.0"),
    ],
)
def test_a_verdict_is_said_where_seeds_bear_it_out(tmp_path, apart, seeds_of, better, why):
    chance = np.array([0.3, -0.1, 0.2, -0.3, 0.05, -0.15])[:seeds_of]
    _, _, verdict = told(tmp_path, (1 + chance, 1 + apart + chance + 0.01 * chance[::-1]), better=better)
    assert why in verdict.sentence


def test_a_baseline_is_what_others_are_compared_with(tmp_path):
    text = SPIRAL.replace("MEASURE", 'BASELINE = {"sample.eta": 1.0}\nMEASURE')
    chance = np.linspace(0, 0.1, 6)
    _, _, verdict = told(tmp_path, (1 + chance, 2 + 2 * chance), text)
    assert "beside sample.eta=1.0. better: sample.eta=0.0" in verdict.sentence


SPREAD = SPIRAL.replace("(0.0, 1.0)}", '(0.0, 1.0), "sample.steps": (1, 2)}').replace("seeds(3)", "seeds(6)")


def test_a_baseline_of_one_axis_is_that_of_each_of_the_others(tmp_path):
    """Noise is compared with none at the same steps, in place of all with one."""
    plan = read(tmp_path, SPREAD.replace("MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'))
    store = cells.Store(tmp_path / "out")
    for cell in plan.cells:
        eta, steps, seed = (cell.said[key] for key in ("sample.eta", "sample.steps", "train.seed"))
        off = {(1.0, 1): 1.0, (1.0, 2): -1.0}.get((eta, steps), 0.0) + 0.1 * np.sin(seed + eta)
        store.finish(cell, {"mean_distance": 10 * steps + off})
    (verdict,) = report.verdicts(plan, store.done(plan))
    assert verdict.sentence == (
        "mean_distance (lower is better), beside sample.eta=0.0. worse: sample.eta=1.0, sample.steps=1. "
        "better: sample.eta=1.0, sample.steps=2"
    )
    assert [row.beside is None for row in verdict.rows] == [True, True, False, False]


def test_a_baseline_is_like_in_what_the_base_says_as_well(tmp_path):
    """Of three that say no noise, none is compared with one that clips as the base does not."""
    clipped = 'chain(grid({"sample.eta": (0.0,), "sample.steps": (1, 2), "sample.clip": (True,)}), grid({AXES}))'
    axes = '"sample.eta": (1.0,), "sample.steps": (1,)'
    text = SPIRAL.replace("import grid", "import chain, grid").replace(
        "MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'
    )
    text = text.replace('grid({"sample.eta": (0.0, 1.0)})', clipped)
    with pytest.raises(ConfigError, match="not one variant of it to compare with sample.eta=1.0, sample.steps=1"):
        read(tmp_path, text.replace("AXES", axes))
    plan = read(tmp_path, text.replace("AXES", axes + ', "sample.clip": (True,)'))
    assert dict(plan.reference(plan.cells[-1].variant)) == {"sample.eta": 0.0, "sample.steps": 1, "sample.clip": True}


def test_without_a_baseline_all_are_compared_with_all(tmp_path):
    """The best is known by the same numbers, so that it is further to the others."""
    plan = read(tmp_path, SPIRAL.replace("(0.0, 1.0)", "(0.0, 0.5, 1.0)").replace("seeds(3)", "seeds(6)"))
    store, chance = cells.Store(tmp_path / "out"), np.random.default_rng(0).normal(size=(3, 6))
    for i, cell in enumerate(plan.cells):
        store.finish(cell, {"mean_distance": i % 3 + 0.1 * chance[i % 3, cell.said["train.seed"]]})
    (verdict,) = report.verdicts(plan, store.done(plan))
    values = [dict(enumerate(i + 0.1 * chance[i])) for i in range(3)]
    for row, found in zip(verdict.rows, values):
        if row.beside is not None:
            assert row.beside == statistics.paired(found, values[0], level=1 - 0.05 / 3)


def test_what_one_run_draws_is_no_repetition_of_training(tmp_path):
    """Draws are averaged over, and counted as the training that they are of."""
    plan = read(tmp_path, SPIRAL.replace("seeds(3)", 'seeds(5), seeds(3, "measure.seed")'))
    store = cells.Store(tmp_path / "out")
    for cell in plan.cells:
        off = 0.1 * np.sin(cell.said["train.seed"] + cell.said["sample.eta"])
        store.finish(cell, {"mean_distance": cell.said["measure.seed"] + cell.said["sample.eta"] + off})
    (verdict,) = report.verdicts(plan, store.done(plan))
    assert [row.mean.count for row in verdict.rows] == [5, 5]
    assert abs(verdict.rows[0].mean.mean - 1) < 0.1 and verdict.rows[1].beside.sign == 1


def test_a_reference_that_is_not_there_yet_is_said(tmp_path):
    plan = read(tmp_path, SPIRAL.replace("MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'))
    store = cells.Store(tmp_path / "out")
    for cell in plan.cells[1::2]:
        store.finish(cell, {"mean_distance": 1.0})
    (verdict,) = report.verdicts(plan, store.done(plan))
    assert verdict.sentence.endswith("beside sample.eta=0.0. its reference is not measured: sample.eta=1.0")


def test_points_that_fly_away_are_no_result(tmp_path):
    written(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', AXIS).replace("seeds(3)", "seeds(1)"))
    done = jdiff("sweep", "some.py", "--workdir=out", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "failed, what it draws are not numbers" in done.stdout
    assert finished(tmp_path / "out") == 1


def test_the_page_needs_nothing_beside_it(tmp_path):
    plan, store, _ = told(tmp_path, (np.arange(6.0), np.arange(6.0) + 1 + 0.1 * np.sin(np.arange(6))))
    made = report.write(plan, store)
    page = (tmp_path / "out" / "report.html").read_text()
    assert made[:3] == [tmp_path / "out" / name for name in ("results.csv", "results.md", "report.html")]
    assert "| sample.eta=1.0 | 6 | 3.5" in made[1].read_text()
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert "worse: sample.eta=1.0" in page
    with pytest.raises(ConfigError, match="did you mean 'mean_distance'"):
        report.write(
            read(tmp_path, SPIRAL.replace('"mean_distance"', '"mean_distances"').replace("seeds(3)", "seeds(6)")), store
        )


def place(code):
    """A program that says on what it runs, and ends with a status."""
    asks = "import json, os, sys, time; time.sleep(0.2); shown = os.environ.get('CUDA_VISIBLE_DEVICES'); "
    says = "print(json.dumps([sorted(os.sched_getaffinity(0)), shown])); sys.exit(int(sys.argv[1]))"
    return [sys.executable, "-c", asks + says, str(code)]


def test_a_pool_runs_as_many_at_a_time_as_it_has_places(tmp_path):
    """Each on its own cores; of GPUs, each is shown its own."""
    commands, ended = {str(i): place(i % 2) for i in range(4)}, {}

    def said():
        return [json.loads((tmp_path / f"{i}.log").read_text()) for i in range(4)]

    pool.run(commands, pool.places(2, ["5", "7"]), tmp_path, lambda name, status, *_: ended.update({name: status}))
    assert ended == {"0": 0, "1": 1, "2": 0, "3": 1}
    assert {shown for _, shown in said()} == {"5", "7"}
    if len(os.sched_getaffinity(0)) > 1:
        shutil.rmtree(tmp_path)
        pool.run(commands, pool.places(2), tmp_path, lambda *_: None)
        cores = {tuple(cores) for cores, _ in said()}
        assert len(cores) == 2 and not set.intersection(*map(set, cores))


STOPPED = """
import sys
from pathlib import Path
from jdiff.sweep import pool
sleeps = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); "
commands = {str(i): [sys.executable, "-c", sleeps + "time.sleep(60)"] for i in range(3)}
try:
    pool.run(commands, pool.places(2), Path(sys.argv[1]), print)
except pool.Stopped as stopped:
    sys.exit(stopped.signal)
"""


def test_a_pool_that_is_stopped_stops_its_programs(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)])
    logs, until = [tmp_path / f"{i}.log" for i in range(3)], time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs[:2]):
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == signal.SIGINT
    assert not logs[2].exists()
