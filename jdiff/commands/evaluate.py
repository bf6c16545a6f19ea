"""jdiff evaluate: measure a trained model, in numbers and pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags as absl_flags

from jdiff.commands import flags

USAGE = "--workdir"


def define_flags() -> None:
    flags.define_workdir("Run directory; with --images also pretrained weights.")
    absl_flags.DEFINE_string(
        "images", None, "Folder of images to measure a dual encoder on: captioned, or sorted into one folder per class."
    )
    absl_flags.DEFINE_string(
        "templates", None, "With --images: file of prompts with {} for the class; default: CLIP's."
    )
    absl_flags.DEFINE_string("out", None, "With --images: JSON file to write.")
    flags.define_hints()
    flags.define_ema()
    absl_flags.DEFINE_string("split", "test", "Split whose captions are used.")
    absl_flags.DEFINE_integer("num", None, "Number of examples at most (default: 256 prompts, or 128 pairs).", 1)
    absl_flags.DEFINE_multi_float("guidance_scale", None, "Guidance scales to measure (default: the config's).")
    absl_flags.DEFINE_bool("negative_prompts", False, "Also measure negative prompts, where the data can judge them.")
    absl_flags.DEFINE_bool("recompute", False, "Measure even what was measured of this checkpoint before.")


def run(arguments: list[str]) -> None:
    flags.no_arguments(arguments)
    f = absl_flags.FLAGS
    if f.images:
        evaluate_folder(
            flags.required("workdir"),
            f.images,
            hints=flags.hints(),
            templates=f.templates,
            num=f.num,
            output_file=f.out,
            ema=f.ema,
        )
        return
    evaluate(
        flags.required("workdir"),
        split=f.split,
        num=f.num,
        guidance_scales=f.guidance_scale,
        negative_prompts=f.negative_prompts,
        recompute=f.recompute,
        ema=f.ema,
    )


def evaluate(
    workdir: str,
    *,
    split: str = "test",
    num: int | None = None,
    guidance_scales: Sequence[float] | None = None,
    negative_prompts: bool = False,
    recompute: bool = False,
    ema: str | None = None,
) -> dict[str, Any]:
    """Measure a run on a split of the data it was trained for; print, write and return the results.

    recompute: measure even what was measured of this checkpoint before.   ema: as of ``directory.restore_params``.
    """
    from etils import epath

    from jdiff import storage
    from jdiff.config.construct import ConfigError
    from jdiff.images import write_image
    from jdiff.inference.calibrate import measure_denoising_mse
    from jdiff.runs import directory
    from jdiff.tasks.text_to_image import TextToImage

    task, step = directory.saved_task(workdir), directory.latest_step(workdir)
    if not task.config.data.source:
        raise ConfigError(f"{workdir} names no data in config.data; pass a folder of images with --images")
    draws = isinstance(task, TextToImage)
    if negative_prompts and not (draws and task.evaluator.negative_prompt_cases()):
        raise ConfigError(
            f"--negative_prompts needs a text-to-image run on data whose pictures can be read, such as shapes; "
            f"{workdir} is of task '{task.name}' on '{task.config.data.source}'"
        )
    num, examples = num or task.evaluate_num, task.split(split)
    path = epath.Path(workdir) / "evaluation" / split / "results.json"
    scales = list(guidance_scales or [task.config.sample.guidance_scale])
    request = {"workdir": str(workdir), "step": step, "split": split, "num": num, "ema": ema}
    request |= {"guidance_scales": scales, "with_negative_prompts": negative_prompts}
    results: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, storage.DamagedFile):  # measured again
        results = storage.read_json(path, "")
    if not recompute and all(results.get(key) == value for key, value in request.items()):
        print(f"{workdir} was measured already at step {step} on '{split}'")
    else:
        print(f"measuring {workdir} at step {step} on '{split}'")
        model = directory.load(workdir, ema=ema)
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if draws:
            options = {"guidance_scales": scales, "negative_prompts": negative_prompts, "progress": _progress}
            # Of images that training has not seen, and of the parameters that are used by default.
            if model.denoising_mse is None and ema is None and split != "train":
                asked_examples = [examples[i] for i in task.evaluator.choose(examples, num)]
                images, captions = (
                    [e["image"] for e in asked_examples],
                    [task.evaluator.caption(e) for e in asked_examples],
                )
                mse_curve = measure_denoising_mse(model, _stack(images), captions)
                directory.save_denoising_mse(workdir, step, mse_curve)
        evaluation = task.evaluate(model, split=split, num=num, **options)
        for picture in evaluation.pictures:
            write_image(path.parent / f"{picture.name}.png", picture.image, request | picture.request)
        results = request | evaluation.metrics
        storage.write_json(path, results)
    _show(results)
    print(f"see {path} and the pictures beside it")
    return results


def _stack(images: list) -> Any:
    import numpy as np

    return np.stack(images)


def _progress(scale: float) -> Any:
    """A progress bar over the batches of a guidance scale."""
    from rich.console import Console
    from rich.progress import track

    return partial(track, description=f"guidance {scale:g}", console=Console(stderr=True))


def _show(results: dict[str, Any]) -> None:
    """The results as a table."""
    from rich.console import Console
    from rich.table import Table

    if "scales" in results:
        table = Table("measure", *(f"guidance {scale}" for scale in results["scales"]))
        for name in next(iter(results["scales"].values())):
            table.add_row(name, *(_share(rates[name]) for rates in results["scales"].values()))
    else:
        table = scalars_table(results)
    Console().print(table)
    if "negatives" in results:
        table = Table("in images that can be read", "no negative prompt", "as the negative prompt")
        for name, rates in results["negatives"].items():
            table.add_row(name, *(f"{_share(r)} of {r['count']} read, {results['num']} drawn" for r in rates))
        Console().print(table)
    if "overlap" in results:
        print(f"{results['prompts']} prompts, {results['scenes']} scenes, {results['overlap']} seen in training")


def scalars_table(results: dict[str, Any]) -> Any:
    """The scalars among the results, one a row."""
    from rich.table import Table

    table = Table("measure", "value")
    for name, value in results.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(name, f"{value:.4g}")
    return table


def _share(rate: dict[str, float]) -> str:
    return f"{rate['share']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def evaluate_folder(
    path: str,
    images: str,
    *,
    hints: Any,
    templates: str | None,
    num: int | None,
    output_file: str | None,
    ema: str | None = None,
) -> dict[str, Any]:
    """Measure a dual encoder on a folder of images, without training on them; print, write and return the results.

    path: a run, or pretrained weights.   num: images at most; None for all.   ema: as of ``directory.restore_params``.
    output_file: JSON file to write; None for a file in the run, or in the working directory.
    """
    from etils import epath
    from rich.console import Console

    from jdiff import storage
    from jdiff.config.construct import ConfigError
    from jdiff.evaluation.folder_metrics import folder_metrics
    from jdiff.runs import directory

    encoder, model = directory.load_encoder(path, hints, ema)
    if not epath.Path(images).is_dir():
        raise ConfigError(f"--images is {images}, which is not a folder")
    size = model.task.image_size
    crop = model.task.config.data.source_keys.get("crop", "center")
    folder = epath.Path(path) / "evaluation" if directory.is_run(path) else epath.Path()
    target = epath.Path(output_file) if output_file else folder / f"{storage.absolute(images).name}.json"
    storage.make_output_folder(target.parent, "--out")
    results = folder_metrics(encoder, images, image_size=size, crop=crop, templates=templates, num=num)
    Console().print(scalars_table(results))
    results = {"model": str(path), "step": model.step, "ema": ema, "images": str(images), **results}
    storage.write_json(target, results)
    print(f"wrote {target}")
    return results
