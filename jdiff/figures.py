"""Figures of the documentation: the forward process, and a spiral whose samples show why sampling adds noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jdiff import rng
from jdiff.data.decoding import decode, fit
from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import Scene, Thing
from jdiff.diffusion import prediction, process, schedules
from jdiff.images import image_grid, write_image
from jdiff.levels import Level
from jdiff.tasks.points import NUM_SAMPLES, Points, PointsModel, mean_distances

FORWARD_STEPS = (0, 500, 1000)
FIELD_TIMESTEPS = (999, 600, 400, 250, 100, 20)
NUM_ARROWS, AXIS_LIMIT = 150, 1.6  # of the field


def forward_figure(output_dir: str, *, schedule: str, image: str | None) -> epath.Path:
    """An image after 0, 500 and 1000 steps of the forward process.

    Step n of the article is timestep n - 1 of the schedule; step 0 is the clean image.
    """
    if image is None:
        scene = Scene((Thing("star", "red", "large"),), place="centre")
        clean = render(scene, np.random.default_rng(0), 128)
    else:
        clean = fit(decode(epath.Path(image).read_bytes()), 256)
    x0 = jnp.asarray(clean, jnp.float32)[None].repeat(len(FORWARD_STEPS), 0) / 127.5 - 1
    eps = rng.normal(rng.image_keys(jnp.zeros(1)), x0.shape[1:]).repeat(len(FORWARD_STEPS), 0)
    rates = schedules.make(schedule).rates(np.array(FORWARD_STEPS) - 1)
    level = type(rates)(jnp.asarray(rates.alpha, jnp.float32), jnp.asarray(rates.sigma, jnp.float32))
    noised = np.asarray(process.diffuse(x0, eps, level))
    pictures = np.round((noised.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    request = {"figure": "forward", "schedule": schedule, "steps": FORWARD_STEPS, "image": image or "a large red star"}
    path = write_image(
        epath.Path(output_dir) / "forward.png", image_grid(pictures, columns=len(FORWARD_STEPS)), request
    )
    print(f"wrote {path}, the image after {', '.join(map(str, FORWARD_STEPS))} steps of the {schedule} schedule")
    return path


def spiral_figure(task: Points, output_dir: str) -> None:
    """Train on the spiral of a config, and draw the network's field and its samples."""
    model, points = task.model(task.train()), task.points()
    request = {"figure": "spiral", "config": task.config.raw}
    field = write_image(epath.Path(output_dir) / "spiral_field.png", _field(model, points, task), request)
    samples = spiral_samples(model, task)
    results = {name: mean_distances(drawn_points, points) for name, drawn_points in samples.items()}
    for name, (to_data, from_data) in results.items():
        print(f"{name}: {to_data:.4f} from a sample to the data on average, {from_data:.4f} from the data to a sample")
    panels = _panels(points, samples, results)
    pictures = write_image(epath.Path(output_dir) / "spiral_samples.png", panels, request | {"results": results})
    print(f"wrote {field} and {pictures}, each with its .json")


def spiral_samples(model: PointsModel, task: Points) -> dict[str, np.ndarray]:
    """Samples of a network by three methods, (NUM_SAMPLES, 2), by the name of the method."""
    ddpm = task.tableau(solver="ddpm")
    tableaux = {
        "DDPM": ddpm,
        "DDPM without its noise": dataclasses.replace(ddpm, noise_coef=np.zeros_like(ddpm.noise_coef)),
        "DDIM": task.tableau(solver="ddim", eta=0.0),
    }
    return {name: task.draw(model, tableau, np.arange(NUM_SAMPLES)) for name, tableau in tableaux.items()}


def _field(predict: Callable, points: np.ndarray, task: Points) -> np.ndarray:
    """From noised points to where the learnt network sees them clean, at some timesteps."""
    schedule = task.schedule()
    figure = Figure(figsize=(12, 2.5), layout="constrained")
    eps = np.asarray(rng.normal(rng.image_keys(jnp.arange(len(points))), (2,)))
    arrow_indices = np.linspace(0, len(points) - 1, NUM_ARROWS).round().astype(int)
    for axes, timestep in zip(figure.subplots(1, len(FIELD_TIMESTEPS)), FIELD_TIMESTEPS):
        timestep = min(timestep, schedule.timesteps - 1)
        rates = schedule.rates(np.array(float(timestep)))
        noised = rates.alpha * points + rates.sigma * eps
        xt = jnp.asarray(noised[arrow_indices], jnp.float32)
        level = Level(jnp.full(len(xt), rates.alpha, jnp.float32), jnp.full(len(xt), rates.sigma, jnp.float32))
        output = predict(xt, jnp.full(len(xt), timestep, jnp.float32))
        x0 = np.asarray(prediction.parse_output(task.config.diffusion.prediction_type, output, xt, level).x0)
        axes.scatter(*noised.T, s=1, color="0.8")
        axes.quiver(*xt.T, *(x0 - xt).T, color="C0", angles="xy", scale_units="xy", scale=1, width=0.004, alpha=0.5)
        axes.scatter(*x0.T, s=4, color="C3", zorder=3)
        axes.set_title(f"timestep {timestep}", fontsize=9)
        _square(axes)
    return _pixels(figure)


def _panels(
    points: np.ndarray, samples_by_name: dict[str, np.ndarray], distances_by_name: dict[str, tuple[float, float]]
) -> np.ndarray:
    figure = Figure(figsize=(12, 3.7), layout="constrained")
    panels = figure.subplots(1, 1 + len(samples_by_name))
    panels[0].set_title("the data, and its mean", fontsize=9)
    panels[0].plot(*points.mean(0), "x", color="C3")
    for axes, (name, samples) in zip(panels[1:], samples_by_name.items()):
        axes.scatter(*samples.T, s=3, color="C0", zorder=2)
        axes.set_title("{}\n{:.3f} to the data, {:.3f} back".format(name, *distances_by_name[name]), fontsize=9)
    for axes in panels:
        axes.scatter(*points.T, s=1, color="0.75")
        _square(axes)
    return _pixels(figure)


def _square(axes) -> None:
    axes.set(xlim=(-AXIS_LIMIT, AXIS_LIMIT), ylim=(-AXIS_LIMIT, AXIS_LIMIT), aspect="equal", xticks=[], yticks=[])


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
