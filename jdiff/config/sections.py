"""The sections of a config, parsed once into frozen dataclasses and checked before anything starts.

Every section names the arguments of what it configures, so an unknown key is an error that names the nearest right one,
and no key goes unread.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jdiff import storage
from jdiff.config.construct import ConfigError, check_keys, choose, choose_with_parameters, construct, nearest
from jdiff.config.keys import plain
from jdiff.contrastive.loss import FORMS, LOSSES
from jdiff.data.records import Source
from jdiff.data.sources import SOURCES
from jdiff.diffusion import schedules
from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR, PREDICTION_TYPES
from jdiff.diffusion.schedules import SCHEDULES, Schedule
from jdiff.diffusion.settings import Settings
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.diffusion.spacing import SPACINGS
from jdiff.diffusion.timestep_sampling import TIMESTEP_SAMPLINGS
from jdiff.diffusion.weighting import WEIGHTINGS
from jdiff.sharding import mesh as meshes
from jdiff.training.ema import MAX_WIDTH, EmaConfig
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.optimizers import OPTIMIZERS

INIT_KEYS = ("init_from", "frozen")  # of a network's section: where its parameters come from, whether they are trained


@dataclass(frozen=True)
class TrainSection:
    """config.train: how long, how, and how often what is written."""

    task: str  # what is trained
    batch_size: int  # of all devices together
    steps: int  # training steps
    seed: int = 0  # of parameters, batches, noise and all other random numbers
    group: int = 1  # records that follow each other on disk and stay together in a batch
    freeze: tuple[str, ...] = ()  # patterns of parameter paths that are not trained, such as "denoiser/down_.*"
    freeze_text_steps: int = 0  # steps before a dual encoder's text tower begins to learn
    microbatches: int = 1  # gradient accumulation: parts of a batch that are run one after another, to save memory
    steps_per_dispatch: int = 1  # steps that the devices take before they return to the host; divides all *_every
    deterministic_reduction: int = 0  # microbatches whose gradients are summed in one order on any layout; 0: off
    max_skipped: int = 8  # updates skipped in a row, of spikes, before training rolls back; 0: none is ever skipped
    log_every: int = 50  # steps between two lines of metrics.jsonl
    save_every: int = 500  # steps between two checkpoints
    sample_every: int = 500  # steps between two previews
    evaluate_every: int = 0  # steps between two evaluations on the test split (validation); 0: never
    evaluate_num: int = 0  # examples of an evaluation; 0: as many as `jdiff evaluate` takes
    keep: int = 2  # newest checkpoints that stay
    keep_every: int = 0  # checkpoints of steps divisible by this stay, too; 0 for none


@dataclass(frozen=True)
class WatchdogSection:
    """config.watchdog: seconds after which a phase of training counts as hung, and the process exits; 0 for never."""

    start: float = 1800  # until the first step is compiled: reading records and a checkpoint
    compile: float = 3600
    data: float = 900  # waiting for a batch
    step: float = 900
    evaluate: float = 7200  # a preview, or an evaluation
    save: float = 900  # a save that training waits for


@dataclass(frozen=True)
class EmaSection:
    """config.ema: exponential moving averages of the parameters; the first is the one that is used by default."""

    decays: Sequence[float] = ()  # of EMAs with a constant decay
    widths: Sequence[float] = ()  # of EMAs with a power-function profile, see training.ema
    snapshot_every: int = 0  # steps after which the latter are kept for good, for post-hoc EMA; 0: never

    def config(self) -> EmaConfig:
        return EmaConfig(tuple(self.decays), tuple(self.widths))


@dataclass(frozen=True)
class ContrastiveSection:
    """config.contrastive: the loss of a dual encoder."""

    loss: str = "softmax"  # CLIP's loss, or SigLIP's, which needs encoder.use_logit_bias
    form: str = "dense"  # where its logits are computed
    chunk: int = 0  # of the ring: images that are compared at a time; 0: all of a device


@dataclass(frozen=True)
class DiffusionSection:
    """config.diffusion. schedule, weighting and timestep_sampling: a name, or {"name": ..., **parameters}."""

    schedule: str | dict = "cosine"  # noise schedule
    timesteps: int = 1000
    continuous: bool = False  # train at real-valued timesteps instead of whole ones
    shift: float = 1.0  # side of the images over the side that the schedule was made for [vdmpp eq. 6]
    zero_terminal_snr: bool = False  # rescale the schedule to end at pure noise [zsnr]
    learned_variance: bool = False  # whether the network also predicts the variance of DDPM's steps
    prediction_type: str = "v"  # what the network predicts
    weighting: str | dict = "simple"  # of the loss, by noise level
    timestep_sampling: str | dict = "uniform"  # distribution of training timesteps
    caption_dropout: float = 0.1  # share of captions replaced by the empty one, for classifier-free guidance

    def make_schedule(self) -> Schedule:
        """The noise schedule. Raises ``ConfigError``."""
        choice: dict[str, Any] = {"name": self.schedule} if isinstance(self.schedule, str) else dict(self.schedule)
        kinds = choose("diffusion.schedule", choice.get("name"), SCHEDULES)
        parameters = {name: value for name, value in choice.items() if name != "name"}
        if kinds[self.continuous] is not None:
            check_keys("diffusion.schedule", inspect.signature(kinds[self.continuous]).parameters, parameters)
        try:
            return schedules.make(
                choice["name"],
                self.timesteps,
                continuous=self.continuous,
                shift=self.shift,
                zero_terminal_snr=self.zero_terminal_snr,
                **parameters,
            )
        except ValueError as error:
            raise ConfigError(f"config.diffusion.schedule cannot be used: {error}") from error

    def weighting_function(self) -> Callable:
        return choose_with_parameters("diffusion.weighting", self.weighting, WEIGHTINGS)

    def timestep_sampling_function(self) -> Callable:
        return choose_with_parameters("diffusion.timestep_sampling", self.timestep_sampling, TIMESTEP_SAMPLINGS)


@dataclass(frozen=True)
class MeshSection:
    """config.mesh: devices along each axis, see sharding.mesh.make; one axis may be -1."""

    data: int = -1  # data parallel: rows of the batch are sharded
    fsdp: int = 1  # FSDP: rows, parameters, optimizer moments and EMAs are sharded
    tensor: int = 1  # tensor parallel: pairs of layers are sharded
    slices: int = 1  # groups of devices with a slow network between them; only data crosses them

    def make(self) -> jax.sharding.Mesh:
        try:
            return meshes.make_mesh(**asdict(self))
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(frozen=True)
class DataSection:
    """config.data: ``source`` names an entry of data.sources.SOURCES, whose own keys are the others."""

    source: str = ""  # where captioned images come from; "" for pretrained weights without a data source
    max_broken: float = 0.01  # share of rows, of records damaged since, above which training stops
    directory: str = "data"  # of the records
    image_size: int = 32  # side of the images in pixels
    max_rejected: float = 0.05  # largest share of items that `jdiff prepare` may reject
    source_keys: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, keys: Mapping[str, Any]) -> DataSection:
        names = [f.name for f in fields(cls) if f.name != "source_keys"]
        common = {name: keys[name] for name in names if name in keys}
        others = {name: value for name, value in keys.items() if name not in names}
        section = construct("data", cls, common, source_keys=others)
        if section.source:
            common_keys = {name: inspect.signature(cls).parameters[name] for name in names}
            check_keys("data", {**common_keys, **inspect.signature(section._source_type()).parameters}, others)
        elif others:
            crop = {"crop": inspect.Parameter("crop", inspect.Parameter.KEYWORD_ONLY, annotation="str")}
            check_keys("data", crop, others)  # a pretrained model's preprocessing, without data
        return section

    def _source_type(self) -> type:
        return choose("data.source", self.source.partition(":")[0], SOURCES)

    def make_source(self) -> Source:
        """The source that this section names. Raises ``ConfigError``."""
        if not self.source:
            raise ConfigError(f"config.data.source is missing; known are {', '.join(SOURCES)}")
        if not storage.on_disk(self.directory):  # as ArrayRecord's writers and readers know files alone
            raise ConfigError(
                f"config.data.directory is {self.directory}, but records are read from disk; name a folder there"
            )
        name = self.source.partition(":")[2]
        keys = dict(self.source_keys) | ({"dataset": name} if name else {})
        return construct("data", self._source_type(), keys, image_size=self.image_size)


@dataclass(frozen=True)
class NetworkSection:
    """A network's section: where its parameters come from, whether they are trained, and its module's arguments."""

    init_from: str | None
    frozen: bool | None  # None: the task's default
    keys: Mapping[str, Any]

    @classmethod
    def parse(cls, name: str, section: Mapping[str, Any]) -> NetworkSection:
        frozen = section.get("frozen")
        if frozen is not None and not isinstance(frozen, bool):
            raise ConfigError(f"config.{name}.frozen is {frozen!r}; it must be true or false")
        keys = {key: value for key, value in section.items() if key not in INIT_KEYS}
        return cls(section.get("init_from"), frozen, keys)


@dataclass(frozen=True)
class Config:
    """A config, parsed and checked section by section. raw: as JSON keeps it.

    networks: the sections of networks, by name.   Others that the task does not use have their defaults.
    """

    raw: dict[str, Any]
    train: TrainSection
    watchdog: WatchdogSection
    ema: EmaSection
    optimizer: Mapping[str, Any]
    mesh: MeshSection
    data: DataSection
    networks: Mapping[str, NetworkSection]
    tokenizer: Mapping[str, Any]
    encoder: Mapping[str, Any]
    contrastive: ContrastiveSection
    diffusion: DiffusionSection
    sample: Settings

    def section(self, name: str) -> dict[str, Any]:
        """A section as it stands in the config."""
        return dict(self.raw.get(name, {}))

    @property
    def context_length(self) -> int:
        return self.tokenizer.get("context_length", 32)

    def make_optimizer(self, values: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
        """The optimizer. values: of its hyperparameters, in place of the config's, such as traced ones."""
        keys = {name: value for name, value in self.optimizer.items() if name != "name"}
        function = OPTIMIZERS[self.optimizer.get("name", "adamw")]
        if values is not None:
            return function(**keys | dict(values), steps=self.train.steps)
        return construct("optimizer", function, keys, steps=self.train.steps)

    @property
    def hparams(self) -> TracedHyperparameters:
        """The scalars that are passed to the compiled step as arrays."""
        function = OPTIMIZERS[self.optimizer.get("name", "adamw")]
        defaults = {k: p.default for k, p in inspect.signature(function).parameters.items() if p.annotation == "float"}
        return TracedHyperparameters(
            seed=np.uint32(self.train.seed % 2**32),  # JAX takes no more of a larger one
            optimizer={name: np.float32(self.optimizer.get(name, value)) for name, value in defaults.items()},
            ema_decays=tuple(map(np.float32, self.ema.decays)),
            caption_dropout=np.float32(self.diffusion.caption_dropout),
        )


def parse(config: ConfigDict | Mapping, *, sections: Sequence[str], networks: Sequence[str], task: str) -> Config:
    """Parse and check the sections that every task has. Raises ``ConfigError``.

    sections: the names of those that the task uses, its networks among them.
    """
    raw = plain(config)
    for name in raw:
        if name not in sections:
            raise ConfigError(f"config.{name} is not a section of task '{task}'; {nearest(name, sections)}")
    result = Config(
        raw=raw,
        train=construct("train", TrainSection, raw.get("train", {})),
        watchdog=construct("watchdog", WatchdogSection, raw.get("watchdog", {})),
        ema=construct("ema", EmaSection, raw.get("ema", {})),
        optimizer=raw.get("optimizer", {}),
        mesh=construct("mesh", MeshSection, raw.get("mesh", {})),
        data=DataSection.parse(raw.get("data", {})) if "tokenizer" in sections else DataSection(),
        networks={name: NetworkSection.parse(name, raw[name]) for name in networks if name in raw},
        tokenizer=raw.get("tokenizer", {}),
        encoder=raw.get("encoder", {}),
        contrastive=construct("contrastive", ContrastiveSection, raw.get("contrastive", {})),
        diffusion=construct("diffusion", DiffusionSection, raw.get("diffusion", {})),
        sample=construct("sample", Settings, raw.get("sample", {})),
    )
    _check_optimizer(result)
    _check_ema(result.ema)
    return result


def check_positive(section: str, values: Any, names: Iterable[str]) -> None:
    """Raise ``ConfigError`` where one of these keys is below 1."""
    for name in names:
        if getattr(values, name) < 1:
            raise ConfigError(f"config.{section}.{name} is {getattr(values, name)}; it must be 1 or more")


def _check_optimizer(config: Config) -> None:
    choose("optimizer.name", config.optimizer.get("name", "adamw"), OPTIMIZERS)
    fraction = config.optimizer.get("final_lr_fraction", 0.0)
    config.make_optimizer()
    for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
        if not config.optimizer.get(name, 0) >= 0:
            raise ConfigError(f"config.optimizer.{name} is {config.optimizer[name]}; it must be 0 or more")
    if not 0 <= fraction <= 1:
        raise ConfigError(f"config.optimizer.final_lr_fraction is {fraction}; it must be from 0 to 1")


def _check_ema(ema: EmaSection) -> None:
    if not all(0 < decay < 1 for decay in ema.decays):
        raise ConfigError(f"config.ema.decays is {ema.decays}; each must be between 0 and 1")
    if not all(0 < width < MAX_WIDTH for width in ema.widths):
        raise ConfigError(f"config.ema.widths is {ema.widths}; each must be between 0 and {MAX_WIDTH:.4f}")
    names = ema.config().names
    if len(set(names)) < len(names):
        raise ConfigError(f"config.ema names one EMA twice: {', '.join(names)}")
    if ema.snapshot_every < 0 or (ema.snapshot_every and not ema.widths):
        raise ConfigError(
            f"config.ema.snapshot_every is {ema.snapshot_every}; it must be 0, or more where config.ema.widths has "
            "EMAs to keep"
        )


def check_diffusion(config: Config) -> None:
    """The diffusion and sample sections, with the sentence for each key. Raises ``ConfigError``."""
    d = config.diffusion
    if d.timesteps < 2:
        raise ConfigError(f"config.diffusion.timesteps is {d.timesteps}; it must be 2 or more")
    if d.shift <= 0:
        raise ConfigError(f"config.diffusion.shift is {d.shift}; it must be above 0")
    schedule = d.make_schedule()
    choose("diffusion.prediction_type", d.prediction_type, PREDICTION_TYPES)
    if d.zero_terminal_snr and d.prediction_type in BLIND_AT_ZERO_SNR:
        raise ConfigError(
            f"config.diffusion.prediction_type is '{d.prediction_type}', which does not determine the image at pure "
            "noise, where config.diffusion.zero_terminal_snr ends; use 'v', 'x0' or 'flow'"
        )
    if d.learned_variance and d.continuous:
        raise ConfigError(
            "config.diffusion.learned_variance is set, but its bound is over whole timesteps; "
            "config.diffusion.continuous has none"
        )
    d.weighting_function()
    d.timestep_sampling_function()
    choose("sample.solver", config.sample.solver, SOLVERS)
    choose("sample.spacing", config.sample.spacing, SPACINGS)
    choose("sample.variance", config.sample.variance, VARIANCES)
    try:
        config.sample.tableau(schedule, d.prediction_type, learned_variance=d.learned_variance)
    except ValueError as error:
        raise ConfigError(f"config.sample cannot be used: {error}") from error


def check_contrastive(config: Config) -> None:
    """The contrastive section, with the sentence for each key. Raises ``ConfigError``."""
    c = config.contrastive
    choose("contrastive.loss", c.loss, LOSSES)
    choose("contrastive.form", c.form, FORMS)
    if c.loss == "sigmoid" and not config.encoder.get("use_logit_bias"):
        raise ConfigError("config.contrastive.loss is 'sigmoid', which needs config.encoder.use_logit_bias = True")
    if c.chunk and c.form != "ring":
        raise ConfigError(
            f"config.contrastive.chunk is {c.chunk}, but config.contrastive.form is '{c.form}'; only 'ring' has chunks"
        )
    if c.chunk < 0:
        raise ConfigError(f"config.contrastive.chunk is {c.chunk}; it must be 0, for all, or more")
