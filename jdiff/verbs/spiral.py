"""jdiff figures spiral: a spiral learnt in a minute, and why sampling adds noise again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from jdiff import grids, rng
from jdiff.build import Spiral
from jdiff.data.spiral import distances
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.tableau import Tableau
from jdiff.levels import Level
from jdiff.models.mlp import MLP
from jdiff.training.ema import NO_EMA
from jdiff.training.state import Params, TrainState

SAMPLES, PART = 1000, 500  # points that are drawn; training steps between two signs of life
SHOWN = (999, 600, 400, 250, 100, 20)  # timesteps of the field
ARROWS, REACH = 150, 1.6  # of the field: how many, and how far it is shown


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["mlp"])
@dataclasses.dataclass(frozen=True)
class Network:
    """A network with what it has learnt."""

    mlp: MLP
    params: Params

    def __call__(self, xt: Array, timestep: Array) -> Array:
        return self.mlp.apply({"params": self.params}, xt, timestep)


def spiral(setup: Spiral, out: str) -> None:
    """Learn the spiral of a config and draw its field and its samples."""
    predict, points, about = network(setup, learnt(setup)), setup.points(), {"figure": "spiral", "config": setup.config}
    field = grids.write(epath.Path(out) / "spiral_field.png", _field(predict, points, setup), about)
    drawn = samples(predict, setup)
    found = {name: measured(ends, points) for name, ends in drawn.items()}
    for name, (to, back) in found.items():
        print(f"{name}: {to:.4f} from a point to the data on the mean, {back:.4f} from the data to a point")
    pictures = grids.write(
        epath.Path(out) / "spiral_samples.png", _panels(points, drawn, found), about | {"found": found}
    )
    print(f"wrote {field} and {pictures}, each with its .json")


def samples(predict: Network, setup: Spiral) -> dict[str, np.ndarray]:
    """Points drawn by a network in each way, (SAMPLES, 2), by the name of the way."""

    def tableau(**said) -> Tableau:
        return dataclasses.replace(setup.sample, **said).tableau(setup.schedule(), setup.diffusion.prediction_type)

    ddpm = tableau(solver="ddpm")
    ways = {
        "DDPM": ddpm,
        "DDPM, its noise left out": dataclasses.replace(ddpm, noise_coef=np.zeros_like(ddpm.noise_coef)),
        "DDIM": tableau(solver="ddim", eta=0.0),
    }
    return {name: draw(predict, setup, rows, np.arange(SAMPLES)) for name, rows in ways.items()}


def draw(network: Network, setup: Spiral, rows: Tableau, seeds: np.ndarray) -> np.ndarray:
    """Points (n, 2) drawn by a network as a tableau says, each from its seed."""
    return np.asarray(_drawn(setup.diffusion.prediction_type, network, rows, rng.image_keys(jnp.asarray(seeds))))


@partial(jax.jit, static_argnums=0)
def _drawn(prediction_type: str, network: Network, rows: Tableau, keys: Array) -> Array:
    return sampler.sample(
        prediction.denoiser(network, prediction_type), rows, sampler.initial_noise(keys, (2,)), keys=keys
    )[0]


def measured(ends: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """The mean distance of samples (n, 2) to the data (m, 2), and of the data to the samples."""
    return float(distances(ends, points).mean()), float(distances(points, ends).mean())


def learnt(setup: Spiral) -> TrainState:
    """Train."""
    several, state, left = jax.jit(setup.several()), setup.initial_state(), setup.train.steps
    parts = [min(PART, left - done) for done in range(0, left, PART)]
    for count in track(parts, description=f"learning for {left} steps", console=Console(stderr=True)):
        state = jax.block_until_ready(several(setup.numbers, state, count))
    return state


def network(setup: Spiral, state: TrainState, average: str | None = None) -> Network:
    """What has been learnt. average: of config.ema, its first if not said, or "none"."""
    used = {None: state.inference_params, NO_EMA: state.params} | state.ema
    return Network(setup.mlp(), used[average]["mlp"])


def _field(predict: Callable, points: np.ndarray, setup: Spiral) -> np.ndarray:
    """From noised points to where the learnt network sees them clean, at some timesteps."""
    schedule = setup.schedule()
    figure = Figure(figsize=(12, 2.5), layout="constrained")
    eps = np.asarray(rng.normal(rng.image_keys(jnp.arange(len(points))), (2,)))
    some = np.linspace(0, len(points) - 1, ARROWS).round().astype(int)
    for axes, timestep in zip(figure.subplots(1, len(SHOWN)), SHOWN):
        timestep = min(timestep, schedule.timesteps - 1)
        rates = schedule.rates(np.array(float(timestep)))
        noised = rates.alpha * points + rates.sigma * eps
        xt = jnp.asarray(noised[some], jnp.float32)
        level = Level(jnp.full(len(xt), rates.alpha, jnp.float32), jnp.full(len(xt), rates.sigma, jnp.float32))
        output = predict(xt, jnp.full(len(xt), timestep, jnp.float32))
        x0 = np.asarray(prediction.parse_output(setup.diffusion.prediction_type, output, xt, level).x0)
        axes.scatter(*noised.T, s=1, color="0.8")
        axes.quiver(*xt.T, *(x0 - xt).T, color="C0", angles="xy", scale_units="xy", scale=1, width=0.004, alpha=0.5)
        axes.scatter(*x0.T, s=4, color="C3", zorder=3)
        axes.set_title(f"timestep {timestep}", fontsize=9)
        _square(axes)
    return _pixels(figure)


def _panels(points: np.ndarray, drawn: dict[str, np.ndarray], found: dict[str, tuple[float, float]]) -> np.ndarray:
    figure = Figure(figsize=(12, 3.7), layout="constrained")
    panels = figure.subplots(1, 1 + len(drawn))
    panels[0].set_title("the data, and its mean", fontsize=9)
    panels[0].plot(*points.mean(0), "x", color="C3")
    for axes, (name, samples) in zip(panels[1:], drawn.items()):
        axes.scatter(*samples.T, s=3, color="C0", zorder=2)
        axes.set_title("{}\n{:.3f} to the data, {:.3f} back".format(name, *found[name]), fontsize=9)
    for axes in panels:
        axes.scatter(*points.T, s=1, color="0.75")
        _square(axes)
    return _pixels(figure)


def _square(axes) -> None:
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
