"""A config of points in the plane to the objects it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jdiff import rng
from jdiff.build.sections import Config, Numbers, plain
from jdiff.construct import ConfigError, construct, nearest
from jdiff.data.spiral import spiral as spiral_points
from jdiff.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from jdiff.models.mlp import MLP
from jdiff.training import steps
from jdiff.training.state import TrainState

READ = {"train": ("task", "batch_size", "steps", "seed"), "ema": ("decays", "widths")}  # of sections for all


@dataclass(frozen=True)
class Spiral(Config):
    """The config of a network of points in the plane, checked whole, and the objects it names."""

    def __post_init__(self):
        self.check_sections(("data", "mlp", "diffusion", "optimizer", "ema", "train", "sample"))
        for section, keys in READ.items():
            for key in self.section(section):
                if key not in keys:
                    raise ConfigError(f"config.{section}.{key} is nothing that points need; {nearest(key, keys)}")
        self.check_train(("steps", "batch_size"))
        self.check_diffusion()
        self.points()
        self.mlp()
        self.optimizer()

    def points(self) -> np.ndarray:
        return construct("data", spiral_points, self.section("data"))

    def mlp(self) -> MLP:
        return construct("mlp", MLP, self.section("mlp"))

    def several(self) -> Callable:
        """So many training steps, not compiled: (numbers, state, count) -> state."""
        mlp, points, d = self.mlp(), jnp.asarray(self.points()), self.diffusion
        batch = {"index": jnp.arange(self.train.batch_size)}

        def several(numbers: Numbers, state: TrainState, count: Array) -> TrainState:
            step = steps.points_step(
                mlp,
                points,
                self.optimizer(numbers),
                schedule=self.schedule(numbers),
                prediction_type=d.prediction_type,
                weighting=self.weighting(numbers),
                timestep_sampling=TIMESTEP_SAMPLINGS[d.timestep_sampling],
                ema=self.ema_config(numbers),
                seed=numbers.seed,
            )
            return jax.lax.fori_loop(0, count, lambda _, state: step(state, batch)[0], state)

        return several

    def initial_state(self, seed: int | Array | None = None) -> TrainState:
        """Where training begins. seed: the config's if not said."""
        key = rng.stream(self.train.seed if seed is None else seed, "parameters")
        return self.begin({"mlp": self.mlp().init(key, jnp.zeros((1, 2)), jnp.zeros(1))["params"]}, frozen={})


def spiral(config: ConfigDict | Mapping) -> Spiral:
    """A checked experiment of points. As ``experiment``."""
    return Spiral(plain(config))
