"""jdiff sample: what sentences say, drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import track

from jdiff import runs
from jdiff.construct import ConfigError
from jdiff.images import display_scale, image_grid, write_animation, write_image
from jdiff.interop.pretrained import Hints


def sample(
    path: str,
    *,
    hints: Hints,
    weaker: str | None,
    prompts: Sequence[str],
    prompts_file: str | None,
    negative: str,
    num: int | None,
    seed: int,
    changes: dict,
    batch_size: int,
    trajectory: bool,
    out: str | None,
    average: str | None,
) -> None:
    """Draw images and write each with the JSON that reproduces it; those already there are not drawn again.

    path: a run, or somebody's weights.   hints: what their files do not say.   weaker: a run to lead away from.
    average: which of a run's, as of ``runs.restore_weights``.
    out: directory for the images; inside a run if not said, but never inside somebody's weights.
    """
    prompts = list(prompts)
    if prompts_file:
        lines = epath.Path(prompts_file).read_text().splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError("there is no prompt; write one in quotes after the flags, or name a --prompts_file")
    sampler, step = runs.drawing(path, hints, average)
    if weaker:
        if negative:
            raise ConfigError(
                "--negative and --autoguidance are both given, but guidance leads away from one; leave one out"
            )
        sampler = sampler.with_autoguidance(runs.drawing(weaker)[0])
    settings = dataclasses.replace(sampler.settings, **changes)
    sampler.tableau(settings)  # refuse impossible settings before anything is drawn
    for prompt in {*prompts, negative}:
        if not sampler.tokenizer.fits(prompt):
            print(f"only the first {sampler.tokenizer.context_length - 2} tokens are read of: {prompt}")
    directory = epath.Path(out or (f"{path}/images" if runs.is_run(path) else "images"))
    said = {name: value for name, value in dataclasses.asdict(hints).items() if value is not None}
    said |= {name: value for name, value in (("weaker", weaker), ("average", average)) if value}
    common = {"workdir": str(path), **said, "step": step, "negative": negative, **dataclasses.asdict(settings)}
    total = num or len(prompts)
    wanted = [{"prompt": prompts[i % len(prompts)], "seed": seed + i, **common} for i in range(total)]
    todo = [i for i, about in enumerate(wanted) if not _there(directory / f"{i:06d}.png", about, trajectory)]
    print(
        f"drawing {len(todo)} of {total} images: {settings.steps} steps of {settings.solver}, "
        f"guidance {settings.guidance_scale:g}"
    )
    for first in track(range(0, len(todo), batch_size), description="sampling", console=Console(stderr=True)):
        chosen = todo[first : first + batch_size]
        # The last batch is filled up with some of its own, so that it needs no program of another size.
        full = [wanted[chosen[i % len(chosen)]] for i in range(min(batch_size, len(todo)))]
        drawn = sampler.sample(
            [about["prompt"] for about in full],
            negative=negative,
            seed=[about["seed"] for about in full],
            settings=settings,
            batch_size=batch_size,
            trajectory=trajectory,
        )
        images, paths = drawn if trajectory else (drawn, None)
        for place, i in enumerate(chosen):
            if paths is not None:
                _write_trajectory(directory / f"{i:06d}", paths[:, place], wanted[i])
            write_image(directory / f"{i:06d}.png", images[place], wanted[i])
    print(f"wrote {directory}/000000.png to {total - 1:06d}.png, each with its .json")


def _there(path: epath.Path, about: dict, trajectory: bool) -> bool:
    """Whether an image, and its trajectory where asked for, was already drawn from exactly this."""
    strip = [path.with_name(f"{path.stem}_strip.png"), path.with_suffix(".gif")] if trajectory else []
    try:
        return json.loads(path.with_suffix(".json").read_text()) == about and all(p.exists() for p in (path, *strip))
    except (FileNotFoundError, json.JSONDecodeError):  # a JSON cut short by a kill is drawn again
        return False


def _write_trajectory(stem: epath.Path, frames: np.ndarray, about: dict) -> None:
    """The denoiser's view of one image at every step, (steps, h, w, 3), as a strip of ten and as an animation."""
    scale = display_scale(frames.shape[1])
    shown = frames[np.linspace(0, len(frames) - 1, min(10, len(frames))).round().astype(int)]
    strip = image_grid(shown, columns=len(shown), scale=scale)
    write_image(stem.with_name(f"{stem.name}_strip.png"), strip, about | {"trajectory": True})
    write_animation(stem.with_name(f"{stem.name}.gif"), frames.repeat(scale, 1).repeat(scale, 2))
