"""Evaluation every n steps of training: the numbers of `jdiff evaluate`, in metrics.jsonl, also after a kill."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import pytest

from jdiff.commands.evaluate import evaluate
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.tasks import make_task
from jdiff.tasks.text_to_image import DENOISERS

NUM = 8  # examples of an evaluation
PREFIX = "evaluation/"


def make(folder, **sections):
    """A small task on the same few shapes."""
    data = {"source": "shapes", "world": ("one",), "image_size": 32, "train": 64, "test": 32, "compositions": 16}
    train_section = {"batch_size": 8, "steps": 4, "log_every": 1, "save_every": 2, "sample_every": 4}
    train_section |= {"evaluate_every": 2, "evaluate_num": NUM}
    optimizer = {"learning_rate": 0.03, "warmup_steps": 0}  # so that the metrics of two steps differ
    sections["train"] = train_section | sections.get("train", {})
    data |= {"directory": str(folder / "data")}
    return make_task({"data": data, "mesh": {"data": 1}, "optimizer": optimizer} | sections)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A dual encoder, its data prepared."""
    tower = {"width": 16, "layers": 1, "heads": 1, "embed_dim": 16}
    task = make(
        tmp_path_factory.mktemp("evaluation"),
        tokenizer={"context_length": 16, "vocab_size": 300},
        text=tower,
        vision=tower | {"patch_size": 8},
        ema={"decays": (0.5,)},
        train={"task": "contrastive"},
    )
    prepare(task)
    return task


@pytest.fixture(scope="module")
def run(task):
    """An uninterrupted run."""
    path = Path(task.config.data.directory).parent / "run"
    train(task, str(path))
    return path


def read_lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def is_evaluation(line):
    return any(name.startswith(PREFIX) for name in line)


def evaluation_at(path, step):
    """What the loop has measured at a step, by the names that `jdiff evaluate` uses."""
    (line,) = [line for line in read_lines(path) if line["step"] == step and is_evaluation(line)]
    return {name.removeprefix(PREFIX): value for name, value in line.items() if name != "step"}


def kill_after_checkpoint(run, step, path):
    """A copy of a run as it is after a kill between the checkpoint of a step and the evaluation of that step."""
    shutil.copytree(run, path)
    for checkpoint in (path / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    lines = [line for line in read_lines(run) if line["step"] < step or (line["step"] == step and "loss" in line)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_loop_measures_what_jdiff_evaluate_measures(run, tmp_path):
    """At the last step, and at an earlier one, whose checkpoint is then the newest."""
    lines = [(line["step"], is_evaluation(line)) for line in read_lines(run)]
    assert lines == [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    kill_after_checkpoint(run, 2, tmp_path / "two_steps")
    for step, path in ((4, run), (2, tmp_path / "two_steps")):
        in_loop, results = evaluation_at(run, step), evaluate(str(path), num=NUM)
        assert results["step"] == step
        assert {"compared", "text_to_image@1"} <= in_loop.keys()
        assert in_loop == {name: results[name] for name in in_loop}
    assert evaluation_at(run, 2) != evaluation_at(run, 4)


@pytest.mark.parametrize("step", [2, 4], ids=["midway", "at the last step"])
def test_run_killed_before_an_evaluation_does_it_on_resume(task, run, step, tmp_path):
    path = tmp_path / "killed"
    kill_after_checkpoint(run, step, path)
    assert directory.latest_step(path) == step
    train(task, str(path))
    assert (path / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_run_without_an_open_evaluation_has_nothing_to_do(task, run, capsys):
    old_lines = (run / "metrics.jsonl").read_text()
    train(task, str(run))
    assert "has all its 4 steps already" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_text() == old_lines


class Linear(nn.Module):
    """A denoiser that is compiled in no time."""

    out_channels: int = 3
    attend: object = None

    @nn.compact
    def __call__(self, xt, timestep, context, mask=None, pooled=None):
        return nn.Dense(self.out_channels, name="proj_out")(xt)


def test_loop_judges_images_as_jdiff_evaluate_does(run, monkeypatch):
    """Of a text-to-image run: the share of each attribute, at the config's guidance scale."""
    monkeypatch.setitem(DENOISERS, "linear", Linear)
    task = make(
        run.parent,
        text={"init_from": str(run)},
        denoiser={"kind": "linear"},
        ema={"decays": (0.5,)},
        train={"task": "text_to_image", "steps": 1, "evaluate_every": 1},
        sample={"steps": 1, "guidance_scale": 2.0},
    )
    path = run.parent / "images"
    train(task, str(path))
    rates = evaluate(str(path), num=NUM)["scales"]["2"]
    in_loop = evaluation_at(path, 1)
    assert in_loop == {name: rate["share"] for name, rate in rates.items()} and "shape" in in_loop
