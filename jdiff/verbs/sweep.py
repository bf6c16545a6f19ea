"""jdiff sweep: many variants of a config, trained and measured, and what may be said of them."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jdiff import runs
from jdiff.build import Experiment, Spiral
from jdiff.construct import ConfigError, nearest
from jdiff.data import records
from jdiff.evaluation import diversity
from jdiff.images import display_scale, image_grid, write_image
from jdiff.sweep import cells, lanes, pool, report
from jdiff.sweep.cells import AFTER, Cell, Store, Sweep
from jdiff.sweep.pool import RunsFailed
from jdiff.training.loop import Diverged
from jdiff.training.state import TrainState
from jdiff.verbs import spiral
from jdiff.verbs.evaluate import COLUMNS, NUM, judged, of_encoder, prompts
from jdiff.verbs.prepare import prepare
from jdiff.verbs.together import Points, Runs
from jdiff.verbs.train import train

SHOWN = 16  # pictures of a cell on the page
TOGETHER = ("auto", "always", "never")  # auto: where a short trial finds it sooner
LANES = 32  # of one program, at most
SAVED = 75  # the status of a run that was asked to stop


def sweep(
    file: str,
    workdir: str,
    *,
    config_file: Callable[[str], str],
    jobs: int = 1,
    gpus: Sequence[str] = (),
    vectorize: str = "auto",
    run: Sequence[int] = (),
    retry: bool = False,
    dry_run: bool = False,
) -> None:
    """Do what is left to do of a sweep, and report what there is.

    config_file: from a config's name to its file.   jobs: runs at a time, each with its share of the cores; 0 for none.
    gpus: in place of this, one run at a time on each.
    vectorize: whether runs that differ only in scalar hyperparameters are trained as one vmapped program, of TOGETHER.
    run: only these, by their numbers, and report nothing.
    retry: try again what has failed.   dry_run: only print a command for each cell.
    Raises ``ConfigError`` before anything begins, ``RunsFailed`` at the end.
    """
    plan, store = cells.read(file, config_file), Store(workdir)
    listed = list(plan.runs)
    _check_trained(plan)
    if dry_run:
        for cell in plan.cells:
            print(_command(plan, cell, store))
        return
    if run:
        if not 0 <= min(run) <= max(run) < len(listed):
            raise ConfigError(f"--run is {','.join(map(str, run))}, but {plan.name} has runs 0 to {len(listed) - 1}")
        _measure(plan, [listed[i] for i in run], store, vectorize)
        return
    for key in listed if retry else ():
        store.forgive(key)
    left = store.left(plan)
    logs = Path(workdir) / "logs" if store.on_disk else Path(tempfile.mkdtemp(prefix=f"{plan.name}_"))
    print(f"{plan.name}: {len(plan.cells)} cells of {len(listed)} runs, {len(left)} runs to do; see {logs}")
    _prepare(plan, left)
    jobs_of = _shared_out(plan, left, len(gpus) or jobs, vectorize)
    own = [sys.executable, "-m", "jdiff.cli", "sweep", file, f"--workdir={workdir}", f"--vectorize={vectorize}"]
    commands = {
        keys[0]: [*own, f"--runs={','.join(str(listed.index(key)) for key in keys)}"] for keys in jobs_of if jobs
    }

    def done(name: str, status: int, seconds: float, said: str) -> None:
        (keys,) = (keys for keys in jobs_of if keys[0] == name)
        for key in () if status in (0, SAVED) else set(keys) & set(store.left(plan)):
            store.fail(key, f"status {status}: {_last_words(said)}")
        how = {0: "done", SAVED: "stopped"}.get(status, "failed")
        about = _name(plan, keys[0]) + (f" and {len(keys) - 1} more" if keys[1:] else "")
        print(f"run {listed.index(name)} of {plan.name}, {about}: {how} after {seconds:.0f} s", flush=True)
        for line in re.findall(lanes.SAID, said, re.MULTILINE):
            print(f"  {line}", flush=True)

    pool.run(commands, pool.places(jobs, gpus), logs, done)
    failed = {key: why for key in listed if (why := store.failure(key))}
    print(f"wrote {', '.join(map(str, report.write(plan, store)))}")
    if failed:
        for why in dict.fromkeys(failed.values()):
            keys = [key for key in failed if failed[key] == why]
            print(f"failed, {why}\n  " + "\n  ".join(f"run {listed.index(key)}, {_name(plan, key)}" for key in keys))
        raise RunsFailed(f"{len(failed)} of {len(listed)} runs have failed, as said above; --retry tries again")
    if jobs and (stopped := store.left(plan)):
        raise RunsFailed(f"{len(stopped)} of {len(listed)} runs were stopped; the same command goes on with them")


def _check_trained(plan: Sweep) -> None:
    """Raise ``ConfigError`` where the run that cells are drawn by goes on, and with it what they would be drawn by."""
    if plan.trained is None:
        return
    step, steps = runs.latest_step(plan.trained), runs.saved_experiment(plan.trained).train.steps
    if step is None or 0 < step < steps:  # a converted one has none
        raise ConfigError(
            f"RUN of {plan.name} is {plan.trained}, which is at step {step or 0} of {steps}; end it first"
        )


def _last_words(said: str) -> str:
    """What a program said of its end."""
    lines = said.strip().splitlines()
    errors = [line for line in lines if re.match(r"(jdiff:|[\w.]*(Error|Exception)\b)", line)]
    return (errors or lines or ["it said nothing"])[-1]


def _name(plan: Sweep, key: str) -> str:
    """What sets a run apart from others, to be read."""
    cell = plan.runs[key][0]
    if plan.trained:
        return plan.words(dict(cell.variant))
    return plan.words({name: value for name, value in cell.said.items() if name.split(".")[0] not in AFTER})


def _command(plan: Sweep, cell: Cell, store: Store) -> str:
    """What one would type to have one cell's run, or where it is trained already, to draw or measure with its
    settings."""
    if plan.trained:
        settings = {key.partition(".")[2]: value for key, value in cell.said.items() if not key.startswith("measure.")}
        settings |= {"average": cell.measure.average} if cell.measure.average else {}
        said = [f"--{key}={value}" for key, value in settings.items()]
        verb = ["evaluate"] if cell.setup.train.task == "contrastive" else ["sample", "PROMPT"]
        return shlex.join(["jdiff", *verb, f"--workdir={plan.trained}", *said])
    said = [f"--config.{key}={value}" for key, value in cell.said.items() if not key.startswith("measure.")]
    verb = ["figures", "spiral"] if isinstance(cell.setup, Spiral) else ["train"]
    where = [] if isinstance(cell.setup, Spiral) else [f"--workdir={store.run(cell.run)}"]
    return shlex.join(["jdiff", *verb, f"--config={plan.base}", *said, *where])


def _prepare(plan: Sweep, left: Sequence[str]) -> None:
    """Write the data of all runs that are left, each set once. Raises ``ConfigError`` where one has not the split that
    is measured."""
    done: list[tuple[dict, list[str]]] = []
    for key in left:
        setup = plan.runs[key][0].setup
        if isinstance(setup, Spiral):
            continue
        data = setup.config["data"]
        known = next((splits for of, splits in done if of == data), None)
        if known is None:
            prepare(setup)
            known = list(setup.dataset().info.splits)
            done.append((data, known))
        for split in {cell.measure.split for cell in plan.runs[key]} - set(known):
            raise ConfigError(f"measure.split of {plan.name} is {split}; {nearest(split, known)}")


def _shared_out(plan: Sweep, left: Sequence[str], jobs: int, vectorize: str) -> list[list[str]]:
    """The runs that each job does: those that may be lanes of one program, an even part of them for each at a time; of
    a run that is trained already, an even part of what is drawn."""
    if plan.trained:
        return _evenly(left, jobs)
    if vectorize == "never":
        return [[key] for key in left]
    groups = lanes.groups({key: plan.runs[key][0].setup for key in left})
    counts = [max(min(jobs, len(group) // 2), math.ceil(len(group) / LANES)) for group in groups]
    return [part for group, count in zip(groups, counts) for part in _evenly(group, count)]


def _evenly(keys: Sequence[str], count: int) -> list[list[str]]:
    """So many parts, or as many as there are keys; one at least, if there is any key."""
    return [list(map(str, part)) for part in np.array_split(keys, max(count, 1)) if len(part)]


def _measure(plan: Sweep, keys: Sequence[str], store: Store, vectorize: str) -> None:
    """Train runs, if their cells do not share one that is there, and measure those of their cells that are left."""
    with ExitStack() as stack:
        for key in sorted(set(keys)):
            stack.enter_context(_alone(store, key))
        left = {key: own for key in keys if (own := [c for c in plan.runs[key] if store.found(c) is None])}
        if not left:
            return
        parts = [list(left)] if plan.trained else [[key] for key in left]  # each of one model
        cells_of = [[cell for key in part for cell in left[key]] for part in parts]
        kind, setups = KINDS[plan.cells[0].config["train"]["task"]], [own[0].setup for own in cells_of]
        paths = [plan.trained or str(store.run(part[0])) for part in parts]
        models: list[Callable] = [partial(_trained, plan, setup, path) for setup, path in zip(setups, paths)]
        if len(parts) > 1 and vectorize != "never" and _may_be_lanes(setups, paths):
            models = as_lanes(setups, paths, models, always=vectorize == "always")
        for part, own, model in zip(parts, cells_of, models):
            with _failing(store, part):
                trained = model()
                # Weights are read once for each average that is measured; where one cannot be, others are.
                for average in dict.fromkeys(cell.measure.average for cell in own):
                    some = [cell for cell in own if cell.measure.average == average]
                    with _failing(store, [key for key in part if any(cell in some for cell in left[key])]):
                        for cell, found, picture in kind(some, trained, average):
                            _keep(plan, store, cell, found, picture)


@contextmanager
def _failing(store: Store, keys: Sequence[str]) -> Iterator[None]:
    """Where what is done in here cannot be, these runs have failed, and others go on."""
    try:
        yield
    except (ConfigError, Diverged) as error:
        for key in keys:
            store.fail(key, str(error))


def _keep(plan: Sweep, store: Store, cell: Cell, found: dict[str, float], picture: np.ndarray | None) -> None:
    if picture is not None:
        write_image(report.picture_of(store, cell), picture, {"cell": cell.said, "config": cell.config})
    store.finish(cell, found)
    print(f"{plan.words(cell.said)}: {json.dumps(found)}", flush=True)


def _may_be_lanes(setups: Sequence[Any], paths: Sequence[str]) -> bool:
    """Whether runs can be lanes: on one device, none begun yet, with nothing that goes over several steps or parts."""
    return all(
        isinstance(setup, Spiral)
        or (
            setup.mesh().size == 1
            and runs.latest_step(path) is None
            and (setup.train.steps_per_dispatch, setup.train.deterministic_reduction, setup.ema.snapshot_every)
            == (1, 0, 0)
        )
        for setup, path in zip(setups, paths)
    )


def as_lanes(
    setups: Sequence[Any], paths: Sequence[str], alone: Sequence[Callable], *, always: bool
) -> Sequence[Callable]:
    """Train runs as lanes of one program, if that is done in half the time: one is trained alone, and then lanes are
    tried.

    alone: what trains each, and gives its model.   Returns for each what gives its model.
    """
    done, within = 0, None
    if not always:
        if lanes.slow(setups[0]):
            lanes.say(len(setups), False, "on a CPU convolutions of lanes learn slowly")
            return alone
        done = 1
        try:
            model, seconds, compiling = lanes.timed(alone[0])  # which the others find compiled
        except Diverged as error:
            return [partial(_raise, error), *alone[1:]]
        first, within = lanes.given(model), seconds * (len(setups) - 1)
        if lanes.risky(compiling, within):
            why = f"the others take {within:.0f} s, and to compile one took {compiling:.0f} s"
            lanes.say(len(setups) - 1, False, why)
            return [first, *alone[1:]]
    made = Points(setups[done:]) if isinstance(setups[0], Spiral) else Runs(setups[done:], paths[done:])
    models = made.trained(lanes.Trial(len(setups) - done, setups[0].train.steps, within))
    return [*([first] if done else []), *(alone[done:] if models is None else models)]


def _raise(error: Exception) -> Any:
    raise error


@contextmanager
def _alone(store: Store, key: str) -> Iterator[None]:
    """Wait for another process that has this run in hand, as one has that outlived its sweep. On storage that cannot be
    locked none is waited for."""
    if not store.on_disk:
        yield
        return
    folder = Path(store.path) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trained(plan: Sweep, setup: Experiment | Spiral, path: str) -> Any:
    """What a run's cells are measured by: its directory, trained to its end, or of points its state."""
    if isinstance(setup, Spiral):
        return spiral.learnt(setup)
    if plan.trained is None:
        train(setup, path)
    return path


Measured = Iterator[tuple[Cell, dict[str, float], np.ndarray | None]]  # with a picture, where there is one


def _points(own: Sequence[Cell], state: TrainState, average: str | None) -> Measured:
    predict = spiral.network(own[0].setup, state, average)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        n = measure.num or spiral.SAMPLES
        rows = setup.sample.tableau(setup.schedule(), setup.diffusion.prediction_type)
        ends = spiral.draw(predict, setup, rows, measure.seed * n + np.arange(n))
        if not np.isfinite(ends).all():
            raise Diverged("what it draws are not numbers")
        to, back = spiral.measured(ends, setup.points())
        yield cell, {"sample_to_data": to, "data_to_sample": back, "mean_distance": (to + back) / 2}, None


def _contrastive(own: Sequence[Cell], where: str, average: str | None) -> Measured:
    encoder = runs.load(where, average=average)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        held = records.records(setup.dataset(), measure.split)
        found, picture, _ = of_encoder(setup, encoder, held, measure.num or NUM["contrastive"])
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        yield cell, numbers | _loss(where), picture


def _diffusion(own: Sequence[Cell], where: str, average: str | None) -> Measured:
    """Every other prompt is drawn twice, from other noise; cells of one measure.seed begin from the same."""
    sampler = runs.load(where, average=average)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        held = records.records(setup.dataset(), measure.split)
        chosen, captions = prompts(setup, held, (measure.num or NUM["text_to_image"]) // 2)
        n = 2 * len(chosen)
        seeds = range(measure.seed * n, measure.seed * n + n)
        images = sampler.sample(captions * 2, settings=setup.sample, seed=seeds)
        found = judged(setup, images, [held[i] for i in chosen] * 2)
        shares = {name: row["share"] for name, row in found.items()}
        spread = diversity.pairwise_diversity(images[: n // 2], images[n // 2 :])
        picture = image_grid(images[:SHOWN], columns=COLUMNS, scale=display_scale(setup.image_size, 64))
        yield cell, shares | {"diversity": spread} | _loss(where), picture


def _loss(where: str) -> dict[str, float]:
    """What training reported last."""
    path = epath.Path(where) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {"loss": json.loads(lines[-1])["loss"]} if lines else {}


KINDS = {"points": _points, "contrastive": _contrastive, "text_to_image": _diffusion}
