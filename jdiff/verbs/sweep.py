"""jdiff sweep: many variants of a config, trained and measured, and what may be said of them."""

from __future__ import annotations

import fcntl
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from etils import epath

from jdiff import grids, runs
from jdiff.build import Spiral
from jdiff.construct import ConfigError
from jdiff.data import records
from jdiff.evaluation import diversity
from jdiff.sweep import cells, pool, report
from jdiff.sweep.cells import AFTER, Cell, Store, Sweep
from jdiff.sweep.pool import RunsFailed
from jdiff.verbs import spiral
from jdiff.verbs.evaluate import COLUMNS, NUM, judged, of_encoder, prompts
from jdiff.verbs.prepare import prepare
from jdiff.verbs.train import train

SHOWN = 16  # pictures of a cell on the page
SAVED = 75  # the status of a run that was asked to stop


def sweep(
    file: str,
    workdir: str,
    *,
    config_file: Callable[[str], str],
    jobs: int = 1,
    gpus: Sequence[str] = (),
    run: int | None = None,
    retry: bool = False,
    dry_run: bool = False,
) -> None:
    """Do what is left to do of a sweep, and report what there is.

    config_file: from a config's name to its file.   jobs: runs at a time, each with its share of the cores; 0 for none.
    gpus: in place of this, one run at a time on each.   run: only this one, by its number, and report nothing.
    retry: try again what has failed.   dry_run: only print a command for each cell.
    Raises ``ConfigError`` before anything begins, ``RunsFailed`` at the end.
    """
    plan, store = cells.read(file, config_file), Store(workdir)
    listed = list(plan.runs)
    if dry_run:
        for cell in plan.cells:
            print(_command(plan, cell, store))
        return
    if run is not None:
        if not 0 <= run < len(listed):
            raise ConfigError(f"--run is {run}, but {plan.name} has runs 0 to {len(listed) - 1}")
        _measure(plan, listed[run], store)
        return
    for key in listed if retry else ():
        store.forgive(key)
    left = store.left(plan)
    print(f"{plan.name}: {len(plan.cells)} cells of {len(listed)} runs, {len(left)} runs to do; see {workdir}/logs")
    _prepare(plan, left)
    own = [sys.executable, "-m", "jdiff.cli", "sweep", file, f"--workdir={workdir}"]
    commands = {key: [*own, f"--run={listed.index(key)}"] for key in left if jobs}
    logs = Path(workdir) / "logs"

    def done(key: str, status: int, seconds: float) -> None:
        about = f"run {listed.index(key)} of {plan.name}, {_name(plan, key)}"
        if status not in (0, SAVED):
            lines = (logs / f"{key}.log").read_text().strip().splitlines()
            store.fail(key, f"status {status}: {lines[-1] if lines else 'it said nothing'}")
        how = {0: "done", SAVED: "stopped"}.get(status, "failed")
        print(f"{about}: {how} after {seconds:.0f} s", flush=True)

    pool.run(commands, pool.places(jobs, gpus), logs, done)
    failed = {key: why for key in listed if (why := store.failure(key))}
    print(f"wrote {', '.join(map(str, report.write(plan, store)))}")
    if failed:
        for key, why in failed.items():
            print(f"run {listed.index(key)}, {_name(plan, key)}, has failed: {why}")
        raise RunsFailed(f"{len(failed)} of {len(listed)} runs have failed, as said above; --retry tries again")
    if jobs and (stopped := store.left(plan)):
        raise RunsFailed(f"{len(stopped)} of {len(listed)} runs were stopped; the same command goes on with them")


def _name(plan: Sweep, key: str) -> str:
    """What sets a run apart from others, to be read."""
    said = plan.runs[key][0].said
    return plan.words({name: value for name, value in said.items() if name.split(".")[0] not in AFTER})


def _command(plan: Sweep, cell: Cell, store: Store) -> str:
    """What one would type to have one cell's run, its sampling settings among its config."""
    said = [f"--config.{key}={value}" for key, value in cell.said.items() if not key.startswith("measure.")]
    if plan.trained:
        return shlex.join(["jdiff", "evaluate", f"--workdir={plan.trained}", *said])
    verb = ["figures", "spiral"] if isinstance(cell.setup, Spiral) else ["train"]
    where = [] if isinstance(cell.setup, Spiral) else [f"--workdir={store.run(cell.run)}"]
    return shlex.join(["jdiff", *verb, f"--config={plan.base}", *said, *where])


def _prepare(plan: Sweep, left: Sequence[str]) -> None:
    """Write the data of all runs that are left, each set once."""
    done: list[dict] = []
    for key in left:
        setup = plan.runs[key][0].setup
        if not isinstance(setup, Spiral) and setup.config["data"] not in done:
            done.append(setup.config["data"])
            prepare(setup)


def _measure(plan: Sweep, key: str, store: Store) -> None:
    """Train a run, if its cells do not share one that is there, and measure those of its cells that are left."""
    own = plan.runs[key]
    with _alone(store, key):
        left = [cell for cell in own if store.found(cell) is None]
        if not left:
            return
        kind = left[0].config["train"]["objective"]
        for cell, found, picture in KINDS[kind](left, _trained(plan, left[0], store)):
            if picture is not None:
                grids.write(report.picture_of(store, cell), picture, {"cell": cell.said, "config": cell.config})
            store.finish(cell, found)
            print(f"{plan.words(cell.said)}: {json.dumps(found)}", flush=True)


@contextmanager
def _alone(store: Store, key: str) -> Iterator[None]:
    """Wait for another process that has this run in hand, as one has that outlived its sweep."""
    folder = Path(store.path) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _trained(plan: Sweep, cell: Cell, store: Store) -> str:
    """The directory of a cell's run, trained to its end. Of points there is none; they are learnt in a minute."""
    where = plan.trained or str(store.run(cell.run))
    if plan.trained is None and not isinstance(cell.setup, Spiral):
        train(cell.setup, where)
    return where


Measured = Iterator[tuple[Cell, dict[str, float], np.ndarray | None]]  # with a picture, where there is one


def _points(own: Sequence[Cell], where: str) -> Measured:
    predict = spiral.learnt(own[0].setup)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        n = measure.num or spiral.SAMPLES
        rows = setup.sample.tableau(setup.schedule(), setup.diffusion.prediction_type)
        ends = spiral.draw(predict, setup, rows, measure.seed * n + np.arange(n))
        to, back = spiral.measured(ends, setup.points())
        yield cell, {"to_data": to, "from_data": back, "both": (to + back) / 2}, None


def _contrastive(own: Sequence[Cell], where: str) -> Measured:
    encoder = runs.load(where)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        held = records.records(setup.dataset(), measure.split)
        found, picture = of_encoder(setup, encoder, held, measure.num or NUM["contrastive"])
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        yield cell, numbers | _loss(where), picture


def _diffusion(own: Sequence[Cell], where: str) -> Measured:
    """Every other prompt is drawn twice, from other noise; cells of one measure.seed begin from the same."""
    sampler = runs.load(where)
    for cell in own:
        setup, measure = cell.setup, cell.measure
        held = records.records(setup.dataset(), measure.split)
        chosen, captions = prompts(setup, held, (measure.num or NUM["diffusion"]) // 2)
        n = 2 * len(chosen)
        seeds = range(measure.seed * n, measure.seed * n + n)
        images = sampler.sample(captions * 2, settings=setup.sample, seed=seeds)
        found = judged(setup, images, [held[i] for i in chosen] * 2)
        shares = {name: row["share"] for name, row in found.items()}
        spread = diversity.spread(images[: n // 2], images[n // 2 :])
        picture = grids.grid(images[:SHOWN], columns=COLUMNS, scale=grids.scale_for(setup.image_size, 64))
        yield cell, shares | {"diversity": spread} | _loss(where), picture


def _loss(where: str) -> dict[str, float]:
    """What training reported last."""
    path = epath.Path(where) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {"loss": json.loads(lines[-1])["loss"]} if lines else {}


KINDS = {"points": _points, "contrastive": _contrastive, "diffusion": _diffusion}
