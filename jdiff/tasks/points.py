"""The task of points in the plane: a small diffusion model whose every step can be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import track

from jdiff import rng
from jdiff.config.construct import ConfigError, construct, nearest
from jdiff.config.sections import Config, check_diffusion, check_positive
from jdiff.data.spiral import distances, spiral_points
from jdiff.diffusion import loss as diffusion
from jdiff.diffusion import prediction, sampler
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.tableau import Tableau
from jdiff.models.mlp import MLP
from jdiff.tasks.task import TracedKeys, ema_of, initial_state
from jdiff.tasks.text_to_image import trace_diffusion, traced_schedule, traced_weighting
from jdiff.training.ema import NO_EMA
from jdiff.training.grad_accumulation import GradientAccumulation
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.loop import Divergence
from jdiff.training.state import Params, TrainState
from jdiff.training.update import Keys, make_step

KEYS = {"train": ("task", "batch_size", "steps", "seed"), "ema": ("decays", "widths")}  # of shared sections, those used
STEPS_PER_CALL = 500  # training steps between two updates of the progress bar
NUM_SAMPLES = 1000


@dataclass(frozen=True)
class PointsObjective:
    """The denoising loss of points, of which each example, known by its index alone, draws one.

    points: (n, 2).
    """

    network: MLP
    config: Config
    schedule: Schedule
    points: np.ndarray
    mean_of_rows: ClassVar[bool] = True

    def optimizer(self, hparams: TracedHyperparameters) -> optax.GradientTransformation:
        return self.config.make_optimizer(hparams.optimizer)

    def forward(self, params: Params, hparams: TracedHyperparameters, rows: dict, keys: Keys) -> tuple[Array, dict]:
        index = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(self.points)))(keys("points"))
        return diffusion.loss(
            lambda xt, timestep: self.network.apply({"params": params["mlp"]}, xt, timestep),
            jnp.asarray(self.points)[index],
            keys=keys("noise"),
            schedule=traced_schedule(self.schedule, hparams),
            prediction_type=self.config.diffusion.prediction_type,
            weighting=traced_weighting(self.config, hparams),
            timestep_sampling=self.config.diffusion.timestep_sampling_function(),
        )

    def reduce(self, params: Params, hparams: TracedHyperparameters, outputs: tuple) -> tuple[Array, dict]:
        return outputs

    def project(self, new: Params, old: Params, step: Array) -> Params:
        return new


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["network"])
@dataclass(frozen=True)
class PointsModel:
    """A network of points with its parameters."""

    network: MLP
    params: Params

    def __call__(self, xt: Array, timestep: Array) -> Array:
        output = self.network.apply({"params": self.params}, xt, timestep)
        return output  # pyright: ignore[reportReturnType] variables are only returned with mutable=


@dataclass(frozen=True)
class Points:
    """Trains a network on points in the plane. Checked whole when it is made."""

    config: Config

    name: ClassVar[str] = "points"
    network_names: ClassVar[tuple[str, ...]] = ()
    sections: ClassVar[tuple[str, ...]] = ("data", "mlp", "diffusion", "optimizer", "ema", "train", "sample")
    has_convolutions: ClassVar[bool] = False
    has_run_dir: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for section, keys in KEYS.items():
            for key in self.config.section(section):
                if key not in keys:
                    raise ConfigError(f"config.{section}.{key} is not used by task 'points'; {nearest(key, keys)}")
        check_positive("train", self.config.train, ("steps", "batch_size"))
        check_diffusion(self.config)
        self.points()
        self.network()

    def traced_hparams(self) -> tuple[TracedHyperparameters, TracedKeys]:
        return trace_diffusion(self.config)

    def points(self) -> np.ndarray:
        """The data, (n, 2)."""
        return construct("data", spiral_points, self.config.section("data"))

    def network(self) -> MLP:
        return construct("mlp", MLP, self.config.section("mlp"))

    def schedule(self) -> Schedule:
        return self.config.diffusion.make_schedule()

    def objectives(self, mesh: Mesh | None = None) -> tuple[PointsObjective]:
        return (PointsObjective(self.network(), self.config, self.schedule(), self.points()),)

    def first_state(self, pretrained: Mapping[str, Any] | None = None, seed: int | Array | None = None) -> TrainState:
        """The state before the first step. pretrained: unused, as points are trained from nothing."""
        key = rng.stream(self.config.train.seed if seed is None else seed, "parameters")
        params = {"mlp": self.network().init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"]}
        return initial_state(self.config, params, frozen={})

    def steps(self) -> Callable:
        """Several training steps, not compiled: (hparams, state, count) -> state."""
        step = make_step(self.objectives(), GradientAccumulation(), partial(ema_of, self.config), lambda state: state)
        batch = {"index": jnp.arange(self.config.train.batch_size)}

        def run(hparams: TracedHyperparameters, state: TrainState, count: Array) -> TrainState:
            return jax.lax.fori_loop(0, count, lambda _, state: step(hparams, state, batch)[0], state)

        return run

    def train(self) -> TrainState:
        """Train from the first to the last step."""
        run, state, num_steps = jax.jit(self.steps()), self.first_state(), self.config.train.steps
        counts = [min(STEPS_PER_CALL, num_steps - start) for start in range(0, num_steps, STEPS_PER_CALL)]
        for count in track(counts, description=f"training for {num_steps} steps", console=Console(stderr=True)):
            state = jax.block_until_ready(run(self.config.hparams, state, count))
        return state

    def model(self, state: TrainState, ema: str | None = None) -> PointsModel:
        """The trained network. ema: of config.ema, None for the default, or "none" for the parameters themselves."""
        params = {None: state.inference_params, NO_EMA: state.params} | state.ema
        return PointsModel(self.network(), params[ema]["mlp"])

    def tableau(self, **changes: Any) -> Tableau:
        """The coefficients of the config's sampling settings, or of others."""
        settings: Settings = dataclasses.replace(self.config.sample, **changes)
        return settings.tableau(self.schedule(), self.config.diffusion.prediction_type)

    def draw(self, model: PointsModel, tableau: Tableau, seeds: np.ndarray) -> np.ndarray:
        """Points (n, 2), each from its seed."""
        keys = rng.image_keys(jnp.asarray(seeds))
        return np.asarray(_draw(self.config.diffusion.prediction_type, model, tableau, keys))

    def measure(self, model: PointsModel, *, split: str, num: int, seed: int = 0) -> tuple[dict[str, float], None]:
        """Of a sweep's cell: mean distances between samples and data. split: unused, as there is one."""
        n = num or NUM_SAMPLES
        samples = self.draw(model, self.tableau(), seed * n + np.arange(n))
        if not np.isfinite(samples).all():
            raise Divergence("the samples are not finite numbers")
        to_data, from_data = mean_distances(samples, self.points())
        metrics = {"sample_to_data": to_data, "data_to_sample": from_data, "mean_distance": (to_data + from_data) / 2}
        return metrics, None


@partial(jax.jit, static_argnums=0)
def _draw(prediction_type: str, model: PointsModel, tableau: Tableau, keys: Array) -> Array:
    denoise, noise = prediction.denoiser(model, prediction_type), sampler.initial_noise(keys, (2,))
    return sampler.sample(denoise, tableau, noise, keys=keys)[0]


def mean_distances(samples: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """The mean distance of samples (n, 2) to the data (m, 2), and of the data to the samples."""
    return float(distances(samples, points).mean()), float(distances(points, samples).mean())
