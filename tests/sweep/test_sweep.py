"""Sweeps: their cells, which mistakes are refused, that each cell is done once, and the report."""

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

from jdiff.commands.flags import UsageError, config_file
from jdiff.config.construct import ConfigError
from jdiff.sweep import chain, grid, pool, product, report, seeds, statistics, zipped
from jdiff.sweep.cells import read_sweep
from jdiff.sweep.store import Store
from tests.running import jdiff, run_in_process, start

SPIRAL = """
from jdiff.sweep import grid, product, seeds
BASE = "spiral:tiny"
COMPARE = {"mean_distance": "lower"}
MEASURE = dict(num=50)
def sweep():
    return product(seeds(3), grid({"sample.eta": (0.0, 1.0)}))
"""


def test_algebra_of_cells():
    two, three = grid({"a.x": (1, 2)}), grid({"a.y": (3, 4, 5)})
    assert product(two, three) == grid({"a.x": (1, 2), "a.y": (3, 4, 5)})
    assert product(two, three)[:2] == [{"a.x": 1, "a.y": 3}, {"a.x": 1, "a.y": 4}]
    assert len(chain(product(two, three), two)) == 8
    assert zipped({"a.x": (1, 2), "a.y": (3, 4)}) == [{"a.x": 1, "a.y": 3}, {"a.x": 2, "a.y": 4}]
    assert product(two, seeds(2))[1] == {"a.x": 1, "train.seed": 1}
    assert grid({}) == product() == [{}]
    with pytest.raises(ValueError, match=r"a.x has 2, a.y has 1"):
        zipped({"a.x": (1, 2), "a.y": (3,)})
    with pytest.raises(ValueError, match=r"two factors of a product set a.x"):
        product(two, two)


def write_sweep(folder, text):
    file = folder / "some.py"
    file.write_text(text)
    return str(file)


def parse_sweep(folder, text=SPIRAL):
    return read_sweep(write_sweep(folder, text), config_file)


NUMPY = 'grid({"train.seed": __import__("numpy").arange(3)})'
ON_LISTS = ('"ema.decays": ([0.5], [0.9])', '"ema.decays": ((0.5,), (0.9,))')


def test_cells_are_identified_by_their_config(tmp_path):
    sweep = parse_sweep(tmp_path)
    assert len(sweep.cells) == 6 and len(sweep.runs) == 3
    assert len({cell.key for cell in sweep.cells}) == 6
    assert list(map(len, sweep.runs.values())) == [2, 2, 2]
    assert sweep.cells[0].variant == (("sample.eta", 0.0),) and sweep.cells[0].repetition == (("train.seed", 0),)
    text = SPIRAL.replace('"sample.eta": (0.0, 1.0)', '"sample.eta": (1.0,), "sample.clip": (False,)')
    assert parse_sweep(tmp_path, text).cells[0].key == sweep.cells[1].key  # the base has the same clip
    assert parse_sweep(tmp_path, SPIRAL.replace("seeds(3)", NUMPY)).cells == sweep.cells
    lists, tuples = (parse_sweep(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', axis)) for axis in ON_LISTS)
    assert lists.cells == tuples.cells and list(lists.axes) == ["train.seed", "ema.decays"]


MIN_SNR = """grid({"diffusion.weighting": ("min_snr",), "diffusion.weighting.cap": (1.0, 9.0)})"""
CAPS = SPIRAL.replace('grid({"sample.eta": (0.0, 1.0)})', MIN_SNR)


def test_parameters_of_a_choice_are_set_by_deeper_keys(tmp_path):
    """In any order of the keys; the choice's name stays where only a parameter is set."""
    sweep = parse_sweep(tmp_path, CAPS)
    weightings = [{"name": "min_snr", "cap": cap} for cap in (1.0, 9.0)]
    assert [cell.config["diffusion"]["weighting"] for cell in sweep.cells] == 3 * weightings
    assert [cell.task.config.diffusion.weighting_function().keywords for cell in sweep.cells[:2]] == [
        {"cap": 1.0},
        {"cap": 9.0},
    ]
    assert len(sweep.runs) == 6
    cap_first = CAPS.replace(
        MIN_SNR, 'grid({"diffusion.weighting.cap": (1.0, 9.0), "diffusion.weighting": ("min_snr",)})'
    )
    assert [cell.key for cell in parse_sweep(tmp_path, cap_first).cells] == [cell.key for cell in sweep.cells]
    of_schedule = parse_sweep(tmp_path, CAPS.replace(MIN_SNR, 'grid({"diffusion.schedule.beta_max": (0.9, 0.99)})'))
    assert of_schedule.cells[0].config["diffusion"]["schedule"] == {"name": "cosine", "beta_max": 0.9}
    assert sweep.cells[0].config["diffusion"]["schedule"] == "cosine"


def test_baseline_is_compared_at_equal_parameters_of_a_choice(tmp_path):
    text = CAPS.replace("import grid", "import chain, grid").replace(
        "MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'
    )
    weightings = f'chain(grid({{"diffusion.weighting": ("simple",)}}), {MIN_SNR})'
    sweep = parse_sweep(tmp_path, text.replace(MIN_SNR, 'grid({"sample.eta": (0.0, 1.0)}), ' + weightings))
    assert len(sweep.variants) == 6
    for variant in sweep.variants:
        assert dict(sweep.reference(variant)) == dict(variant) | {"sample.eta": 0.0}
    two_names = MIN_SNR.replace('("min_snr",)', '("min_snr", "root_snr")')
    text = CAPS.replace("MEASURE", 'BASELINE = {"diffusion.weighting.cap": 1.0}\nMEASURE')
    sweep = parse_sweep(tmp_path, text.replace(MIN_SNR, two_names))
    for variant in sweep.variants:
        assert dict(sweep.reference(variant)) == dict(variant) | {"diffusion.weighting.cap": 1.0}


CONSTANT = '(0.0, 1.0), "train.steps": (2,)}))\nBASELINE = {"train.steps": 2}'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("BASE", "BASES", "must have either BASE"),
        ("COMPARE", "COMPARES", "has no COMPARE"),
        ('"lower"', '"less"', "must be 'higher' or 'lower'"),
        ("spiral:tiny", "spirals", "did you mean 'spiral'"),
        ('"sample.eta"', '"sample.etas"', "cell train.seed=0, sample.etas=0.0: config.sample.etas is not a setting"),
        ('"sample.eta"', '"eta"', "a key is one of a section"),
        ("(0.0, 1.0)", "(0.0, 0.0)", "has one cell twice"),
        ("(0.0, 1.0)", "(0.0, 7.0)", "config.sample cannot be used: eta is 7"),
        ("seeds(3)", "seeds(0)", "has no cells"),
        ("num=50", "number=50", "config.measure.number is not a setting"),
        ("num=50", "num=1", "num must be 0 or from 2"),
        ("num=50", 'ema="width=9"', "measure.ema is width=9, but the run will have none, 0.999"),
        ("(0.0, 1.0)}))", CONSTANT, "as in all its variants; nothing is compared"),
        (
            "seeds(3)",
            'grid({"optimizer.final_lr_fraction": (2.0,)})',
            "final_lr_fraction is 2.0; it must be from 0 to 1",
        ),
        ("num=50", 'ema="0.9"', "measure.ema is 0.9, but the run will have none, 0.999"),
        ("MEASURE", 'BASELINE = {"sample.eta": 0.5}\nMEASURE', "not exactly one variant has it to compare with"),
        ("MEASURE", 'BASELINE = {"train.steps": 2}\nMEASURE', "not exactly one variant has it to compare with"),
        ('BASE = "spiral:tiny"', 'RUN = "nowhere"', "where there is no run"),
        ("num=50", 'average="0.999"', "config.measure.average is not a setting"),
        ('"sample.eta"', '"diffusion.weighting": ({"name": "p2"},), "sample.eta"', "diffusion.weighting to a dict"),
        (
            '"sample.eta"',
            '"diffusion.weighting.cap": (1.0,), "sample.eta"',
            "config.diffusion.weighting.cap is not a setting",
        ),
        ("seeds(3)", 'grid({"sample.eta": (1.0,)})', "two factors of a product set sample.eta"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(tmp_path, old, new, message):
    assert old in SPIRAL
    with pytest.raises((ConfigError, UsageError), match=re.escape(message)):
        parse_sweep(tmp_path, SPIRAL.replace(old, new))


def results_of_sweep(folder, name):
    process = jdiff("sweep", "some.py", f"--workdir={name}", cwd=folder)
    assert (folder / name / "results.csv").exists(), process.stdout
    return (folder / name / "results.csv").read_text()


def num_saved_cells(folder):
    return len(list((folder / "cells").glob("*.json")))


def test_sweep_killed_twice_equals_an_uninterrupted_one(tmp_path):
    """Once by a SIGKILL, which its subprocesses outlive, and once by a SIGTERM. Each cell is done once."""
    write_sweep(tmp_path, SPIRAL)
    expected = results_of_sweep(tmp_path, "uninterrupted")
    workdir = tmp_path / "killed"
    for number, num_cells in ((signal.SIGKILL, 1), (signal.SIGTERM, 3)):
        process = start("sweep", "some.py", "--workdir=killed", cwd=tmp_path)
        deadline = time.monotonic() + 120
        while num_saved_cells(workdir) < num_cells:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        # 75 where it has started a run, 0 where it had nothing left to do
        assert process.returncode in (75, -number) or num_saved_cells(workdir) == 6
    assert results_of_sweep(tmp_path, "killed") == expected
    assert len(list(csv.DictReader(expected.splitlines()))) == 6
    times = {path: path.stat().st_mtime_ns for path in (workdir / "cells").iterdir()}
    assert "0 runs to do" in jdiff("sweep", "some.py", "--workdir=killed", cwd=tmp_path).stdout
    assert {path: path.stat().st_mtime_ns for path in (workdir / "cells").iterdir()} == times
    output = "".join(path.read_text() for path in (workdir / "logs").glob("*.log"))
    assert len(re.findall(r'^train.seed=\d, sample.eta=\S+: \{"sample_to_data"', output, re.MULTILINE)) == 6


def test_failed_run_is_reported_and_retried_on_request(tmp_path):
    """One of two learning rates diverges; the other is measured."""
    text = SPIRAL.replace("spiral:tiny", "demo_clip:tiny").replace('"sample.eta": (0.0, 1.0)', AXIS)
    write_sweep(tmp_path, text.replace("mean_distance", "loss").replace("seeds(3)", "seeds(1)"))
    for flags, num_runs in (((), 2), ((), 0), (("--retry",), 1)):
        process = run_in_process("sweep", "some.py", "--workdir=out", *flags, cwd=tmp_path, check=False)
        assert process.returncode == 1
        assert f"2 runs, {num_runs} runs to do" in process.stdout
        assert "1 of 2 runs failed" in process.stderr
        assert re.search(
            r"failed, .*(the loss is nan|were skipped).*\n  run 1, optimizer.learning_rate=1e\+30\n", process.stdout
        )
    (row,) = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert row["optimizer.learning_rate"] == "0.001" and float(row["loss"]) > 0


AXIS = '"optimizer.learning_rate": (1e-3, 1e30), "train.steps": (4,)'


def test_dry_run_prints_a_command_for_each_cell(tmp_path):
    write_sweep(tmp_path, SPIRAL)
    lines = run_in_process("sweep", "some.py", "--workdir=out", "--dry_run", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 6
    assert lines[1] == "jdiff figures spiral --config=spiral:tiny --config.train.seed=0 --config.sample.eta=1.0"
    assert not (tmp_path / "out").exists()


def test_dry_run_command_of_a_choice_with_parameters_can_be_run(tmp_path):
    write_sweep(tmp_path, CAPS.replace("seeds(3)", "seeds(1)"))
    line = run_in_process("sweep", "some.py", "--workdir=out", "--dry_run", cwd=tmp_path).stdout.splitlines()[1]
    assert line.endswith("--config.diffusion.weighting=min_snr --config.diffusion.weighting.cap=9.0")
    command, wrong = line.split()[1:], line.replace("cap", "cup").split()[1:]
    assert "wrote" in run_in_process(*command, cwd=tmp_path).stdout
    process = run_in_process(*wrong, cwd=tmp_path, check=False)
    assert process.returncode == 2 and "config.diffusion.weighting.cup is not a setting" in process.stderr


def test_run_index_passed_twice_is_done_once(tmp_path):
    write_sweep(tmp_path, SPIRAL)
    run_in_process("sweep", "some.py", "--workdir=out", "--runs=1,1", cwd=tmp_path)
    assert num_saved_cells(tmp_path / "out") == 2


def test_missing_split_is_refused_before_training(tmp_path):
    axis = '"optimizer.learning_rate": (1e-3, 2e-3)'
    text = SPIRAL.replace("spiral:tiny", "demo_clip:tiny").replace('"sample.eta": (0.0, 1.0)', axis)
    write_sweep(tmp_path, text.replace("num=50", 'num=50, split="validation"'))
    process = run_in_process("sweep", "some.py", "--workdir=out", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "measure.split of some is validation; known are" in process.stderr, (
        process.stderr
    )
    assert not (tmp_path / "out" / "runs").exists()


def test_vmapped_runs_are_divided_among_gpus(tmp_path):
    write_sweep(tmp_path, SPIRAL.replace("seeds(3)", "seeds(4)"))
    process = run_in_process("sweep", "some.py", "--workdir=out", "--gpus=0,1", cwd=tmp_path)
    assert len(re.findall(r"and 1 more: done after", process.stdout)) == 2
    assert num_saved_cells(tmp_path / "out") == 8


@pytest.mark.slow
def test_each_ema_of_a_run_equals_that_of_a_run_with_it_alone(tmp_path):
    two_emas = '"ema.decays": ((0.5, 0.9),), "measure.ema": ("0.9", "0.5", "none"), "train.steps": (30,)'
    one_ema = '"ema.decays": ((0.9,),), "train.steps": (30,)'
    distances = {}
    for name, axes in (("two", two_emas), ("one", one_ema)):
        write_sweep(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', axes).replace("seeds(3)", "seeds(2)"))
        assert "2 runs to do" in run_in_process("sweep", "some.py", f"--workdir={name}", cwd=tmp_path).stdout
        rows = csv.DictReader((tmp_path / name / "results.csv").read_text().splitlines())
        distances[name] = {
            (row["train.seed"], row.get("measure.ema", "0.9")): float(row["mean_distance"]) for row in rows
        }
    assert len(distances["two"]) == 6 and len(set(distances["two"].values())) == 6
    assert len(distances["one"]) == 2
    for key, distance in distances["one"].items():
        assert abs(distance - distances["two"][key]) < 1e-4


def measured_verdict(tmp_path, values, text=SPIRAL, better="lower"):
    """The verdict on a sweep whose cells have these numbers, by eta and seed."""
    text = text.replace('"lower"', f'"{better}"').replace("seeds(3)", f"seeds({len(values[0])})")
    sweep, store = parse_sweep(tmp_path, text), Store(tmp_path / "out")
    for cell in sweep.cells:
        of_eta = values[[0.0, 1.0].index(cell.values["sample.eta"])]
        store.save(cell, {"mean_distance": float(of_eta[cell.values["train.seed"]])})
    (verdict,) = report.verdicts(sweep, store.measured_cells(sweep))
    return sweep, store, verdict


@pytest.mark.parametrize(
    ("shift", "num_seeds", "better", "sentence"),
    [
        (0.5, 6, "lower", "compared with sample.eta=0.0. worse: sample.eta=1.0"),
        (0.5, 6, "higher", "compared with sample.eta=1.0. worse: sample.eta=0.0"),
        (0.0, 6, "lower", "not distinguishable: sample.eta=1.0"),
        (0.5, 4, "lower", "fewer than 5 seeds: sample.eta=1.0"),
    ],
)
def test_verdict_depends_on_the_interval_of_the_difference(tmp_path, shift, num_seeds, better, sentence):
    noise = np.array([0.3, -0.1, 0.2, -0.3, 0.05, -0.15])[:num_seeds]
    values = (1 + noise, 1 + shift + noise + 0.01 * noise[::-1])
    _, _, verdict = measured_verdict(tmp_path, values, better=better)
    assert sentence in verdict.sentence


def test_variants_are_compared_with_the_baseline(tmp_path):
    text = SPIRAL.replace("MEASURE", 'BASELINE = {"sample.eta": 1.0}\nMEASURE')
    noise = np.linspace(0, 0.1, 6)
    _, _, verdict = measured_verdict(tmp_path, (1 + noise, 2 + 2 * noise), text)
    assert "compared with sample.eta=1.0. better: sample.eta=0.0" in verdict.sentence


SPREAD = SPIRAL.replace("(0.0, 1.0)}", '(0.0, 1.0), "sample.steps": (1, 2)}').replace("seeds(3)", "seeds(6)")


def test_baseline_of_one_axis_is_compared_at_equal_values_of_the_others(tmp_path):
    """Noise is compared with none at the same steps, in place of all with one."""
    sweep = parse_sweep(tmp_path, SPREAD.replace("MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'))
    store = Store(tmp_path / "out")
    for cell in sweep.cells:
        eta, steps, seed = (cell.values[key] for key in ("sample.eta", "sample.steps", "train.seed"))
        offset = {(1.0, 1): 1.0, (1.0, 2): -1.0}.get((eta, steps), 0.0) + 0.1 * np.sin(seed + eta)
        store.save(cell, {"mean_distance": 10 * steps + offset})
    (verdict,) = report.verdicts(sweep, store.measured_cells(sweep))
    assert verdict.sentence == (
        "mean_distance (lower is better), compared with sample.eta=0.0. worse: sample.eta=1.0, sample.steps=1. "
        "better: sample.eta=1.0, sample.steps=2"
    )
    assert [row.difference is None for row in verdict.rows] == [True, True, False, False]


def test_baseline_agrees_also_in_keys_that_only_the_base_sets(tmp_path):
    """No variant without noise is compared with one of another sample.clip, which the base sets."""
    clipped = 'chain(grid({"sample.eta": (0.0,), "sample.steps": (1, 2), "sample.clip": (True,)}), grid({AXES}))'
    axes = '"sample.eta": (1.0,), "sample.steps": (1,)'
    text = SPIRAL.replace("import grid", "import chain, grid").replace(
        "MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'
    )
    text = text.replace('grid({"sample.eta": (0.0, 1.0)})', clipped)
    with pytest.raises(
        ConfigError, match="not exactly one variant has it to compare with sample.eta=1.0, sample.steps=1"
    ):
        parse_sweep(tmp_path, text.replace("AXES", axes))
    sweep = parse_sweep(tmp_path, text.replace("AXES", axes + ', "sample.clip": (True,)'))
    assert dict(sweep.reference(sweep.cells[-1].variant)) == {"sample.eta": 0.0, "sample.steps": 1, "sample.clip": True}


def test_without_a_baseline_the_level_is_that_of_all_pairs(tmp_path):
    """The best is chosen by the same numbers, so its intervals are wider."""
    sweep = parse_sweep(tmp_path, SPIRAL.replace("(0.0, 1.0)", "(0.0, 0.5, 1.0)").replace("seeds(3)", "seeds(6)"))
    store, noise = Store(tmp_path / "out"), np.random.default_rng(0).normal(size=(3, 6))
    for i, cell in enumerate(sweep.cells):
        store.save(cell, {"mean_distance": i % 3 + 0.1 * noise[i % 3, cell.values["train.seed"]]})
    (verdict,) = report.verdicts(sweep, store.measured_cells(sweep))
    values = [dict(enumerate(i + 0.1 * noise[i])) for i in range(3)]
    assert [row.difference is None for row in verdict.rows] == [True, False, False]
    for row, by_seed in zip(verdict.rows[1:], values[1:]):
        assert row.difference == statistics.paired_difference(by_seed, values[0], level=1 - 0.05 / 3)


def test_measure_seeds_are_no_repetitions_of_training(tmp_path):
    """The mean over measure.seed is the one number of each train.seed."""
    sweep = parse_sweep(tmp_path, SPIRAL.replace("seeds(3)", 'seeds(5), seeds(3, "measure.seed")'))
    store = Store(tmp_path / "out")
    for cell in sweep.cells:
        offset = 0.1 * np.sin(cell.values["train.seed"] + cell.values["sample.eta"])
        store.save(cell, {"mean_distance": cell.values["measure.seed"] + cell.values["sample.eta"] + offset})
    (verdict,) = report.verdicts(sweep, store.measured_cells(sweep))
    assert [row.mean.count for row in verdict.rows] == [5, 5]
    assert abs(verdict.rows[0].mean.mean - 1) < 0.1 and verdict.rows[1].difference.sign == 1


def test_unmeasured_reference_is_reported(tmp_path):
    sweep = parse_sweep(tmp_path, SPIRAL.replace("MEASURE", 'BASELINE = {"sample.eta": 0.0}\nMEASURE'))
    store = Store(tmp_path / "out")
    for cell in sweep.cells[1::2]:
        store.save(cell, {"mean_distance": 1.0})
    (verdict,) = report.verdicts(sweep, store.measured_cells(sweep))
    assert verdict.sentence.endswith("compared with sample.eta=0.0. its reference is not measured: sample.eta=1.0")


def test_diverged_points_are_a_failure(tmp_path):
    write_sweep(tmp_path, SPIRAL.replace('"sample.eta": (0.0, 1.0)', AXIS).replace("seeds(3)", "seeds(1)"))
    process = run_in_process("sweep", "some.py", "--workdir=out", cwd=tmp_path, check=False)
    assert process.returncode == 1 and "failed, the samples are not finite" in process.stdout
    assert num_saved_cells(tmp_path / "out") == 1


def test_html_page_is_self_contained(tmp_path):
    values = (np.arange(6.0), np.arange(6.0) + 1 + 0.1 * np.sin(np.arange(6)))
    sweep, store, _ = measured_verdict(tmp_path, values)
    files = report.write(sweep, store)
    page = (tmp_path / "out" / "report.html").read_text()
    assert files[:3] == [tmp_path / "out" / name for name in ("results.csv", "results.md", "report.html")]
    assert "| sample.eta=1.0 | 6 | 3.5" in files[1].read_text()
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert "worse: sample.eta=1.0" in page
    with pytest.raises(ConfigError, match="did you mean 'mean_distance'"):
        report.write(
            parse_sweep(
                tmp_path, SPIRAL.replace('"mean_distance"', '"mean_distances"').replace("seeds(3)", "seeds(6)")
            ),
            store,
        )


def print_devices(status):
    """A command that prints its devices, and exits with a status."""
    setup = "import json, os, sys, time; time.sleep(0.2); gpus = os.environ.get('CUDA_VISIBLE_DEVICES'); "
    output = "print(json.dumps([sorted(os.sched_getaffinity(0)), gpus])); sys.exit(int(sys.argv[1]))"
    return [sys.executable, "-c", setup + output, str(status)]


def test_pool_runs_as_many_commands_at_a_time_as_it_has_devices(tmp_path):
    """Each on its own cores, or with its own GPU visible."""
    commands, statuses = {str(i): print_devices(i % 2) for i in range(4)}, {}

    def printed_devices():
        return [json.loads((tmp_path / f"{i}.log").read_text()) for i in range(4)]

    def on_end(name, status, seconds, output):
        statuses[name] = status
        assert json.loads(output)[1] in ("5", "7")

    pool.run_commands(commands, pool.divide_devices(2, ["5", "7"]), tmp_path, on_end)
    assert statuses == {"0": 0, "1": 1, "2": 0, "3": 1}
    assert {gpus for _, gpus in printed_devices()} == {"5", "7"}
    if len(os.sched_getaffinity(0)) > 1:
        shutil.rmtree(tmp_path)
        pool.run_commands(commands, pool.divide_devices(2), tmp_path, lambda *_: None)
        cores = {tuple(cores) for cores, _ in printed_devices()}
        assert len(cores) == 2 and not set.intersection(*map(set, cores))


def test_pool_passes_only_the_output_of_this_command(tmp_path):
    """A log file keeps the output of earlier commands of the same name."""
    (tmp_path / "a.log").write_text("earlier\n")
    outputs = []
    command = [sys.executable, "-c", "print('now')"]
    pool.run_commands({"a": command}, pool.divide_devices(1), tmp_path, lambda *result: outputs.append(result[3]))
    assert outputs == ["now\n"] and (tmp_path / "a.log").read_text() == "earlier\nnow\n"


INTERRUPT = """
import sys
from pathlib import Path
from jdiff.runtime.signals import Interruption
from jdiff.sweep import pool
sleeps = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('up', flush=True); "
commands = {str(i): [sys.executable, "-c", sleeps + "time.sleep(60)"] for i in range(3)}
try:
    pool.run_commands(commands, pool.divide_devices(2), Path(sys.argv[1]), print)
except Interruption as interrupt:
    sys.exit(interrupt.signal)
"""


def test_interrupted_pool_stops_its_processes(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", INTERRUPT, str(tmp_path)])
    logs, deadline = [tmp_path / f"{i}.log" for i in range(3)], time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == signal.SIGINT
    assert not logs[2].exists()
