"""What can be trained: a task is made from a checked config, holds no arrays, and owns all that depends on it.

``ImageTextTask`` has what the two tasks of captioned images share: data, tokenizer, text tower, parameters split into
trained and frozen ones, and the compiled training step. Each task is a page of its own beside this one.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jdiff.config.construct import ConfigError, check_keys, choose, construct
from jdiff.config.sections import Config, check_positive
from jdiff.data import tokenizer as tokenizers
from jdiff.data.records import Records, prepared_name, records_folder
from jdiff.data.tokenizer import Tokenizer
from jdiff.evaluation.evaluators import Evaluator, evaluator_of
from jdiff.models.attention import dot_product
from jdiff.models.clip import DualEncoder, TextTower
from jdiff.models.layers import ACTIVATIONS, REMAT
from jdiff.sharding import attention, rules
from jdiff.sharding import mesh as meshes
from jdiff.training import masks
from jdiff.training.ema import EmaConfig
from jdiff.training.grad_accumulation import DeterministicReduction, GradientAccumulation, Reduction, replicated_step
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.spikes import initial_health
from jdiff.training.state import Params, TrainState
from jdiff.training.update import Objective, Step, make_step

DTYPES = ("float32", "bfloat16")  # of activations; parameters, norms, softmax and losses are float32: mixed precision
DATA_SECTIONS = ("data", "tokenizer", "optimizer", "ema", "mesh", "train", "watchdog")
Network = TypeVar("Network", bound=nn.Module)
TracedKeys = dict[str, tuple[str, ...]]  # of each section


class Picture(NamedTuple):
    """A picture to be written as ``name``.png. request: what alone reproduces it, for the JSON beside it."""

    name: str
    image: np.ndarray
    request: dict[str, Any]


class Evaluation(NamedTuple):
    """metrics: as results.json keeps them.   scalars: those of a log line.   pictures: to be written beside them."""

    metrics: dict[str, Any]
    scalars: dict[str, float]
    pictures: list[Picture]


class Task(Protocol):
    """What training, evaluation and sweeps ask of every task."""

    config: Config
    name: str
    has_convolutions: bool  # whose vmapped gradients are slow on a CPU
    has_run_dir: bool  # whether training writes a run directory
    draws: bool  # whether a measurement draws samples, from a seed

    def traced_hparams(self) -> tuple[TracedHyperparameters, TracedKeys]:
        """The hyperparameters that a compiled step takes as arrays, and the config keys that they stand for."""
        ...

    def first_state(self, pretrained: Mapping[str, Any], seed: int | Array | None = None) -> TrainState: ...
    def measure(self, model: Any, *, split: str, num: int, seed: int) -> tuple[dict[str, float], np.ndarray | None]: ...


def ema_of(config: Config, hparams: TracedHyperparameters) -> EmaConfig:
    """The EMAs of a config, with the decays that are passed to the compiled step."""
    fixed = config.ema.config()
    return EmaConfig(hparams.ema_decays, fixed.widths, fixed.names[: len(fixed.decays)])


def traced_keys(config: Config) -> TracedKeys:
    """The config keys that ``config.hparams`` stands for."""
    return {"train": ("seed",), "optimizer": tuple(config.hparams.optimizer), "ema": ("decays",)}


def initial_state(config: Config, trained: Params, frozen: Params, num_objectives: int = 1) -> TrainState:
    """The state before the first step."""
    ema, optimizer = config.ema.config(), config.make_optimizer()
    default = ema.names[0] if ema.names else None
    opt_state = tuple(optimizer.init(trained) for _ in range(num_objectives))
    return TrainState(jnp.int32(0), trained, opt_state, ema.init(trained), frozen, default)


def with_attention(network: Network, attend: Callable) -> Network:
    """A network with another attention kernel, in both towers of a dual encoder."""
    if isinstance(network, DualEncoder):
        text, vision = (with_attention(tower, attend) for tower in (network.text, network.vision))
        return network.clone(text=text, vision=vision)
    return network.clone(attend=attend)


@dataclass(frozen=True)
class ImageTextTask(ABC):
    """What the tasks of captioned images share. tokenizer: None until the data or a checkpoint is opened."""

    config: Config
    tokenizer: Tokenizer = None  # pyright: ignore[reportAssignmentType] whoever reads it has opened one of the two
    records_location: tuple[str, str] | None = None  # name and data directory, of a run

    name: ClassVar[str]
    network_names: ClassVar[tuple[str, ...]]  # whose sections may name a model to initialize from
    frozen_by_default: ClassVar[frozenset[str]] = frozenset()
    evaluate_num: ClassVar[int]  # examples of an evaluation by default
    preview_num: ClassVar[int]  # test captions in the pictures made during training
    has_run_dir: ClassVar[bool] = True
    num_objectives: ClassVar[int] = 1  # of ``objectives``; each has an optimizer state

    def __post_init__(self) -> None:
        self._check_train()
        self._check_tokenizer()
        self._check_networks()

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        return replace(self, tokenizer=tokenizer)

    # Data

    @property
    def image_size(self) -> int:
        return self.config.data.image_size

    def with_records(self, name: str, data_dir: str) -> Self:
        """The task on records of this name, where config.data.directory has them, or else ``data_dir``."""
        return replace(self, records_location=(name, data_dir))

    def records(self) -> Records:
        """The records that the config's data section names, or those of ``with_records``.

        Raises ``DatasetNotPreparedError``.
        """
        directory = self.config.data.directory
        if self.records_location is None:
            return Records(directory, prepared_name(self.config.data.make_source(), directory))
        name, other_directory = self.records_location
        return Records(directory if records_folder(directory, name).exists() else other_directory, name)

    def split(self, name: str) -> Sequence[dict]:
        """The examples of a split."""
        return self.records().split(name)

    @property
    def evaluator(self) -> Evaluator:
        """What the data's source is evaluated by."""
        return evaluator_of(self.config.data.source)

    def train_tokenizer(self, captions: Iterator[str]) -> Tokenizer:
        """A tokenizer learnt from captions, by the config's tokenizer section."""
        return construct("tokenizer", partial(tokenizers.train_tokenizer, captions), self.config.tokenizer)

    # Networks and parameters

    @property
    def init_from(self) -> dict[str, str]:
        """The model that each network is initialized from: a run, or pretrained weights, by network."""
        sections = self.config.networks.items()
        return {name: section.init_from for name, section in sections if section.init_from is not None}

    @property
    def frozen_networks(self) -> set[str]:
        """Networks that are read and not trained at all."""
        frozen = {name: section.frozen for name, section in self.config.networks.items()}
        return {name for name, value in frozen.items() if (name in self.frozen_by_default if value is None else value)}

    def is_frozen(self, path: str) -> bool:
        """Whether the parameter at a path is not trained."""
        return path.partition("/")[0] in self.frozen_networks or masks.matches(self.config.train.freeze, path)

    def network_keys(self, name: str) -> dict[str, Any]:
        """The arguments of a network's module."""
        return dict(self.config.networks[name].keys) if name in self.config.networks else {}

    def text(self) -> TextTower:
        """The text tower; one that came with weights may have more tokens than the tokenizer."""
        keys, vocab_size = self.network_keys("text"), self.tokenizer.vocab_size if self.tokenizer else 0
        tower_size = keys.pop("vocab_size", vocab_size)
        if tower_size < vocab_size:
            raise ConfigError(f"config.text.vocab_size is {tower_size}, but the tokenizer has {vocab_size} tokens")
        length = self.config.context_length
        return construct("text", TextTower, keys, vocab_size=tower_size, context_length=length)

    def networks(self, mesh: Mesh | None = None) -> dict[str, Any]:
        """The networks by name, with the attention kernel of a mesh, or of this process's first device."""
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        attend = attention.kernel(device, dot_product, mesh)
        return {name: with_attention(network, attend) for name, network in self.make_networks().items()}

    @abstractmethod
    def make_networks(self) -> dict[str, nn.Module]:
        """The networks by name, before they get an attention kernel."""

    @abstractmethod
    def init(self, seed: int | Array) -> Params:
        """Random parameters of all networks."""

    @contextmanager
    def _making_networks(self) -> Iterator[None]:
        """Name the sections that are wrong, as a ``ConfigError``, where the config's numbers make no valid network."""
        try:
            yield
        except (TypeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
            if isinstance(error, ConfigError):
                raise
            names = [name for name in self.config.networks if name not in self.init_from]
            sections = " and ".join(f"config.{name}" for name in names)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            size = f"{self.image_size}x{self.image_size}"
            raise ConfigError(f"{sections} is not a valid network for {size} images: {reason}") from error

    def param_shapes(self) -> Params:
        """The shapes of ``init``. Raises ``ConfigError`` where the config's numbers make no valid network."""
        with self._making_networks():
            return jax.eval_shape(partial(self.init, self.config.train.seed))

    def first_state(self, pretrained: Mapping[str, Any], seed: int | Array | None = None) -> TrainState:
        """The state before the first step, not compiled and not placed.

        pretrained: parameters that replace random ones, by network.   seed: None for the config's.
        Raises ``ConfigError`` where config.train.freeze matches no parameter, or all.
        """
        params = {**self.init(self.config.train.seed if seed is None else seed), **pretrained}
        trained, frozen = masks.split(params, self.is_frozen)
        for pattern in self.config.train.freeze:
            if not masks.split(params, lambda path, pattern=pattern: masks.matches([pattern], path))[1]:
                raise ConfigError(f"config.train.freeze has {pattern!r}, which matches no parameter path")
        if not trained:
            raise ConfigError("all parameters are frozen by config.train.freeze, so nothing is trained")
        state = initial_state(self.config, trained, frozen, self.num_objectives)
        health = initial_health() if self.config.train.max_skipped else None
        return replace(state, health=health)

    def initial_state(self, mesh: Mesh, pretrained: Mapping[str, Any]) -> TrainState:
        """The state before the first step, on a mesh. pretrained: see ``first_state``; its buffers are donated.

        Raises ``ConfigError`` where the config's numbers make no valid network.
        """
        first, arguments = self.first_state, (dict(pretrained), self.config.hparams.seed)
        with self._making_networks():
            shapes = jax.eval_shape(first, *arguments)
        placement = rules.placement(mesh, shapes)
        # Loaded parameters are replicated, and can be donated only to what is replicated as well.
        donated = 0 if mesh.size == mesh.shape["data"] else ()
        # A shard of a parameter may be drawn with other roundings than the whole of it.
        drawn_on = meshes.replicated(mesh) if self.config.train.deterministic_reduction else placement
        state = jax.jit(first, out_shardings=drawn_on, donate_argnums=donated)(*arguments)
        return jax.device_put(state, placement)

    def state_like(self, mesh: Mesh) -> TrainState:
        """The shapes and shardings of a state, for a checkpoint to be restored into."""
        shapes = jax.eval_shape(self.first_state, self.param_shapes())
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            rules.placement(mesh, shapes),
        )

    # The training step

    @abstractmethod
    def objectives(self, mesh: Mesh | None, statistics: Any = None) -> tuple[Objective, ...]:
        """What is minimized, in order. statistics: of the data, as ``statistics`` gives them."""

    def traced_hparams(self) -> tuple[TracedHyperparameters, TracedKeys]:
        return self.config.hparams, traced_keys(self.config)

    def statistics(self, examples: Sequence[dict], state: TrainState, mesh: Mesh) -> Any:
        """What the objective's report needs to know of the data; a constant of the compiled step."""
        return None

    def reduction(self, mesh: Mesh) -> Reduction:
        """How a batch is divided into microbatches. Raises ``ConfigError`` where it cannot be on this mesh."""
        train, shards = self.config.train, meshes.num_batch_shards(mesh)
        count = train.deterministic_reduction or train.microbatches
        if not train.deterministic_reduction:
            if train.batch_size % (shards * count):
                raise ConfigError(
                    f"config.train.microbatches is {count}, but {train.batch_size} images on {shards} devices cannot "
                    "be divided so"
                )
            return GradientAccumulation(count, shards)
        if shards == 1:
            raise ConfigError(
                "config.train.deterministic_reduction needs two or more devices along config.mesh.data or fsdp"
            )
        if count < 0 or count & (count - 1) or count % (2 * shards) or train.batch_size % count:
            raise ConfigError(
                f"config.train.deterministic_reduction is {count}; it must be a power of two, at least two for each of "
                f"{shards} devices, and divide config.train.batch_size, {train.batch_size}"
            )
        if train.microbatches > 1 or train.steps_per_dispatch > 1:
            raise ConfigError(
                "config.train.deterministic_reduction cannot be combined with config.train.microbatches or "
                "config.train.steps_per_dispatch"
            )
        if self.config.contrastive.form != "dense":
            raise ConfigError("config.train.deterministic_reduction needs config.contrastive.form = 'dense'")
        return DeterministicReduction(count, shards)

    def check_mesh(self, mesh: Mesh) -> None:
        """Raise ``ConfigError`` where a batch cannot be divided, or the objective not be computed, on this mesh."""
        self.reduction(mesh)

    def step(self, mesh: Mesh, statistics: Any = None) -> Step:
        """A training step, not compiled: (hparams, state, batch) -> (state, metrics)."""
        # With a deterministic reduction each device runs alone, inside shard_map.
        attention_mesh = None if self.config.train.deterministic_reduction else mesh
        objectives = self.objectives(attention_mesh, statistics)
        sharded = mesh.size > 1 and not self.config.train.deterministic_reduction
        return make_step(
            objectives,
            self.reduction(mesh),
            partial(ema_of, self.config),
            partial(_constrain, mesh) if sharded else lambda state: state,
        )

    def compiled_step(self, mesh: Mesh, statistics: Any = None) -> Callable:
        """The compiled training step: (state, batch) -> (state, metrics). The input state is donated, except with a
        deterministic reduction.

        With ``steps_per_dispatch`` it takes the batches of several steps, (steps, b, ...). The config's hyperparameters
        are the first argument of the program: configs that differ only in them share what is compiled.
        """
        step, train, hparams = self.step(mesh, statistics), self.config.train, self.config.hparams
        if train.deterministic_reduction:
            return partial(replicated_step(step, mesh), hparams)

        def run_steps(hparams: TracedHyperparameters, state: TrainState, batches: dict):
            state, rows = jax.lax.scan(partial(step, hparams), state, batches)
            return state, jax.tree.map(lambda row: row.sum(0), rows)

        program = step if train.steps_per_dispatch == 1 else run_steps
        return partial(jax.jit(program, donate_argnums=1), hparams)

    # Checks

    def _check_train(self) -> None:
        train = self.config.train
        intervals = ("steps", "log_every", "save_every", "sample_every")
        counts = ("batch_size", "keep", "group", "microbatches", "steps_per_dispatch")
        check_positive("train", train, (*intervals, *counts))
        if train.max_skipped < 0:
            raise ConfigError(f"config.train.max_skipped is {train.max_skipped}; it must be 0 or more")
        if not isinstance(train.freeze, tuple) or not all(isinstance(pattern, str) for pattern in train.freeze):
            raise ConfigError(
                f"config.train.freeze is {train.freeze!r}; it must be a tuple such as ('denoiser/down_.*',)"
            )
        for pattern in train.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"config.train.freeze has {pattern!r}, which is not a regular expression: {error}"
                ) from error
        if train.evaluate_every < 0:
            raise ConfigError(f"config.train.evaluate_every is {train.evaluate_every}; it must be 0 or more")
        multiples = {f"train.{key}": getattr(train, key) for key in (*intervals, "evaluate_every")}
        for key, value in (multiples | {"ema.snapshot_every": self.config.ema.snapshot_every}).items():
            if value % train.steps_per_dispatch:
                raise ConfigError(
                    f"config.{key} is {value}, not a multiple of config.train.steps_per_dispatch, "
                    f"{train.steps_per_dispatch}"
                )
        if train.batch_size % train.group:
            raise ConfigError(
                f"config.train.batch_size is {train.batch_size}, not a multiple of config.train.group, {train.group}"
            )

    def _check_tokenizer(self) -> None:
        parameters = {
            **inspect.signature(tokenizers.train_tokenizer).parameters,
            **inspect.signature(tokenizers.load_tokenizer).parameters,
        }
        check_keys("tokenizer", parameters, self.config.tokenizer)

    def _check_networks(self) -> None:
        for name in self.network_names:
            keys = self.network_keys(name)
            choose(f"{name}.dtype", keys.get("dtype", "float32"), DTYPES)
            choose(f"{name}.remat", keys.get("remat", "none"), REMAT)
        choose("text.activation", self.network_keys("text").get("activation", "gelu"), ACTIVATIONS)
        self.text()


def _constrain(mesh: Mesh, state: TrainState) -> TrainState:
    """A state that stays sharded as the rules say."""
    return jax.lax.with_sharding_constraint(state, rules.placement(mesh, state))
