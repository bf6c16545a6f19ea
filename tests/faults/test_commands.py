"""Commands under signals, kills, full disks, damaged files and second processes."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from jdiff.data import records
from jdiff.runs import directory
from jdiff.runs.origin import newest_origin
from tests.faults import damage, harness
from tests.faults.harness import INJECTIONS, LONG_RUN, TRAIN, parameters
from tests.trees import distance

FILES = ("config.json", "data.json", "tokenizer.json", "metrics.jsonl", "samples/step_12.json", "samples/step_8.json")


def copy(folder, name, source="whole"):
    return damage.copy(folder / source, folder / name)


def assert_equal_runs(run, expected):
    """Parameters, metrics and previews are the same to the bit, and no temporary file is left."""
    assert distance(parameters(run), parameters(expected)) == 0
    for name in FILES:
        contents = [json.loads(line) for line in (run / name).read_text().splitlines()] if "jsonl" in name else None
        if name.startswith("samples"):
            metadata, expected_metadata = (json.loads((path / name).read_text()) for path in (run, expected))
            assert metadata | {"workdir": ""} == expected_metadata | {"workdir": ""}
        else:
            assert (run / name).read_bytes() == (expected / name).read_bytes(), (name, contents)
    assert not list(run.rglob("*.partial")) and not (run / ".lock").exists()


@pytest.mark.parametrize(
    ("number", "phase", "step", "saved_step"),
    [
        (signal.SIGTERM, "start", 0, None),
        (signal.SIGINT, "compile", 0, None),
        (signal.SIGTERM, "evaluate", 8, 8),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (signal.SIGINT, "start", 0, None),
                (signal.SIGTERM, "compile", 0, None),
                (signal.SIGTERM, "data", 6, 6),
                (signal.SIGINT, "evaluate", 8, 8),
            ]
        ),
    ],
)
def test_a_signal_ends_training_within_seconds_in_any_phase(number, phase, step, saved_step, folder):
    run, event = folder / f"{phase}_{number}", folder / f"{phase}_{number}.event"
    inject = (f"{INJECTIONS}:hang_in_phase", phase, step, str(event))
    if phase == "start":
        inject = (f"{INJECTIONS}:hang_at_call", "jdiff.runs.train", "open_records", str(event))
    command = harness.start(*TRAIN, f"--workdir={run.name}", cwd=folder, inject=inject).wait_for(event.exists)
    start = time.monotonic()
    assert command.send(number).status() == (75 if number == signal.SIGTERM else 130)
    assert time.monotonic() - start < 5
    assert "Traceback" not in command.text and "stopped" in command.text.splitlines()[-1]
    assert directory.latest_step(run) == saved_step


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (("sample", "--workdir=painter", "a red circle"), ("jdiff.runs.directory", "load_sampler")),
        (("evaluate", "--workdir=whole"), ("jdiff.runs.directory", "load")),
        (
            ("prepare", "--config=demo_clip:tiny", "--config.data.directory=other"),
            ("jdiff.runs.prepare", "write_records"),
        ),
    ],
    ids=["sample", "evaluate", "prepare"],
)
def test_a_signal_ends_other_commands_within_seconds(arguments, function, folder):
    event = folder / f"{arguments[0]}.event"
    inject = (f"{INJECTIONS}:hang_at_call", *function, str(event))
    command = harness.start(*arguments, cwd=folder, inject=inject).wait_for(event.exists)
    start = time.monotonic()
    assert command.send(signal.SIGTERM).status() == 75 and time.monotonic() - start < 5
    assert command.text.splitlines()[-1] == "jdiff: stopped by SIGTERM"


def test_a_process_that_hangs_prints_where_and_exits_to_be_started_again(folder):
    inject = (f"{INJECTIONS}:hang_in_phase", "data", 6, str(folder / "hang.event"))
    flags = ("--workdir=hanging", "--config.watchdog.data=1")
    command = harness.start(*TRAIN, *flags, cwd=folder, inject=inject)
    assert command.status() == 75
    assert "'data' after step 6 took longer than config.watchdog.data = 1 s" in command.text
    assert "run_loop" in command.text  # in the stack
    harness.run(*TRAIN, *flags, cwd=folder)
    assert distance(parameters(folder / "hanging"), parameters(folder / "whole")) == 0


def test_a_disk_that_is_full_for_a_while_costs_nothing(folder):
    run = folder / "full"
    command = harness.start(*LONG_RUN, "--workdir=full", cwd=folder).wait_for((run / "checkpoints" / "40").exists)
    command.limit_file_size(2000).wait_for_output("failed, retrying").wait_for_output("cannot be written now")
    command.limit_file_size(None).wait_for_output("written again")
    newest = directory.latest_step(run)
    command.wait_for(lambda: directory.latest_step(run) > newest)
    assert command.send(signal.SIGTERM).status() == 75
    assert "Traceback" not in command.text
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(5, lines[-1] + 1, 5))


def test_a_second_process_on_a_run_is_refused_until_the_first_is_gone(folder):
    first = harness.start(*LONG_RUN, "--workdir=shared", cwd=folder)
    first.wait_for((folder / "shared" / "checkpoints" / "20" / "manifest.json").exists)
    second = harness.start(*LONG_RUN, "--workdir=shared", cwd=folder)
    assert second.status() == 2 and f"process {first.process.pid} on" in second.text
    assert first.send(signal.SIGKILL).status() == -9
    third = harness.start(*LONG_RUN, "--workdir=shared", cwd=folder).wait_for_output("steps ")
    assert third.send(signal.SIGTERM).status() == 75


KILLS = [(name, moment) for name in ("config.json", "tokenizer.json", "data.json") for moment in ("torn", "after")]
KILLS += [("step_8.png", "torn"), ("step_8.json", "torn"), ("manifest.json", "torn"), ("manifest.json", "before")]
QUICK_KILLS = [("config.json", "torn"), ("step_8.png", "after"), ("manifest.json", "torn")]


@pytest.mark.parametrize(
    ("name", "moment"),
    [*QUICK_KILLS, *(pytest.param(*kill, marks=pytest.mark.slow) for kill in KILLS if kill not in QUICK_KILLS)],
)
def test_a_run_killed_as_it_writes_a_file_ends_as_an_uninterrupted_one(name, moment, folder):
    run = folder / f"{name}_{moment}"
    inject = (f"{INJECTIONS}:kill_at_write", name, moment)
    command = harness.start(*TRAIN, f"--workdir={run.name}", cwd=folder, inject=inject)
    assert command.status() == -9
    harness.run(*TRAIN, f"--workdir={run.name}", cwd=folder)
    assert_equal_runs(run, folder / "whole")


def test_a_run_killed_as_it_rewrites_its_metrics_keeps_them(folder):
    run = copy(folder, "rewritten")
    shutil.rmtree(run / "checkpoints" / "12")
    inject = (f"{INJECTIONS}:kill_at_write", "metrics.jsonl", "torn")
    assert harness.start(*TRAIN, "--workdir=rewritten", cwd=folder, inject=inject).status() == -9
    harness.run(*TRAIN, "--workdir=rewritten", cwd=folder)
    assert_equal_runs(run, folder / "whole")


@pytest.mark.parametrize("name", FILES[:5])
@pytest.mark.parametrize("kind", ["cut", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("empty", "gone"))])
def test_a_damaged_file_of_a_run_is_written_again(name, kind, folder):
    run = copy(folder, f"damaged_{name.replace('/', '_')}_{kind}")
    shutil.rmtree(run / "checkpoints" / "12")
    data = (run / name).read_bytes()
    (run / name).write_bytes({"cut": data[: len(data) // 2], "empty": b"", "gone": data}[kind])
    if kind == "gone":
        (run / name).unlink()
    harness.run(*TRAIN, f"--workdir={run.name}", cwd=folder)
    if name == "metrics.jsonl":  # what was lost is lost, and the rest is there
        lines = (run / name).read_text().splitlines()
        assert (folder / "whole" / name).read_text().splitlines()[-2:] == lines[-2:]
        assert distance(parameters(run), parameters(folder / "whole")) == 0
    else:
        assert_equal_runs(run, folder / "whole")


def test_another_tokenizer_or_config_than_it_was_trained_with_is_refused(folder):
    run = copy(folder, "altered")
    tokenizer = json.loads((run / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [word for word in vocabulary if word.isalpha()][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (run / "tokenizer.json").write_text(json.dumps(tokenizer))
    for command in (TRAIN, ("evaluate",)):
        process = harness.start(*command, "--workdir=altered", cwd=folder)
        assert process.status() == 2 and "tokenizer.json is not the one" in process.text
    run = copy(folder, "altered")
    config = json.loads((run / "config.json").read_text())
    config["text"]["heads"] = 1
    (run / "config.json").write_text(json.dumps(config))
    process = harness.start("evaluate", "--workdir=altered", cwd=folder)
    assert process.status() == 2 and "text.heads = 1" in process.text


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder):
    run = copy(folder, "flipped")
    assert damage.damage(run / "checkpoints" / "12", "flip", 1)
    command = harness.run(*TRAIN, "--workdir=flipped", cwd=folder)
    assert "checkpoint 12 is damaged" in command.text
    assert_equal_runs(run, folder / "whole")


def test_a_reader_finds_a_checkpoint_beside_a_run_that_deletes_them(folder):
    flags = ("--workdir=deleting", "--config.train.save_every=1", "--config.train.keep=1")
    command = harness.start(*LONG_RUN, *flags, cwd=folder)
    command.wait_for((folder / "deleting" / "checkpoints" / "5").exists)
    for _ in range(4):
        harness.run("evaluate", "--workdir=deleting", "--num=8", cwd=folder)
    assert command.send(signal.SIGTERM).status() == 75


def break_records(folder, num):
    """Flip a byte in each of ``num`` records of the train split. Returns how many cannot be read."""
    path = next((folder / "data" / "captioned_images").glob("*/*"))
    file = next(path.glob("*-train.array_record*"))
    data = bytearray(file.read_bytes())
    end = data.rindex(b"\x89PNG")  # of the records; what follows is their index
    for offset in np.linspace(500, end, num, dtype=int):
        data[offset] ^= 255
    file.write_bytes(data)
    split = records.Records(folder / "data", path.parent.name).split("train")
    return sum(not is_readable(split, i) for i in range(len(split)))


def is_readable(split, i):
    try:
        return bool(split[i])
    except records.BrokenRecordError:
        return False


def test_broken_records_are_replaced_and_counted_the_same_after_a_kill(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    num_broken = break_records(tmp_path, 4)
    assert 2 <= num_broken <= 6
    harness.run(*TRAIN, "--workdir=uninterrupted", cwd=tmp_path)
    inject = (f"{INJECTIONS}:kill_at_write", "step_8.png", "torn")
    assert harness.start(*TRAIN, "--workdir=killed", cwd=tmp_path, inject=inject).status() == -9
    command = harness.run(*TRAIN, "--workdir=killed", cwd=tmp_path)
    assert "cannot be read" in command.text and "Traceback" not in command.text
    origins = [newest_origin(tmp_path / name / "checkpoints")[1] for name in ("uninterrupted", "killed")]
    assert origins[0] == origins[1] and origins[0]["replaced_rows"]["RuntimeError"] >= num_broken
    assert_equal_runs(tmp_path / "killed", tmp_path / "uninterrupted")


def test_training_stops_where_too_many_records_are_broken(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    assert break_records(tmp_path, 30) > 20
    command = harness.start(*TRAIN, "--workdir=run", cwd=tmp_path)
    assert command.status() == 2 and "config.data.max_broken" in command.text.splitlines()[-1]


@pytest.mark.slow
def test_one_of_two_processes_that_cannot_write_is_named_and_training_goes_on(folder):
    run = folder / "two"
    first, second = harness.start_two(*LONG_RUN, "--config.mesh.data=2", "--workdir=two", cwd=folder)
    first.wait_for((run / "checkpoints" / "40" / "manifest.json").exists)
    second.limit_file_size(100)
    first.wait_for_output("failed, retrying: process 1: ", deadline=60)
    second.limit_file_size(None)
    newest = directory.latest_step(run)
    first.wait_for(lambda: directory.latest_step(run) > newest)
    second.send(signal.SIGTERM)
    assert [first.status(), second.status()] == [75, 75]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_save_whose_temporary_folder_vanishes_is_tried_again(attempt, folder):
    run = folder / f"vanished_{attempt}"
    command = harness.start(*LONG_RUN, f"--workdir={run.name}", cwd=folder)
    command.wait_for((run / "checkpoints" / "20" / "manifest.json").exists)
    command.wait_for(lambda: list((run / "checkpoints").glob("*orbax-checkpoint-tmp*")))
    for temporary in (run / "checkpoints").glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(temporary, ignore_errors=True)
    newest = directory.latest_step(run)
    command.wait_for(lambda: directory.latest_step(run) > newest + 40, deadline=60)
    assert command.send(signal.SIGTERM).status() == 75
