"""jdiff evaluate: what a run has learnt, in numbers and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jdiff import runs
from jdiff.build import Experiment
from jdiff.construct import ConfigError
from jdiff.contrastive import analogies
from jdiff.data import records
from jdiff.diffusion.settings import Settings
from jdiff.embed import Encoder
from jdiff.evaluation import emoji, prompt_accuracy, retrieval, shapes
from jdiff.images import display_scale, heatmap, image_grid, write_image
from jdiff.sample import Sampler

NUM = {"contrastive": 128, "text_to_image": 256}  # pairs that recall is measured among; prompts that are drawn
SHOWN, COLUMNS = 64, 8


def evaluate(
    workdir: str,
    *,
    split: str = "test",
    num: int | None = None,
    guidance_scales: Sequence[float] | None = None,
    negatives: bool = False,
    again: bool = False,
    average: str | None = None,
) -> dict:
    """Measure a run on a split of the data it was trained for; print, write and return what was found.

    again: measure even what was measured of this checkpoint before.
    average: which of the run's, as of ``runs.restore_weights``.
    """
    setup, step = runs.saved_experiment(workdir), runs.latest_step(workdir)
    if not setup.source:
        raise ConfigError(
            f"{workdir} was trained on no data that is known here; name a folder of pictures with --images"
        )
    num = num or NUM[setup.train.task]
    if negatives and (setup.source, setup.train.task) != ("shapes", "text_to_image"):
        raise ConfigError(
            f"--negative_prompts needs a text-to-image run on shapes, whose pictures can be read; {workdir} is a "
            f"{setup.train.task} run on {setup.source}"
        )
    held = records.records(setup.dataset(), split)
    path = epath.Path(workdir) / "evaluation" / split / "results.json"
    scales = list(guidance_scales or [setup.sample.guidance_scale])
    asked = {"workdir": str(workdir), "step": step, "split": split, "num": num, "average": average}
    asked |= {"guidance_scales": scales, "with_negatives": negatives}
    found = json.loads(path.read_text()) if path.exists() else {}
    if not again and all(found.get(key) == value for key, value in asked.items()):
        print(f"{workdir} was measured already at step {step} on '{split}'")
    else:
        print(f"measuring {workdir} at step {step} on '{split}'")
        loaded = runs.load(workdir, average=average)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(loaded, Encoder):
            figures, picture, captions = of_encoder(setup, loaded, held, num)
            write_image(path.parent / "similarity.png", picture, asked | {"captions": captions})
            found = asked | figures
        else:
            found = asked | _sampler(setup, loaded, held, asked, path.parent)
            if negatives:
                found["negatives"] = _negatives(loaded, num)
        path.write_text(json.dumps(found, indent=2) + "\n")
    _show(found)
    print(f"see {path} and the pictures beside it")
    return found


def _show(found: dict) -> None:
    """What was found, as a table."""
    if "scales" in found:
        table = Table("measure", *(f"guidance {scale}" for scale in found["scales"]))
        for name in next(iter(found["scales"].values())):
            table.add_row(name, *(_share(row[name]) for row in found["scales"].values()))
    else:
        table = numbers(found)
    Console().print(table)
    if "negatives" in found:
        table = Table("shown by pictures that can be read", "no negative prompt", "as the negative prompt")
        for name, rows in found["negatives"].items():
            table.add_row(name, *(f"{_share(row)} of {row['count']} read, {found['num']} drawn" for row in rows))
        Console().print(table)
    if "overlap" in found:
        print(f"{found['prompts']} prompts, {found['scenes']} scenes, of which training showed {found['overlap']}")


def numbers(found: dict) -> Table:
    """The figures in what was found, one a row."""
    table = Table("measure", "value")
    for name, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(name, f"{value:.4g}")
    return table


def _share(row: dict) -> str:
    return f"{row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"


def of_encoder(setup: Experiment, encoder: Encoder, held, num: int) -> tuple[dict, np.ndarray, list[str]]:
    """Recall both ways, what is told apart, and the arithmetic of meanings; the similarity matrix as a picture, and the
    captions that it is of."""
    if setup.source == "shapes":
        chosen = shapes.distinct_indices(held, num)
        captions = [shapes.full_caption(held[i]) for i in chosen]
        cases, answers = shapes.analogies(), shapes.candidates()
    else:
        chosen = list(range(min(num, len(held))))
        captions = [held[i]["captions"][0].decode() for i in chosen]
        cases, answers = [], []
    if setup.source == "emoji":
        everything = [*_all(setup, "train"), *_all(setup, "test")]
        answers = [record["captions"][0].decode() for record in everything]
        cases = emoji.analogies(answers)
    text = np.asarray(encoder.embed_texts(captions))
    image = np.asarray(encoder.embed_images(np.stack([held[i]["image"] for i in chosen])))
    found = {"compared": len(chosen), **retrieval.recall(text, image)}
    if cases:
        found |= {
            "analogies": len(cases),
            "analogy_accuracy": analogies.accuracy(encoder.embed_texts, cases, answers),
            "analogy_chance": 1 / len(answers),
        }
    if setup.source == "shapes":
        found |= _told_apart(encoder, held)
    return found, heatmap(text @ image.T, cell=6), captions


def _told_apart(encoder: Encoder, held) -> dict:
    """How many pictures of two things lie nearer to their caption than to one with a single matter exchanged."""
    confusions = shapes.hard_negative_captions(held)
    shown = sorted({place for cases in confusions.values() for place, _, _ in cases})
    if not shown:
        return {}
    image = np.asarray(encoder.embed_images(np.stack([held[place]["image"] for place in shown])))
    found = {"pairs": len(shown)}
    for name, cases in confusions.items():
        places, *captions = zip(*cases)
        right, wrong = (np.asarray(encoder.embed_texts(list(said))) for said in captions)
        found[f"{name}_accuracy"] = retrieval.prefers_correct_caption(
            image[np.searchsorted(shown, places)], right, wrong
        ).mean()
    return found


def _sampler(setup: Experiment, sampler: Sampler, held, asked: dict, directory: epath.Path) -> dict:
    """Draw a split's captions at every guidance scale and judge the pictures, where something can judge them."""
    run = {key: asked[key] for key in ("workdir", "step", "split")}
    chosen, captions = prompts(setup, held, asked["num"])
    # Of pictures that training has not seen, and of the weights that are used if nothing is said.
    if sampler.denoising_mse is None and asked["average"] is None and run["split"] != "train":
        pictures = np.stack([held[i]["image"] for i in chosen])
        runs.save_denoising_mse(run["workdir"], run["step"], sampler.measure_denoising_mse(pictures, captions))
    found: dict = {"prompts": len(chosen), "scales": {}}
    for scale in asked["guidance_scales"]:
        settings = dataclasses.replace(sampler.settings, guidance_scale=scale)
        images = sampler.sample(captions, settings=settings, seed=0, progress=_progress(settings))
        shown = images[:SHOWN]
        if setup.source != "shapes":
            shown = _beneath(np.stack([held[i]["image"] for i in chosen[:SHOWN]]), shown)
        picture = image_grid(shown, columns=COLUMNS, scale=display_scale(setup.image_size, 64))
        about = run | {"captions": captions[:SHOWN], "seed": 0, **dataclasses.asdict(settings)}
        write_image(directory / f"guidance_{scale:g}.png", picture, about)
        found["scales"][f"{scale:g}"] = judged(setup, images, [held[i] for i in chosen])
    if setup.source == "shapes":
        scenes = shapes.scenes(held)
        trained = shapes.scenes(records.records(setup.dataset(), "train"))
        chosen_scenes = {scenes[i] for i in chosen}
        found |= {"scenes": len(chosen_scenes), "overlap": prompt_accuracy.overlap(chosen_scenes, trained)}
    return found


def prompts(setup: Experiment, held, num: int) -> tuple[list[int], list[str]]:
    """Which examples a text-to-image run is measured on, and what it is asked to draw for each."""
    if setup.source == "shapes":
        chosen = shapes.sharp_indices(held, num)
        return chosen, [shapes.full_caption(held[i]) for i in chosen]
    chosen = list(range(min(num, len(held))))
    return chosen, [held[i]["captions"][0].decode() for i in chosen]


def _beneath(real: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Rows of real images, each with the drawn ones beneath it, for a grid. Both (n, h, w, 3)."""
    blank = np.full((-len(real) % COLUMNS, *real.shape[1:]), 208, np.uint8)
    rows = [np.concatenate([images, blank]).reshape(-1, COLUMNS, *real.shape[1:]) for images in (real, drawn)]
    return np.stack(rows, axis=1).reshape(-1, *real.shape[1:])


def _progress(settings: Settings) -> Callable[[Sequence], Iterable]:
    """A bar over the batches of a drawing."""
    return partial(track, description=f"guidance {settings.guidance_scale:g}", console=Console(stderr=True))


def _negatives(sampler: Sampler, num: int) -> dict[str, list[dict]]:
    """How many of the pictures that can be read show a colour, or blur: without and with it as the negative prompt.

    At the config's guidance scale; the counts tell how many pictures could be read.
    """
    found = {}
    for name, cases in shapes.negative_prompt_cases().items():
        cases = [cases[i % len(cases)] for i in range(num)]
        found[name] = []
        for negative in ([""] * num, [case.negative for case in cases]):
            images = sampler.sample(
                [case.prompt for case in cases],
                negative=negative,
                seed=range(num),
                progress=_progress(sampler.settings),
            )
            found[name].append(prompt_accuracy.occurrence_rate([case.is_shown for case in cases], images))
    return found


def judged(setup: Experiment, images: np.ndarray, asked: list[dict]) -> dict:
    """How many of the pictures show what was asked for, where something can tell. asked: the examples, one each."""
    if setup.source == "shapes":
        return prompt_accuracy.summary(prompt_accuracy.verdicts(shapes.scenes(asked), images))
    if setup.source == "emoji":
        everything = [*_all(setup, "train"), *_all(setup, "test")]
        return prompt_accuracy.summary(emoji.verdicts(images, asked, everything))
    return {}


def _all(setup: Experiment, split: str) -> list[dict]:
    rows = records.records(setup.dataset(), split)
    return [rows[i] for i in range(len(rows))]
