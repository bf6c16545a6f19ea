"""Runs and sweeps whose --workdir is a bucket, through the clients of Google Cloud Storage."""

import json
import signal
import time

import pytest

from tests import bucket
from tests.running import ended, hosts, jdiff, start

STEPS = 300
TRAIN = ("train", "--config=demo_clip:tiny", f"--config.train.steps={STEPS}", "--config.train.log_every=10")
TRAIN += ("--config.train.save_every=100", f"--config.train.sample_every={STEPS}")
SWEEP = """
from jdiff.sweep import grid
BASE = "demo_clip:tiny"
COMPARE = {"text_to_image@1": "higher"}
MEASURE = dict(num=16)
def sweep():
    return grid({"optimizer.learning_rate": (2e-3,)})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("beside_a_bucket")
    jdiff("prepare", "--config=demo_clip:tiny", cwd=path)
    return path


@pytest.fixture(scope="module")
def stored():
    """What lies in the bucket, bytes by name, while programs are told of it."""
    with bucket.serving() as (store, told), pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        yield store


def read(stored, name):
    return stored.held["bucket", name][1]


def names(stored, prefix):
    return sorted(name for _, name in stored.held if name.startswith(prefix))


@pytest.fixture(scope="module")
def clip(folder, stored):
    """A dual encoder in the bucket, whose training was stopped and went on."""
    process = start(*TRAIN, "--workdir=gs://bucket/runs/clip", cwd=folder)
    while process.poll() is None and len(stored.held.get(("bucket", "runs/clip/metrics.jsonl"), (0, b""))[1]) < 300:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert f"step {STEPS}," not in errors
    jdiff(*TRAIN, "--workdir=gs://bucket/runs/clip", cwd=folder)
    return "gs://bucket/runs/clip"


def test_a_run_in_a_bucket_that_was_stopped_ends_as_one_on_disk(folder, stored, clip):
    jdiff(*TRAIN, "--workdir=whole", cwd=folder)
    for name in ("config.json", "tokenizer.json", "metrics.jsonl"):
        assert read(stored, f"runs/clip/{name}") == (folder / "whole" / name).read_bytes(), name
    assert len(read(stored, "runs/clip/metrics.jsonl").splitlines()) == STEPS // 10
    assert read(stored, f"runs/clip/samples/step_{STEPS}.png")[1:4] == b"PNG"
    assert sum(len(read(stored, name)) for name in names(stored, "runs/clip/events")) > 1000


def test_two_processes_write_one_run_to_a_bucket(folder, stored):
    processes = hosts("train", "--config=demo_clip:tiny", "--workdir=gs://bucket/two", cwd=folder)
    statuses, errors = ended(processes)
    assert statuses == [0, 0], errors
    kept = {name.split("/")[2] for name in names(stored, "two/checkpoints/") if name.endswith("commit_success.txt")}
    assert kept == {"1", "2"}
    assert len(read(stored, "two/metrics.jsonl").splitlines()) == 2


def test_what_a_run_has_learnt_is_read_from_a_bucket(folder, stored, clip):
    jdiff("train", "--config=demo_t2i:tiny", f"--config.text.init_from={clip}", "--workdir=gs://bucket/t2i", cwd=folder)
    jdiff("sample", "--workdir=gs://bucket/t2i", "--steps=3", "--trajectory", "a red circle", cwd=folder)
    drawn = [name.rsplit("/", 1)[1] for name in names(stored, "t2i/images/")]
    assert drawn == ["000000.gif", "000000.json", "000000.png", "000000_strip.json", "000000_strip.png"]
    assert json.loads(read(stored, "t2i/images/000000.json"))["prompt"] == "a red circle"


def test_a_sweep_in_a_bucket_is_one_on_disk(folder, stored):
    (folder / "rates.py").write_text(SWEEP)
    for where in ("gs://bucket/rates", "rates"):
        jdiff("sweep", "rates.py", f"--workdir={where}", cwd=folder)
    assert read(stored, "rates/results.csv") == (folder / "rates" / "results.csv").read_bytes()
    assert b"<html" in read(stored, "rates/report.html")
    assert "0 runs to do" in jdiff("sweep", "rates.py", "--workdir=gs://bucket/rates", cwd=folder).stdout
    assert not (folder / "gs:").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (("--workdir=gs://nobody/x",), 2, "there is no such bucket"),
        (("--workdir=gs://closed/x",), 1, "Forbidden"),
        (("--workdir=x", "--config.data.directory=gs://bucket/data"), 2, "records are read from disk"),
    ],
)
def test_what_cannot_be_is_said(folder, stored, arguments, status, why):
    done = jdiff("train", "--config=demo_clip:tiny", *arguments, cwd=folder, check=False)
    assert done.returncode == status
    assert why in done.stderr.splitlines()[-1 if status == 2 else 0]
    assert "Traceback" not in done.stderr


def test_a_client_that_is_not_installed_is_named(folder, stored, monkeypatch):
    (folder / "without").mkdir()
    (folder / "without" / "gcsfs.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", "without")
    done = jdiff("train", "--config=demo_clip:tiny", "--workdir=gs://bucket/x", cwd=folder, check=False)
    assert done.returncode == 2
    assert "pip install 'jdiff[gcs]'" in done.stderr.splitlines()[-1]
