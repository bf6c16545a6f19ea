"""jdiff sample: sample images from prompts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from jdiff.commands import flags

USAGE = "--workdir 'a red circle' 'a blue star'"


def define_flags() -> None:
    flags.define_workdir("Run directory, or pretrained weights; or pass it before the prompts.")
    flags.define_hints()
    flags.define_ema()
    flags.define_settings()
    absl_flags.DEFINE_string("prompts_file", None, "File of prompts, one a line; besides or instead of arguments.")
    absl_flags.DEFINE_string("negative", "", "Negative prompt.")
    absl_flags.DEFINE_string("autoguidance", None, "A run of a weaker model to guide away from.")
    absl_flags.DEFINE_integer("num", None, "Number of images, prompts repeating in turn (default: one for each).", 1)
    absl_flags.DEFINE_integer("seed", 0, "Image i has seed + i.", 0, 2**31 - 1)
    absl_flags.DEFINE_integer("batch_size", 64, "Images per batch.", 1)
    absl_flags.DEFINE_boolean("trajectory", False, "Also write the denoising trajectory as a strip and an animation.")
    absl_flags.DEFINE_string("out", None, "Directory for the images (default: WORKDIR/images).")


def run(arguments: list[str]) -> None:
    f = absl_flags.FLAGS
    path, prompts = f.workdir, arguments
    if path is None and prompts and Path(prompts[0]).exists():
        path, *prompts = prompts
    sample(
        path or flags.required("workdir"),
        hints=flags.hints(),
        autoguidance=f.autoguidance,
        ema=f.ema,
        prompts=[flags.decode_prompt(prompt) for prompt in prompts],
        prompts_file=f.prompts_file,
        negative=flags.decode_prompt(f.negative),
        num=f.num,
        seed=f.seed,
        changes=flags.settings(),
        batch_size=f.batch_size,
        trajectory=f.trajectory,
        output_dir=f.out,
    )


def sample(
    path: str,
    *,
    hints: Any,
    autoguidance: str | None,
    prompts: Sequence[str],
    prompts_file: str | None,
    negative: str,
    num: int | None,
    seed: int,
    changes: dict[str, Any],
    batch_size: int,
    trajectory: bool,
    output_dir: str | None,
    ema: str | None,
) -> None:
    """Draw images, each with the JSON that reproduces it; images that exist already are not drawn again.

    path: a run, or pretrained weights.   hints: what the weights' files lack.   changes: to the config's settings.
    output_dir: directory for the images; None for WORKDIR/images of a run, or "images" beside pretrained weights.
    """
    from etils import epath
    from rich.console import Console
    from rich.progress import track

    from jdiff import storage
    from jdiff.config.construct import ConfigError
    from jdiff.images import write_image
    from jdiff.runs import directory
    from jdiff.text import clean_text, read_lines

    prompts, negative = [clean_text(prompt) for prompt in prompts], clean_text(negative)
    if prompts_file:
        prompts += read_lines(prompts_file)
    if not prompts:
        raise ConfigError("there is no prompt; write one in quotes after the flags, or pass --prompts_file")
    sampler, step = directory.load_sampler(path, hints, ema)
    if autoguidance:
        if negative:
            raise ConfigError("--negative cannot be combined with --autoguidance; leave out one of them")
        sampler = sampler.with_autoguidance(directory.load_sampler(autoguidance)[0])
    settings = dataclasses.replace(sampler.settings, **changes)
    sampler.tableau(settings)  # refuse impossible settings before anything is drawn
    for prompt in {*prompts, negative}:
        if not sampler.tokenizer.fits(prompt):
            print(f"only the first {sampler.tokenizer.context_length - 2} tokens are used of: {prompt}")
    folder = epath.Path(output_dir or (f"{path}/images" if directory.is_run(path) else "images"))
    options = {name: value for name, value in dataclasses.asdict(hints).items() if value is not None}
    options |= {name: value for name, value in (("autoguidance", autoguidance), ("ema", ema)) if value}
    common = {"workdir": str(path), **options, "step": step, "negative": negative, **dataclasses.asdict(settings)}
    storage.make_output_folder(folder, "--out")
    total = num or len(prompts)
    requests = [{"prompt": prompts[i % len(prompts)], "seed": seed + i, **common} for i in range(total)]
    missing = [i for i, request in enumerate(requests) if not _exists(folder / f"{i:06d}.png", request, trajectory)]
    print(
        f"drawing {len(missing)} of {total} images: {settings.steps} steps of {settings.solver}, "
        f"guidance {settings.guidance_scale:g}"
    )
    for start in track(range(0, len(missing), batch_size), description="sampling", console=Console(stderr=True)):
        batch = missing[start : start + batch_size]
        # The last batch is filled up with repeats, so that it needs no program of another size.
        full = [requests[batch[i % len(batch)]] for i in range(min(batch_size, len(missing)))]
        result = sampler.sample(
            [request["prompt"] for request in full],
            negative=negative,
            seed=[request["seed"] for request in full],
            settings=settings,
            batch_size=batch_size,
            trajectory=trajectory,
        )
        images, path = result if trajectory else (result, None)
        for place, i in enumerate(batch):
            if path is not None:
                _write_trajectory(folder / f"{i:06d}", path.xt[:, place], path.x0[:, place], requests[i])
            write_image(folder / f"{i:06d}.png", images[place], requests[i])
    last = f" to {total - 1:06d}.png, each" if total > 1 else ""
    print(f"wrote {folder}/000000.png{last} with its .json")
    if others := [path.name for path in folder.glob("*.png") if path.stem.isdigit() and int(path.stem) >= total]:
        print(f"{len(others)} images of earlier calls are in {folder}, too: {min(others)} to {max(others)}")


def _exists(path: Any, request: dict[str, Any], trajectory: bool) -> bool:
    """Whether an image, and its trajectory where asked for, was drawn already from exactly this."""
    from jdiff.images import read_metadata

    if trajectory:
        strip, animation = path.with_name(f"{path.stem}_strip.png"), path.with_suffix(".gif")
        if not animation.exists() or read_metadata(strip) != request | _trajectory_metadata(animation):
            return False
    return read_metadata(path) == request


def _trajectory_metadata(animation: Any) -> dict[str, Any]:
    """What the JSON of a strip has besides the request: the digest of the animation beside it."""
    return {"trajectory": True, "animation_sha256": hashlib.sha256(animation.read_bytes()).hexdigest()}


def _write_trajectory(stem: Any, noisy: Any, predicted: Any, request: dict[str, Any]) -> None:
    """The trajectory of one image, both (steps, h, w, 3): ten steps of xt above x0 as a strip, x0 as an animation."""
    from jdiff.images import denoising_strip, display_scale, write_animation, write_image

    scale = display_scale(predicted.shape[1])
    frames = predicted.repeat(scale, 1).repeat(scale, 2)
    animation = write_animation(stem.with_name(f"{stem.name}.gif"), frames)
    strip = denoising_strip(noisy, predicted, scale=scale)
    write_image(stem.with_name(f"{stem.name}_strip.png"), strip, request | _trajectory_metadata(animation))
