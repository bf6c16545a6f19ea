"""Runs and sweeps with --workdir=gs://..., through the clients of Google Cloud Storage."""

import json
import signal
import time

import pytest

from tests import bucket
from tests.running import jdiff, run_in_process, start, start_distributed, wait

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
def store():
    """The store of a server, while environment variables point programs to it."""
    with bucket.serving() as (store, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield store


def read(store, name):
    return store.objects["bucket", name][1]


def names(store, prefix):
    return sorted(name for _, name in store.objects if name.startswith(prefix))


@pytest.fixture(scope="module")
def clip(folder, store):
    """A dual encoder in the bucket, whose training was interrupted and resumed."""
    process = start(*TRAIN, "--workdir=gs://bucket/runs/clip", cwd=folder)
    while process.poll() is None and len(store.objects.get(("bucket", "runs/clip/metrics.jsonl"), (0, b""))[1]) < 300:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert f"step {STEPS}/" not in errors
    jdiff(*TRAIN, "--workdir=gs://bucket/runs/clip", cwd=folder)
    return "gs://bucket/runs/clip"


def test_a_run_resumed_in_a_bucket_equals_an_uninterrupted_one_on_disk(folder, store, clip):
    jdiff(*TRAIN, "--workdir=uninterrupted", cwd=folder)
    for name in ("config.json", "tokenizer.json", "metrics.jsonl"):
        assert read(store, f"runs/clip/{name}") == (folder / "uninterrupted" / name).read_bytes(), name
    assert len(read(store, "runs/clip/metrics.jsonl").splitlines()) == STEPS // 10
    assert read(store, f"runs/clip/samples/step_{STEPS}.png")[1:4] == b"PNG"
    assert sum(len(read(store, name)) for name in names(store, "runs/clip/events")) > 1000


@pytest.mark.slow
def test_two_processes_write_one_run_to_a_bucket(folder, store):
    processes = start_distributed("train", "--config=demo_clip:tiny", "--workdir=gs://bucket/two", cwd=folder)
    statuses, errors = wait(processes)
    assert statuses == [0, 0], errors
    commits = [name for name in names(store, "two/checkpoints/") if name.endswith("commit_success.txt")]
    assert {name.split("/")[2] for name in commits} == {"1", "2"}
    assert len(read(store, "two/metrics.jsonl").splitlines()) == 2


def test_init_from_and_sample_read_a_run_in_a_bucket(folder, store, clip):
    jdiff("train", "--config=demo_t2i:tiny", f"--config.text.init_from={clip}", "--workdir=gs://bucket/t2i", cwd=folder)
    jdiff("sample", "--workdir=gs://bucket/t2i", "--steps=3", "--trajectory", "a red circle", cwd=folder)
    files = [name.rsplit("/", 1)[1] for name in names(store, "t2i/images/")]
    assert files == ["000000.gif", "000000.json", "000000.png", "000000_strip.json", "000000_strip.png"]
    assert json.loads(read(store, "t2i/images/000000.json"))["prompt"] == "a red circle"


@pytest.mark.slow
def test_a_sweep_in_a_bucket_equals_one_on_disk(folder, store):
    (folder / "rates.py").write_text(SWEEP)
    for workdir in ("gs://bucket/rates", "rates"):
        jdiff("sweep", "rates.py", f"--workdir={workdir}", cwd=folder)
    assert read(store, "rates/results.csv") == (folder / "rates" / "results.csv").read_bytes()
    assert b"<html" in read(store, "rates/report.html")
    assert "0 runs to do" in run_in_process("sweep", "rates.py", "--workdir=gs://bucket/rates", cwd=folder).stdout
    assert not (folder / "gs:").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--workdir=gs://nobody/x",), 2, "there is no such bucket"),
        (("--workdir=gs://closed/x",), 1, "Forbidden"),
        (("--workdir=x", "--config.data.directory=gs://bucket/data"), 2, "records are read from disk"),
    ],
)
def test_an_unusable_bucket_is_an_error_without_a_traceback(folder, store, arguments, status, message):
    process = run_in_process("train", "--config=demo_clip:tiny", *arguments, cwd=folder, check=False)
    assert process.returncode == status
    assert message in process.stderr.splitlines()[-1 if status == 2 else 0]
    assert "Traceback" not in process.stderr


def test_a_missing_client_is_an_error_that_names_the_extra(folder, store, monkeypatch):
    (folder / "without").mkdir()
    (folder / "without" / "gcsfs.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", "without")
    process = jdiff("train", "--config=demo_clip:tiny", "--workdir=gs://bucket/x", cwd=folder, check=False)
    assert process.returncode == 2
    assert "pip install 'jdiff[gcs]'" in process.stderr.splitlines()[-1]
