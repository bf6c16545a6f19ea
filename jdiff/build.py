"""Configs to objects: the only place that reads a config.

Every section of a config names a constructor's arguments, so an unknown key is an error, with the
nearest right one in its sentence, and no key can go unread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from jdiff import rng
from jdiff.construct import ConfigError, choose, construct, nearest
from jdiff.data import records
from jdiff.data import tokenizer as tokenizers
from jdiff.data.sources import SOURCES
from jdiff.data.tokenizer import Tokenizer
from jdiff.diffusion.loss import DENSITIES
from jdiff.diffusion.prediction import PREDICTION_TYPES, WEIGHTINGS
from jdiff.diffusion.schedules import SCHEDULES, SPACINGS, Schedule
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.embed import Encoder
from jdiff.models.clip import DualEncoder, TextTower, VisionTower
from jdiff.models.layers import ACTIVATIONS
from jdiff.models.unet import UNet
from jdiff.sample import Sampler, Settings
from jdiff.sharding import mesh as meshes
from jdiff.training import checkpoint, metrics, steps
from jdiff.training.loop import Every
from jdiff.training.optimizer import adamw
from jdiff.training.state import TrainState

BOTH = ("data", "tokenizer", "text", "optimizer", "mesh", "train")
SECTIONS = {"contrastive": (*BOTH, "vision"), "diffusion": (*BOTH, "unet", "diffusion", "sample")}


@dataclass(frozen=True)
class TrainSettings:
    """config.train. objective: what is trained. ema_decay: 0 for no average. keep: checkpoints that stay.

    group: records that follow each other on disk and stay together in a batch.
    hold_text: steps before a dual encoder's text tower begins to learn.
    """

    objective: str
    batch_size: int
    steps: int
    seed: int = 0
    group: int = 1
    hold_text: int = 0
    ema_decay: float = 0.0
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 500
    keep: int = 2


@dataclass(frozen=True)
class DiffusionSettings:
    """config.diffusion.

    density: how timesteps are drawn.   caption_dropout: share of captions replaced by the empty one.
    """

    schedule: str = "cosine"
    timesteps: int = 1000
    prediction_type: str = "v"
    weighting: str = "simple"
    density: str = "uniform"
    caption_dropout: float = 0.1


@dataclass(frozen=True)
class Experiment:
    """A config, checked whole, and the objects it names."""

    config: dict[str, Any]

    def __post_init__(self):
        sections = choose("train.objective", self.train.objective, SECTIONS)
        for section in self.config:
            if section not in sections:
                raise ConfigError(
                    f"config.{section} is no section of {self.train.objective} training; {nearest(section, sections)}"
                )
        for key in ("steps", "batch_size", "log_every", "save_every", "sample_every", "keep", "group"):
            if getattr(self.train, key) < 1:
                raise ConfigError(f"config.train.{key} is {getattr(self.train, key)}; it must be 1 or more")
        if self.train.batch_size % self.train.group:
            raise ConfigError(
                f"config.train.batch_size is {self.train.batch_size}, no multiple of config.train.group, "
                f"{self.train.group}"
            )
        if not 0 <= self.train.ema_decay < 1:
            raise ConfigError(
                f"config.train.ema_decay is {self.train.ema_decay}; it must be from 0 up to, not including, 1"
            )
        if self.train.hold_text and self.train.objective != "contrastive":
            raise ConfigError("config.train.hold_text is set, but only contrastive training changes the text tower")
        if not 0 <= self.train.hold_text < self.train.steps:
            raise ConfigError(
                f"config.train.hold_text is {self.train.hold_text}; it must be from 0 up to, not including, "
                f"config.train.steps, {self.train.steps}"
            )
        choose("text.activation", self._section("text").get("activation", "gelu"), ACTIVATIONS)
        self.optimizer()
        text = self.text(1024)
        if self.train.objective == "contrastive":
            if text.skip:
                raise ConfigError("config.text.skip is set, but only text-to-image training reads the tower's states")
            choose("vision.activation", self._section("vision").get("activation", "gelu"), ACTIVATIONS)
            self.vision()
        else:
            if "layers" in self._section("text") and not 0 <= text.skip < text.layers:
                raise ConfigError(
                    f"config.text.skip is {text.skip}; it must be from 0 to {text.layers - 1}, as the tower has "
                    f"{text.layers} layers"
                )
            self.unet()
            if self.diffusion.timesteps < 1:
                raise ConfigError(f"config.diffusion.timesteps is {self.diffusion.timesteps}; it must be 1 or more")
            schedule = self.schedule()
            choose("diffusion.prediction_type", self.diffusion.prediction_type, PREDICTION_TYPES)
            choose("diffusion.weighting", self.diffusion.weighting, WEIGHTINGS)
            choose("diffusion.density", self.diffusion.density, DENSITIES)
            if not 0 <= self.diffusion.caption_dropout <= 1:
                raise ConfigError(
                    f"config.diffusion.caption_dropout is {self.diffusion.caption_dropout}; it must be from 0 to 1"
                )
            choose("sample.solver", self.sample.solver, SOLVERS)
            choose("sample.spacing", self.sample.spacing, SPACINGS)
            choose("sample.variance", self.sample.variance, VARIANCES)
            try:
                self.sample.tableau(schedule)
            except ValueError as error:
                raise ConfigError(f"config.sample cannot be used: {error}") from error

    def _section(self, name: str) -> dict[str, Any]:
        return dict(self.config.get(name, {}))

    @property
    def train(self) -> TrainSettings:
        return construct("train", TrainSettings, self._section("train"))

    @property
    def diffusion(self) -> DiffusionSettings:
        return construct("diffusion", DiffusionSettings, self._section("diffusion"))

    @property
    def sample(self) -> Settings:
        return construct("sample", Settings, self._section("sample"))

    @property
    def image_size(self) -> int:
        return self._section("data").get("image_size", 32)

    @property
    def context_length(self) -> int:
        return self._section("tokenizer").get("context_length", 32)

    @property
    def text_run(self) -> str | None:
        """The run whose trained text tower is read, config.text.run."""
        return self._section("text").get("run")

    @property
    def source(self) -> str:
        """Where the data comes from: "shapes", "emoji", "folder", or "tfds:NAME"."""
        return self._section("data").get("source", "shapes")

    def dataset(self) -> records.CaptionedImages:
        """The builder of the records that the config's data section names."""
        keys = self._section("data")
        kind, _, name = self.source.partition(":")
        own = {key: keys.pop(key) for key in ("max_rejected",) if key in keys}
        directory = keys.pop("directory", "data")
        keys.pop("source", None)
        keys.setdefault("image_size", self.image_size)
        more = {"dataset": name} if kind == "tfds" else {}
        source = construct("data", choose("data.source", kind, SOURCES), keys, **more)
        return records.CaptionedImages(source=source, data_dir=directory, image_size=self.image_size, **own)

    def train_tokenizer(self, captions) -> Tokenizer:
        """A tokenizer learnt from captions, to the config's tokenizer section."""
        return construct("tokenizer", partial(tokenizers.train, captions), self._section("tokenizer"))

    def text(self, vocab_size: int) -> TextTower:
        keys = self._section("text")
        keys.pop("run", None)
        return construct("text", TextTower, keys, vocab_size=vocab_size, context_length=self.context_length)

    def vision(self) -> VisionTower:
        return construct("vision", VisionTower, self._section("vision"), image_size=self.image_size)

    def encoder(self, tokenizer: Tokenizer) -> DualEncoder:
        return DualEncoder(self.text(tokenizer.vocab_size), self.vision())

    def unet(self) -> UNet:
        return construct("unet", UNet, self._section("unet"), out_channels=3)

    def schedule(self) -> Schedule:
        return choose("diffusion.schedule", self.diffusion.schedule, SCHEDULES)(self.diffusion.timesteps)

    def optimizer(self):
        return construct("optimizer", adamw, self._section("optimizer"), steps=self.train.steps)

    def mesh(self) -> jax.sharding.Mesh:
        return construct("mesh", meshes.make, self._section("mesh"))

    @property
    def every(self) -> Every:
        return Every(self.train.log_every, self.train.save_every, self.train.sample_every)

    def initial_state(self, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, frozen: Any = None) -> TrainState:
        """Where training begins: parameters from the config's seed, placed on the mesh.

        frozen: weights of the text tower, for a U-Net.
        Raises ``ConfigError`` where the config's numbers make no network.
        """
        train, n = self.train, self.context_length
        tokens, mask = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool)
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        text = self.text(tokenizer.vocab_size)
        if train.objective == "contrastive":
            network, inputs = self.encoder(tokenizer), (tokens, mask, image)
        else:
            context, pooled = jnp.zeros((1, n, text.width)), jnp.zeros((1, text.embed_dim))
            network, inputs = self.unet(), (image, jnp.zeros((1,)), context, mask, pooled)
        optimizer = self.optimizer()

        def begin(frozen) -> TrainState:
            params = network.init(rng.stream(train.seed, "parameters"), *inputs)["params"]
            average = jax.tree.map(jnp.copy, params) if train.ema_decay else None
            return TrainState(jnp.int32(0), params, optimizer.init(params), average, frozen)

        try:
            return jax.jit(begin, out_shardings=meshes.everywhere(mesh))(frozen)
        except (TypeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
            sections = "config.text and config.vision" if train.objective == "contrastive" else "config.unet"
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{sections} cannot be a network for images of {self.image_size} x {self.image_size}: {why}"
            ) from error

    def step(self, tokenizer: Tokenizer) -> Callable:
        """The compiled training step: (state, batch) -> (state, averages). The state passed in is given up."""
        train, text, optimizer = self.train, self.text(tokenizer.vocab_size), self.optimizer()
        decay = train.ema_decay or None
        if train.objective == "contrastive":
            one = steps.contrastive_step(self.encoder(tokenizer), optimizer, ema_decay=decay, hold_text=train.hold_text)
        else:
            tokens, mask = tokenizer.encode([""])
            one = steps.diffusion_step(
                self.unet(),
                text,
                optimizer,
                schedule=self.schedule(),
                prediction_type=self.diffusion.prediction_type,
                weighting=self.diffusion.weighting,
                density=self.diffusion.density,
                empty=steps.Captioning(tokens[0], mask[0], self.diffusion.caption_dropout),
                ema_decay=decay,
                seed=train.seed,
            )

        def averaged(state: TrainState, batch: dict) -> tuple[TrainState, metrics.Averages]:
            state, report = one(state, batch)
            return state, metrics.averages(report)

        return jax.jit(averaged, donate_argnums=0)

    def sampler(self, tokenizer: Tokenizer, text_params, unet_params) -> Sampler:
        """A sampler of given weights."""
        return Sampler(
            tokenizer=tokenizer,
            text=self.text(tokenizer.vocab_size),
            unet=self.unet(),
            text_params=text_params,
            unet_params=unet_params,
            schedule=self.schedule(),
            prediction_type=self.diffusion.prediction_type,
            shape=(self.image_size, self.image_size, 3),
            settings=self.sample,
        )


def experiment(config: ConfigDict | Mapping) -> Experiment:
    """A checked experiment from a config file's ``get_config()`` or from a run's config.json."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else config
    return Experiment(json.loads(json.dumps(plain)))


def saved_experiment(workdir: epath.PathLike) -> Experiment:
    """The experiment of a run."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise checkpoint.NoCheckpoint(
            f"{workdir} is not a run: it has no config.json; train one, or name another with --workdir"
        )
    return experiment(json.loads(path.read_text()))


def with_text_of_run(setup: Experiment, workdir: epath.PathLike) -> Experiment:
    """A text-to-image experiment whose text tower and tokenizer are those of a trained run, as its config names it.

    A run that was begun holds them itself; a new one takes them from config.text.run.
    """
    if setup.train.objective == "contrastive":
        return setup
    begun = (epath.Path(workdir) / "config.json").exists()
    if not begun and setup.text_run is None:
        raise ConfigError("config.text.run is missing; name the run of the dual encoder whose text tower is to be read")
    kept = saved_experiment(workdir if begun else setup.text_run).config
    if not begun and kept["train"]["objective"] != "contrastive":
        raise ConfigError(f"config.text.run is {setup.text_run}, which draws; name the run of a dual encoder instead")
    text = {**kept["text"], **setup.config.get("text", {})}
    return Experiment({**setup.config, "text": text, "tokenizer": kept["tokenizer"]})


def saved_tokenizer(workdir: epath.PathLike) -> Tokenizer:
    """The tokenizer of a run."""
    return tokenizers.load(
        epath.Path(workdir) / "tokenizer.json", context_length=saved_experiment(workdir).context_length
    )


def checkpoints(workdir: epath.PathLike, *, keep: int | None = None) -> checkpoint.Checkpoints:
    """The checkpoints of a run, to read, or where ``keep`` is said to write; close them after use."""
    return checkpoint.Checkpoints(epath.Path(workdir) / "checkpoints", keep=keep)


def restore_weights(workdir: epath.PathLike, sharding: jax.sharding.Sharding) -> tuple[Any, Any]:
    """What a run learnt, averaged where it keeps an average, and what it read frozen. Raises ``NoCheckpoint``."""
    saved_experiment(workdir)
    with checkpoints(workdir) as store:
        found = store.restore_parts(sharding, "ema", "frozen")
        learnt = found["ema"] or store.restore_parts(sharding, "params")["params"]
    return learnt, found["frozen"]


def load(workdir: epath.PathLike) -> Sampler | Encoder:
    """A run, ready to use: a ``Sampler`` of a text-to-image run, an ``Encoder`` of a contrastive one."""
    setup, tokenizer = saved_experiment(workdir), saved_tokenizer(workdir)
    learnt, frozen = restore_weights(workdir, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    if setup.train.objective == "contrastive":
        return Encoder(tokenizer, setup.encoder(tokenizer), learnt)
    return setup.sampler(tokenizer, frozen, learnt)


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of a run's newest checkpoint."""
    with checkpoints(workdir) as store:
        return store.latest
