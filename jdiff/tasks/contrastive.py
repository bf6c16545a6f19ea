"""The task of a CLIP-style dual encoder: each caption near its image, far from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from jdiff import rng
from jdiff.config.construct import ConfigError, choose, construct
from jdiff.config.sections import Config, check_contrastive
from jdiff.contrastive.loss import FORMS, LOSSES, Loss
from jdiff.evaluation.encoder_metrics import encoder_metrics
from jdiff.images import heatmap
from jdiff.inference.encoder import DualEncoderModel
from jdiff.models.clip import LOGIT_SCALE_CAP, POOLINGS, VISION_TOWERS, DualEncoder, ResNetTower, VisionTower
from jdiff.models.layers import ACTIVATIONS
from jdiff.sharding import mesh as meshes
from jdiff.tasks.task import DATA_SECTIONS, Evaluation, ImageTextTask, Picture
from jdiff.training.hyperparameters import TracedHyperparameters
from jdiff.training.state import Params, TrainState
from jdiff.training.update import Keys, images_of


@dataclass(frozen=True)
class ContrastiveObjective:
    """The contrastive loss of the global batch.

    freeze_text_steps: steps for which the text tower stays as it is, the mirror of [lit]. At initialization it encodes
    a little of everything, word order too, but soon loses what no image asks for; frozen at first, it teaches the
    vision tower. Its gradients count all the while, in the norm that is clipped and in the optimizer's moments: with
    fresh moments it would start with steps so long that the loss triples.
    """

    network: DualEncoder
    loss: Loss
    config: Config
    mean_of_rows: ClassVar[bool] = False

    def optimizer(self, hparams: TracedHyperparameters) -> optax.GradientTransformation:
        return self.config.make_optimizer(hparams.optimizer)

    def forward(self, params: Params, hparams: TracedHyperparameters, rows: dict, keys: Keys) -> tuple[Array, Array]:
        """Embeddings of the captions and of the images, (rows, embed_dim), unit length."""
        outputs = self.network.apply({"params": params}, rows["tokens"], rows["mask"], images_of(rows))
        return outputs[:2]  # pyright: ignore[reportReturnType] variables are only returned with mutable=

    def reduce(
        self, params: Params, hparams: TracedHyperparameters, outputs: tuple[Array, Array]
    ) -> tuple[Array, dict]:
        scale, bias = jnp.exp(params["logit_scale"]), params.get("logit_bias", jnp.zeros(()))
        loss, report = self.loss(*outputs, scale, bias)
        return loss, report | {"logit_scale": scale}

    def project(self, new: Params, old: Params, step: Array) -> Params:
        """The logit scale at most 100 [clip sec. 2.5]; the text tower unchanged while it is frozen."""
        if "logit_scale" in new:
            new = new | {"logit_scale": jnp.minimum(new["logit_scale"], LOGIT_SCALE_CAP)}
        if not self.config.train.freeze_text_steps:
            return new
        frozen = step < self.config.train.freeze_text_steps
        return new | {"text": jax.tree.map(lambda a, b: jnp.where(frozen, a, b), old["text"], new["text"])}


@dataclass(frozen=True)
class Contrastive(ImageTextTask):
    """Trains a dual encoder. Checked whole when it is made."""

    name: ClassVar[str] = "contrastive"
    network_names: ClassVar[tuple[str, ...]] = ("text", "vision")
    sections: ClassVar[tuple[str, ...]] = ("text", "vision", "encoder", "contrastive", *DATA_SECTIONS)
    evaluate_num: ClassVar[int] = 128
    preview_num: ClassVar[int] = 64
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_contrastive(self.config)
        train = self.config.train
        if not 0 <= train.freeze_text_steps < train.steps:
            raise ConfigError(
                f"config.train.freeze_text_steps is {train.freeze_text_steps}; it must be at least 0 and below "
                f"config.train.steps, {train.steps}"
            )
        for name in self.frozen_networks - self.init_from.keys():
            raise ConfigError(f"config.{name}.frozen is set, but no config.{name}.init_from")
        if train.freeze_text_steps and "text" in self.frozen_networks:
            raise ConfigError("config.train.freeze_text_steps is set, but config.text.frozen freezes the tower anyway")
        if self.text().clip_skip:
            raise ConfigError(
                "config.text.clip_skip is set, but only task 'text_to_image' reads the tower's hidden states"
            )
        keys = self.network_keys("vision")
        choose("vision.activation", keys.get("activation", "gelu"), ACTIVATIONS)
        choose("vision.pooling", keys.get("pooling", "class"), POOLINGS)
        # What a tower is that is initialized from a model is known when that is opened.
        if "vision" not in self.init_from or "patch_size" in keys or "kind" in keys:
            self.encoder()

    @property
    def has_convolutions(self) -> bool:
        return self.network_keys("vision").get("kind", "vit") != "vit"

    def vision(self) -> VisionTower | ResNetTower:
        keys = self.network_keys("vision")
        tower = choose("vision.kind", keys.pop("kind", "vit"), VISION_TOWERS)
        return construct("vision", tower, keys, image_size=self.image_size)

    def encoder(self) -> DualEncoder:
        return construct("encoder", DualEncoder, self.config.encoder, text=self.text(), vision=self.vision())

    def make_networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder()}

    def init(self, seed: int | Array) -> Params:
        n, side = self.config.context_length, self.image_size
        inputs = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool), jnp.zeros((1, side, side, 3))
        return self.encoder().init(rng.stream(seed, "parameters"), *inputs)["params"]

    def first_state(self, pretrained: Mapping[str, Any], seed: int | Array | None = None) -> TrainState:
        state = super().first_state(pretrained, seed)
        if self.config.train.freeze_text_steps and "text" not in state.params:
            raise ConfigError("config.train.freeze_text_steps is set, but config.train.freeze freezes the whole tower")
        return state

    def loss(self, mesh: Mesh) -> Loss:
        """The loss over the devices that a batch is sharded over. Raises ``ConfigError``."""
        section = self.config.contrastive
        rows = self.config.train.batch_size // meshes.num_batch_shards(mesh)
        if section.chunk and rows % section.chunk:
            raise ConfigError(f"config.contrastive.chunk is {section.chunk}; it must divide a device's {rows} images")
        chunk = {"chunk": section.chunk} if section.chunk else {}
        return FORMS[section.form](LOSSES[section.loss], mesh, meshes.BATCH, **chunk)

    def check_mesh(self, mesh: Mesh) -> None:
        super().check_mesh(mesh)
        self.loss(mesh)

    def objectives(self, mesh: Mesh | None, statistics: Any = None) -> tuple[ContrastiveObjective]:
        network = self.networks(mesh)["encoder"]
        return (ContrastiveObjective(network, self.loss(mesh or self.config.mesh.make()), self.config),)

    def model(self, params: Mapping[str, Any]) -> DualEncoderModel:
        """A dual encoder with these parameters, on this process's first device."""
        return DualEncoderModel(self.tokenizer, self.networks()["encoder"], params)

    def previews(self, params: Mapping[str, Any], examples: Sequence[dict]) -> Picture:
        """The similarity of captions (rows) and images (columns)."""
        captions = [example["captions"][0].decode() for example in examples]
        model = self.model(params)
        images = np.stack([example["image"] for example in examples])
        similarity = model.embed_texts(captions) @ model.embed_images(images).T
        return Picture("similarity", heatmap(np.asarray(similarity), cell=8), {"captions": captions})

    def evaluate(self, model: DualEncoderModel, *, split: str, num: int | None = None) -> Evaluation:
        """Recall both ways, and what the data's evaluator knows to ask of a dual encoder."""
        examples = self.split(split)
        result = encoder_metrics(model, self.evaluator, self.split, examples, num or self.evaluate_num)
        picture = Picture("similarity", heatmap(result.similarity, cell=6), {"captions": result.captions})
        return Evaluation(result.metrics, result.metrics, [picture])

    def measure(
        self, model: DualEncoderModel, *, split: str, num: int, seed: int = 0
    ) -> tuple[dict[str, float], np.ndarray | None]:
        """Of a sweep's cell: the numbers of ``evaluate``, and its picture. seed: unused, as nothing is drawn."""
        evaluation = self.evaluate(model, split=split, num=num or None)
        return {name: float(value) for name, value in evaluation.scalars.items()}, evaluation.pictures[0].image
