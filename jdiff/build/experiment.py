"""A config of text and images to the objects it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from jdiff import rng, storage
from jdiff.build.sections import Config, ContrastiveSettings, Numbers, plain
from jdiff.construct import ConfigError, choose, construct
from jdiff.contrastive.loss import FORMS, KINDS, Loss
from jdiff.data import records
from jdiff.data import tokenizer as tokenizers
from jdiff.data.sources import SOURCES
from jdiff.data.tokenizer import Tokenizer
from jdiff.models.attention import dot_product
from jdiff.models.autoencoder import Autoencoder
from jdiff.models.clip import POOLINGS, VISION_TOWERS, DualEncoder, ResNetTower, TextTower, VisionTower
from jdiff.models.layers import ACTIVATIONS, REMAT
from jdiff.models.unet import UNet
from jdiff.sample import Sampler
from jdiff.sharding import attention, rules
from jdiff.sharding import mesh as meshes
from jdiff.training import metrics, parts, steps
from jdiff.training.loop import Every
from jdiff.training.state import TrainState

# The networks of each objective, whose sections may name a run to begin from, and the other sections.
PARTS = {"contrastive": ("text", "vision"), "text_to_image": ("text", "unet", "autoencoder")}
BOTH = ("data", "tokenizer", "optimizer", "ema", "mesh", "train")
SECTIONS = {
    "contrastive": (*PARTS["contrastive"], "encoder", "contrastive", *BOTH),
    "text_to_image": (*PARTS["text_to_image"], "diffusion", "sample", *BOTH),
}
DTYPES = ("float32", "bfloat16")  # what networks compute in; parameters, norms, softmax and losses are float32
Network = TypeVar("Network", TextTower, VisionTower, ResNetTower, UNet, DualEncoder)
OF_A_START = (
    "init_from",
    "frozen",
)  # keys of a network's section that say where its weights come from and whether they stay


@dataclass(frozen=True)
class Experiment(Config):
    """A config of text and images, checked whole, and the objects it names."""

    def __post_init__(self):
        sections = choose("train.task", self.train.task, SECTIONS)
        self.check_sections(sections)
        of_steps = ("steps", "log_every", "save_every", "sample_every")
        self.check_train((*of_steps, "batch_size", "keep", "group", "microbatches", "steps_per_dispatch"))
        counted = {f"train.{key}": getattr(self.train, key) for key in of_steps}
        for key, value in (counted | {"ema.snapshot_every": self.ema.snapshot_every}).items():
            if value % self.train.steps_per_dispatch:
                raise ConfigError(
                    f"config.{key} is {value}, no multiple of config.train.steps_per_dispatch, "
                    f"{self.train.steps_per_dispatch}"
                )
        if self.train.batch_size % self.train.group:
            raise ConfigError(
                f"config.train.batch_size is {self.train.batch_size}, no multiple of config.train.group, "
                f"{self.train.group}"
            )
        if self.train.freeze_text_steps and self.train.task != "contrastive":
            raise ConfigError(
                "config.train.freeze_text_steps is set, but only contrastive training changes the text tower"
            )
        if not 0 <= self.train.freeze_text_steps < self.train.steps:
            raise ConfigError(
                f"config.train.freeze_text_steps is {self.train.freeze_text_steps}; it must be at least 0 and below "
                f"config.train.steps, {self.train.steps}"
            )
        self._check_starts()
        for part in PARTS[self.train.task]:
            choose(f"{part}.dtype", self.section(part).get("dtype", "float32"), DTYPES)
            choose(f"{part}.remat", self.section(part).get("remat", "none"), REMAT)
        choose("text.activation", self.section("text").get("activation", "gelu"), ACTIVATIONS)
        self.optimizer()
        text = self.text(0)
        if self.train.task == "contrastive":
            if text.clip_skip:
                raise ConfigError(
                    "config.text.clip_skip is set, but only text-to-image training reads the tower's states"
                )
            self._check_contrastive()
            vision = self.section("vision")
            choose("vision.activation", vision.get("activation", "gelu"), ACTIVATIONS)
            choose("vision.pooling", vision.get("pooling", "class"), POOLINGS)
            # What a tower is that begins as somebody's is known when that is opened.
            if "vision" not in self.starts or "patch_size" in vision or "kind" in vision:
                self.encoder(0)
        else:
            if "layers" in self.section("text") and not 0 <= text.clip_skip < text.layers:
                raise ConfigError(
                    f"config.text.clip_skip is {text.clip_skip}; it must be from 0 to {text.layers - 1}, as the text "
                    f"tower has {text.layers} layers"
                )
            self.unet()
            autoencoder = self.autoencoder()
            if autoencoder and self.image_size % autoencoder.factor:
                raise ConfigError(
                    f"config.data.image_size is {self.image_size}, no multiple of {autoencoder.factor}, as the "
                    "autoencoder needs it"
                )
            self.check_diffusion()
            if not 0 <= self.diffusion.caption_dropout <= 1:
                raise ConfigError(
                    f"config.diffusion.caption_dropout is {self.diffusion.caption_dropout}; it must be from 0 to 1"
                )

    def _check_starts(self) -> None:
        for part in PARTS[self.train.task]:
            keys = self.section(part)
            if not isinstance(keys.get("frozen", False), bool):
                raise ConfigError(f"config.{part}.frozen is {keys['frozen']!r}; it must be true or false")
            if part in self.frozen and part not in self.starts and self.train.task == "contrastive":
                raise ConfigError(f"config.{part}.frozen is set, but no config.{part}.init_from")
        if "autoencoder" in self.config and "autoencoder" not in self.frozen:
            raise ConfigError(
                "config.autoencoder.frozen is false, but the autoencoder is not trained here; leave it out"
            )
        if {"text", "unet"} <= self.frozen:
            raise ConfigError("config.text.frozen and config.unet.frozen are true, so nothing is trained")
        if self.train.freeze_text_steps and "text" in self.frozen:
            raise ConfigError("config.train.freeze_text_steps is set, but config.text.frozen holds the tower anyway")

    def _network(self, part: str) -> dict[str, Any]:
        """A network's section without what says where its weights come from."""
        return {key: value for key, value in self.section(part).items() if key not in OF_A_START}

    @property
    def image_size(self) -> int:
        return self.section("data").get("image_size", 32)

    @property
    def context_length(self) -> int:
        return self.section("tokenizer").get("context_length", 32)

    @property
    def starts(self) -> dict[str, str]:
        """Where networks begin, by name: the run, or somebody's weights, that config.NAME.init_from names."""
        parts = PARTS[self.train.task]
        return {part: self.section(part)["init_from"] for part in parts if "init_from" in self.section(part)}

    @property
    def frozen(self) -> set[str]:
        """Networks that are read and not trained; a text tower that a U-Net listens to is one, if not said."""
        read = {"text", "autoencoder"} if self.train.task == "text_to_image" else set()
        parts = [part for part in PARTS[self.train.task] if part in self.config]
        return {part for part in parts if self.section(part).get("frozen", part in read)}

    @property
    def source(self) -> str:
        """Where the data comes from: "shapes", "emoji", "folder", or "tfds:NAME"; "" where none was named."""
        return self.section("data").get("source", "")

    def dataset(self) -> records.CaptionedImages:
        """The builder of the records that the config's data section names."""
        keys = self.section("data")
        kind, _, name = self.source.partition(":")
        if not kind:
            raise ConfigError(f"config.data.source is missing; known are {', '.join(SOURCES)}")
        own = {key: keys.pop(key) for key in ("max_rejected",) if key in keys}
        directory = keys.pop("directory", "data")
        if not storage.on_disk(directory):  # as ArrayRecord's writers and readers know files alone
            raise ConfigError(
                f"config.data.directory is {directory}, but records are read from disk; name a folder there"
            )
        keys.pop("source", None)
        keys.setdefault("image_size", self.image_size)
        more = {"dataset": name} if kind == "tfds" else {}
        source = construct("data", choose("data.source", kind, SOURCES), keys, **more)
        return records.CaptionedImages(source=source, data_dir=directory, image_size=self.image_size, **own)

    def train_tokenizer(self, captions) -> Tokenizer:
        """A tokenizer learnt from captions, to the config's tokenizer section."""
        return construct("tokenizer", partial(tokenizers.train, captions), self.section("tokenizer"))

    def text(self, vocab_size: int) -> TextTower:
        """vocab_size: of the tokenizer; a tower that came with weights may have room for more."""
        keys = self._network("text")
        tower_size = keys.pop("vocab_size", vocab_size)
        if tower_size < vocab_size:
            raise ConfigError(f"config.text.vocab_size is {tower_size}, but the tokenizer has {vocab_size} tokens")
        return construct("text", TextTower, keys, vocab_size=tower_size, context_length=self.context_length)

    def vision(self) -> VisionTower | ResNetTower:
        keys = self._network("vision")
        tower = choose("vision.kind", keys.pop("kind", "vit"), VISION_TOWERS)
        return construct("vision", tower, keys, image_size=self.image_size)

    def encoder(self, vocab_size: int) -> DualEncoder:
        return construct(
            "encoder", DualEncoder, self.section("encoder"), text=self.text(vocab_size), vision=self.vision()
        )

    @property
    def contrastive(self) -> ContrastiveSettings:
        return construct("contrastive", ContrastiveSettings, self.section("contrastive"))

    def contrastive_loss(self) -> Loss:
        """The loss of a dual encoder, over the devices that a batch lies on."""
        said, mesh = self.contrastive, self.mesh()
        form = choose("contrastive.form", said.form, FORMS)
        chunk = {"chunk": said.chunk} if said.chunk else {}
        rows = self.train.batch_size // meshes.num_batch_shards(mesh)
        if said.chunk and rows % said.chunk:
            raise ConfigError(f"config.contrastive.chunk is {said.chunk}; it must divide a device's {rows} images")
        return form(choose("contrastive.loss", said.loss, KINDS), mesh, meshes.BATCH, **chunk)

    def _check_contrastive(self) -> None:
        said = self.contrastive
        choose("contrastive.loss", said.loss, KINDS)
        choose("contrastive.form", said.form, FORMS)
        if said.loss == "sigmoid" and not self.section("encoder").get("use_logit_bias"):
            raise ConfigError("config.contrastive.loss is 'sigmoid', which needs config.encoder.use_logit_bias = True")
        if said.chunk and said.form != "ring":
            raise ConfigError(
                f"config.contrastive.chunk is {said.chunk}, but config.contrastive.form is '{said.form}'; only 'ring' "
                "has chunks"
            )
        if said.chunk < 0:
            raise ConfigError(f"config.contrastive.chunk is {said.chunk}; it must be 0, for all, or more")

    def unet(self) -> UNet:
        outputs = self.shape[-1] * (2 if self.diffusion.learned_variance else 1)
        return construct("unet", UNet, self._network("unet"), out_channels=outputs)

    def autoencoder(self) -> Autoencoder | None:
        """What a U-Net's latents are of; None where it works in pixels."""
        if "autoencoder" not in self.config:
            return None
        return construct("autoencoder", Autoencoder, self._network("autoencoder"))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of what the U-Net works in, pixels or latents."""
        autoencoder = self.autoencoder()
        if autoencoder is None:
            return self.image_size, self.image_size, 3
        side = self.image_size // autoencoder.factor
        return side, side, autoencoder.latent_channels

    def on_one_device(self, network: Network) -> Network:
        """A network whose attention is that of this process's first device."""
        return _attending(network, attention.kernel(jax.local_devices()[0], dot_product))

    def on_mesh(self, network: Network) -> Network:
        """A network whose attention is that of the config's mesh."""
        mesh = self.mesh()
        return _attending(network, attention.kernel(mesh.devices.flat[0], dot_product, mesh))

    def mesh(self) -> jax.sharding.Mesh:
        return construct("mesh", meshes.make_mesh, self.section("mesh"))

    def parts(self) -> parts.GradientAccumulation | parts.DeterministicReduction:
        """How a batch is divided for its gradient."""
        train, mesh = self.train, self.mesh()
        shares, count = meshes.num_batch_shards(mesh), train.deterministic_reduction or train.microbatches
        if not train.deterministic_reduction:
            if train.batch_size % (shares * count):
                raise ConfigError(
                    f"config.train.microbatches is {count}, but {train.batch_size} images on {shares} devices cannot "
                    "be divided so"
                )
            return parts.GradientAccumulation(count, shares)
        if shares == 1:
            raise ConfigError(
                "config.train.deterministic_reduction is set, which takes two or more devices of data or fsdp"
            )
        if count < 0 or count & (count - 1) or count % (2 * shares) or train.batch_size % count:
            raise ConfigError(
                f"config.train.deterministic_reduction is {count}; it must be a power of two, two or more for each of "
                f"{shares} devices, and divide config.train.batch_size, {train.batch_size}"
            )
        if train.microbatches > 1 or train.steps_per_dispatch > 1:
            raise ConfigError(
                "config.train.deterministic_reduction is set, which goes with neither config.train.microbatches nor "
                "config.train.steps_per_dispatch"
            )
        if self.config.get("contrastive", {}).get("form", "dense") != "dense":
            raise ConfigError("config.train.deterministic_reduction needs config.contrastive.form = 'dense'")
        return parts.DeterministicReduction(count, shares)

    @property
    def every(self) -> Every:
        train = self.train
        return Every(train.log_every, train.save_every, train.sample_every, self.ema.snapshot_every)

    def initial_weights(self, tokenizer: Tokenizer, seed: int | Array | None = None) -> dict[str, Any]:
        """Parameters of every network, by name. seed: the config's if not said."""
        n, key = self.context_length, rng.stream(self.train.seed if seed is None else seed, "parameters")
        tokens, mask = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool)
        image = jnp.zeros((1, self.image_size, self.image_size, 3))
        if self.train.task == "contrastive":
            return self.encoder(tokenizer.vocab_size).init(key, tokens, mask, image)["params"]
        text, unet, autoencoder = self.text(tokenizer.vocab_size), self.unet(), self.autoencoder()
        context, pooled = jnp.zeros((1, n, text.width)), jnp.zeros((1, text.embed_dim or text.width))
        weights = {
            "text": text.init(key, tokens, mask)["params"],
            "unet": unet.init(key, jnp.zeros((1, *self.shape)), jnp.zeros((1,)), context, mask, pooled)["params"],
        }
        return weights if autoencoder is None else weights | {"autoencoder": autoencoder.init(key, image)["params"]}

    @contextmanager
    def _making_networks(self) -> Iterator[None]:
        """Says which sections are wrong, as a ``ConfigError``, where the config's numbers make no network."""
        try:
            yield
        except (TypeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
            own = (part for part in PARTS[self.train.task] if part in self.config and part not in self.starts)
            sections = " and ".join(f"config.{part}" for part in own)
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{sections} cannot be a network for images of {self.image_size} x {self.image_size}: {why}"
            ) from error

    def shapes(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The shapes of ``initial_weights``. Raises ``ConfigError`` where the config's numbers make no network."""
        with self._making_networks():
            return jax.eval_shape(partial(self.initial_weights, tokenizer))

    def initial_state(self, tokenizer: Tokenizer, mesh: jax.sharding.Mesh, loaded: Mapping[str, Any]) -> TrainState:
        """Where training begins: parameters from the config's seed, but for those ``loaded``, which are given up.

        Raises ``ConfigError`` where the config's numbers make no network.
        """
        begin, given = partial(self.first_state, tokenizer), (dict(loaded), self.numbers.seed)
        with self._making_networks():
            shapes = jax.eval_shape(begin, *given)
        # What is loaded lies everywhere, and can only be given up for what does as well.
        given_up = 0 if mesh.size == mesh.shape["data"] else ()
        place = rules.placement(mesh, shapes)
        # A part of a parameter may be drawn with other roundings than the whole of it.
        first = meshes.replicated(mesh) if self.train.deterministic_reduction else place
        return jax.device_put(jax.jit(begin, out_shardings=first, donate_argnums=given_up)(*given), place)

    def state_like(self, tokenizer: Tokenizer, mesh: jax.sharding.Mesh) -> TrainState:
        """The shapes of a state and where they are placed, for a checkpoint to be read into."""
        shapes = jax.eval_shape(partial(self.first_state, tokenizer), self.shapes(tokenizer))
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            rules.placement(mesh, shapes),
        )

    def first_state(
        self, tokenizer: Tokenizer, loaded: Mapping[str, Any], seed: int | Array | None = None
    ) -> TrainState:
        """Where training begins, not compiled and not placed yet, see ``initial_state``."""
        weights = {**self.initial_weights(tokenizer, seed), **loaded}
        params = {part: tree for part, tree in weights.items() if part not in self.frozen}
        frozen = {part: tree for part, tree in weights.items() if part in self.frozen}
        return self.begin(params, frozen)

    def one_step(self, tokenizer: Tokenizer, spectrum: np.ndarray | None = None) -> Callable:
        """A training step, not compiled yet: (numbers, state, batch) -> (state, averages), see ``step``."""
        train = self.train
        # In a fixed order every device works alone already, and cannot be told to again.
        placed_on = self.on_one_device if train.deterministic_reduction else self.on_mesh
        if train.task == "contrastive":
            encoder = placed_on(self.encoder(tokenizer.vocab_size))
            loss = self.contrastive_loss()
            made = partial(
                steps.contrastive_step, encoder, loss, freeze_text_steps=train.freeze_text_steps, parts=self.parts()
            )
        else:
            made = partial(
                steps.diffusion_step,
                placed_on(self.unet()),
                placed_on(self.text(tokenizer.vocab_size)),
                self.autoencoder(),
                prediction_type=self.diffusion.prediction_type,
                timestep_sampling=self.diffusion.timestep_sampling,
                spectrum=spectrum,
                parts=self.parts(),
            )

        def step(numbers: Numbers, state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
            told = {"ema": self.ema_config(numbers)}
            if train.task == "text_to_image":
                tokens, mask = tokenizer.encode([""])
                empty = steps.Captioning(tokens[0], mask[0], numbers.caption_dropout)
                told |= {"schedule": self.schedule(numbers), "weighting": self.weighting(numbers)}
                told |= {"empty": empty, "seed": numbers.seed}
            return made(self.optimizer(numbers), **told)(state, batch)

        return step

    def step(self, tokenizer: Tokenizer, spectrum: np.ndarray | None = None) -> Callable:
        """The compiled training step: (state, batch) -> (state, averages). The state passed in is given up, but in a
        fixed order.

        Where several steps are taken at a time, it takes their batches, (steps, b, ...). The config's numbers are told
        to it, as the first argument of the program: configs that differ in them alone share what is compiled.

        spectrum: of what the U-Net works in, for the report of a diffusion loss.
        """
        train, mesh, one = self.train, self.mesh(), self.one_step(tokenizer, spectrum)
        if train.deterministic_reduction:
            return partial(parts.replicated_step(one, mesh), self.numbers)

        def placed(numbers: Numbers, state: TrainState, batch: dict) -> tuple[TrainState, metrics.Metrics]:
            state, averages = one(numbers, state, batch)
            if mesh.size > 1:
                state = jax.lax.with_sharding_constraint(state, rules.placement(mesh, state))
            return state, averages

        def several(numbers: Numbers, state: TrainState, batches: dict) -> tuple[TrainState, metrics.Metrics]:
            state, averages = jax.lax.scan(partial(placed, numbers), state, batches)
            return state, jax.tree.map(lambda each: each.sum(0), averages)

        program = placed if train.steps_per_dispatch == 1 else several
        return partial(jax.jit(program, donate_argnums=1), self.numbers)

    def sampler(self, tokenizer: Tokenizer, weights: Mapping[str, Any]) -> Sampler:
        """A sampler of given weights."""
        return Sampler(
            tokenizer=tokenizer,
            text=self.on_one_device(self.text(tokenizer.vocab_size)),
            unet=self.on_one_device(self.unet()),
            autoencoder=self.autoencoder(),
            weights=weights,
            schedule=self.schedule(),
            prediction_type=self.diffusion.prediction_type,
            shape=self.shape,
            settings=self.sample,
            learned_variance=self.diffusion.learned_variance,
        )


def _attending(network: Network, attend: Callable) -> Network:
    """A network with other attention, both towers of a dual encoder."""
    if isinstance(network, DualEncoder):
        towers = (network.text, network.vision)
        text, vision = (_attending(tower, attend) for tower in towers)
        return network.clone(text=text, vision=vision)
    return network.clone(attend=attend)


def experiment(config: ConfigDict | Mapping) -> Experiment:
    """A checked experiment from a config file's ``get_config()`` or from a run's config.json."""
    return Experiment(plain(config))
