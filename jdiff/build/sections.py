"""The sections that configs of all objectives have, each checked with a sentence for every mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jdiff.construct import ConfigError, choose, construct, nearest
from jdiff.diffusion import schedules
from jdiff.diffusion.loss import TIMESTEP_SAMPLINGS
from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR, PREDICTION_TYPES, WEIGHTINGS
from jdiff.diffusion.schedules import SCHEDULES, SPACINGS, Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.levels import Level
from jdiff.training.ema import MAX_WIDTH, EmaConfig
from jdiff.training.optimizers import adamw
from jdiff.training.state import TrainState

NUMBERS = ("seed", "caption_dropout", "optimizer", "decays", "table", "weighting")


@dataclass(frozen=True)
class TrainSettings:
    """config.train. objective: what is trained. keep: checkpoints that stay.

    group: records that follow each other on disk and stay together in a batch.
    freeze_text_steps: steps before a dual encoder's text tower begins to learn.
    microbatches: parts that a batch is worked through in, one after another, to save memory.
    steps_per_dispatch: steps that the devices take before they ask the host again; it divides all that is counted in
        steps.
    deterministic_reduction: microbatches whose gradients are summed in a fixed order on any layout, for tests; 0: off.
    """

    task: str
    batch_size: int
    steps: int
    seed: int = 0
    group: int = 1
    freeze_text_steps: int = 0
    microbatches: int = 1
    steps_per_dispatch: int = 1
    deterministic_reduction: int = 0
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 500
    keep: int = 2


@dataclass(frozen=True)
class EmaSettings:
    """config.ema, the running averages; the first is used if not said. decays: of constant ones.

    widths: of those whose profile is a power function, see ``training.ema``.
    snapshot_every: steps after which these are kept for good, to make others of; 0 for never.
    """

    decays: Sequence[float] = ()
    widths: Sequence[float] = ()
    snapshot_every: int = 0


@dataclass(frozen=True)
class ContrastiveSettings:
    """config.contrastive.

    loss: of KINDS.   form: of FORMS, where its logits lie.   chunk: of the ring, images looked at together; 0 for all.
    """

    loss: str = "softmax"
    form: str = "dense"
    chunk: int = 0


@dataclass(frozen=True)
class DiffusionSettings:
    """config.diffusion.

    continuous, shift, zero_terminal_snr: see ``schedules.make``.   density: how timesteps are drawn.
    learned_variance: whether the U-Net also learns how much noise a step of DDPM adds.
    caption_dropout: share of captions replaced by the empty one.
    """

    schedule: str = "cosine"
    timesteps: int = 1000
    continuous: bool = False
    shift: float = 1.0
    zero_terminal_snr: bool = False
    learned_variance: bool = False
    prediction_type: str = "v"
    weighting: str = "simple"
    timestep_sampling: str = "uniform"
    caption_dropout: float = 0.1


@partial(jax.tree_util.register_dataclass, data_fields=NUMBERS, meta_fields=())
@dataclass(frozen=True)
class Numbers:
    """What of a config is only a number to a compiled step, so that configs which differ in no more can share one.

    optimizer: arguments of ``adamw``.   decays: of averages.   table: of the noise schedule, and weighting, as of
    ``prediction.weights``: None where a step is compiled for its own.
    """

    seed: Array
    caption_dropout: Array
    optimizer: dict[str, Array]
    decays: tuple[Array, ...]
    table: Level | None
    weighting: int | Array | None


@dataclass(frozen=True)
class Config:
    """A config, and the objects that those of all objectives name."""

    config: dict[str, Any]

    def section(self, name: str) -> dict[str, Any]:
        return dict(self.config.get(name, {}))

    @property
    def train(self) -> TrainSettings:
        return construct("train", TrainSettings, self.section("train"))

    @property
    def diffusion(self) -> DiffusionSettings:
        return construct("diffusion", DiffusionSettings, self.section("diffusion"))

    @property
    def sample(self) -> Settings:
        return construct("sample", Settings, self.section("sample"))

    @property
    def ema(self) -> EmaSettings:
        return construct("ema", EmaSettings, self.section("ema"))

    @property
    def numbers(self) -> Numbers:
        adjusted = {name: p.default for name, p in signature(adamw).parameters.items() if p.annotation == "float"}
        optimizer = {name: np.float32(self.section("optimizer").get(name, own)) for name, own in adjusted.items()}
        seed = np.uint32(self.train.seed % 2**32)  # of a larger one JAX takes no more
        dropout, decays = np.float32(self.diffusion.caption_dropout), tuple(map(np.float32, self.ema.decays))
        return Numbers(seed, dropout, optimizer, decays, None, None)

    def ema_config(self, numbers: Numbers | None = None) -> EmaConfig:
        """numbers: what a program is told, in place of the config's own; and so below."""
        own = EmaConfig(tuple(self.ema.decays), tuple(self.ema.widths))
        if numbers is None:
            return own
        return EmaConfig(numbers.decays, own.widths, own.names[: len(own.decays)])

    def weighting(self, numbers: Numbers) -> str | Array:
        return self.diffusion.weighting if numbers.weighting is None else numbers.weighting

    def schedule(self, numbers: Numbers | None = None) -> Schedule:
        if numbers is not None and numbers.table is not None:
            return self.schedule().with_traced_table(numbers.table)
        d = self.diffusion
        choose("diffusion.schedule", d.schedule, SCHEDULES)
        return schedules.make(
            d.schedule,
            d.timesteps,
            continuous=d.continuous,
            shift=d.shift,
            zero_terminal_snr=d.zero_terminal_snr,
        )

    def optimizer(self, numbers: Numbers | None = None):
        section = self.section("optimizer")
        if numbers is not None:
            return adamw(**section | numbers.optimizer, steps=self.train.steps)
        return construct("optimizer", adamw, section, steps=self.train.steps)

    def begin(self, params: dict[str, Any], frozen: dict[str, Any]) -> TrainState:
        """The state of no steps yet."""
        averages, optimizer = self.ema_config(), self.optimizer()
        used = averages.names[0] if averages.names else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), averages.init(params), frozen, used)

    def check_train(self, counts: Sequence[str]) -> None:
        """The train section. counts: its keys that must be 1 or more."""
        for key in counts:
            if getattr(self.train, key) < 1:
                raise ConfigError(f"config.train.{key} is {getattr(self.train, key)}; it must be 1 or more")
        final_lr_fraction = self.section("optimizer").get("final_lr_fraction", 0.0)
        if not 0 <= final_lr_fraction <= 1:
            raise ConfigError(f"config.optimizer.final_lr_fraction is {final_lr_fraction}; it must be from 0 to 1")
        ema = self.ema
        if not all(0 < decay < 1 for decay in ema.decays):
            raise ConfigError(f"config.ema.decays is {ema.decays}; each must be between 0 and 1")
        if not all(0 < width < MAX_WIDTH for width in ema.widths):
            raise ConfigError(f"config.ema.widths is {ema.widths}; each must be between 0 and {MAX_WIDTH:.4f}")
        if len(set(self.ema_config().names)) < len(self.ema_config().names):
            raise ConfigError("config.ema has one average twice")
        if ema.snapshot_every < 0 or (ema.snapshot_every and not ema.widths):
            raise ConfigError(
                f"config.ema.snapshot_every is {ema.snapshot_every}; it must be 0, or more where config.ema.widths has "
                "averages to keep"
            )

    def check_sections(self, sections: Sequence[str]) -> None:
        for section in self.config:
            if section not in sections:
                raise ConfigError(
                    f"config.{section} is no section of {self.train.task} training; {nearest(section, sections)}"
                )

    def check_diffusion(self) -> None:
        """The diffusion and sample sections, with the sentence for each key."""
        if self.diffusion.timesteps < 2:
            raise ConfigError(f"config.diffusion.timesteps is {self.diffusion.timesteps}; it must be 2 or more")
        if self.diffusion.shift <= 0:
            raise ConfigError(f"config.diffusion.shift is {self.diffusion.shift}; it must be above 0")
        schedule = self.schedule()
        choose("diffusion.prediction_type", self.diffusion.prediction_type, PREDICTION_TYPES)
        if self.diffusion.zero_terminal_snr and self.diffusion.prediction_type in BLIND_AT_ZERO_SNR:
            raise ConfigError(
                f"config.diffusion.prediction_type is '{self.diffusion.prediction_type}', which says nothing of an "
                "image at pure noise, where config.diffusion.zero_terminal_snr ends; take 'v', 'x0' or 'flow'"
            )
        if self.diffusion.learned_variance and self.diffusion.continuous:
            raise ConfigError(
                "config.diffusion.learned_variance is set, but its bound is over whole timesteps; "
                "config.diffusion.continuous has none"
            )
        choose("diffusion.weighting", self.diffusion.weighting, WEIGHTINGS)
        choose("diffusion.timestep_sampling", self.diffusion.timestep_sampling, TIMESTEP_SAMPLINGS)
        choose("sample.solver", self.sample.solver, SOLVERS)
        choose("sample.spacing", self.sample.spacing, SPACINGS)
        choose("sample.variance", self.sample.variance, VARIANCES)
        try:
            self.sample.tableau(
                schedule, self.diffusion.prediction_type, learned_variance=self.diffusion.learned_variance
            )
        except ValueError as error:
            raise ConfigError(f"config.sample cannot be used: {error}") from error


def plain(config: ConfigDict | Mapping) -> dict[str, Any]:
    """A config as JSON would keep it."""
    return json.loads(json.dumps(config.to_dict() if isinstance(config, ConfigDict) else config))
