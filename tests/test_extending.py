"""What a user adds without touching the package: a denoiser, a data source with its own evaluator, frozen paths."""

import json
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.commands.evaluate import evaluate
from jdiff.commands.export import export
from jdiff.data.records import Example
from jdiff.data.sources import SOURCES
from jdiff.evaluation.evaluators import CaptionEvaluator
from jdiff.evaluation.prompt_accuracy import rate
from jdiff.inference.standalone import load_exported
from jdiff.interop.pretrained import NO_HINTS
from jdiff.models.attention import dot_product
from jdiff.runs import directory
from jdiff.runs.prepare import prepare
from jdiff.runs.train import train
from jdiff.tasks import make_task
from jdiff.tasks.text_to_image import DENOISERS
from tests.running import jdiff

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class PatchTransformer(nn.Module):
    """A denoiser that is no U-Net: patches and caption tokens in one sequence of attention and dense layers."""

    width: int = 16
    patch: int = 4
    out_channels: int = 3
    attend: object = dot_product

    @nn.compact
    def __call__(self, xt, timestep, context, mask=None, pooled=None):
        b, h, w, c = xt.shape
        p = self.patch
        x = xt.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * c)
        x = nn.Dense(self.width, name="proj_in")(x)
        time = nn.Dense(self.width, name="time1")(timestep[:, None] / 1000)
        tokens = jnp.concatenate([x, nn.Dense(self.width, name="ff1")(context)], axis=1) + time[:, None]
        keep = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], axis=1)
        scores = jnp.where(keep[:, None], jnp.einsum("bqd,bkd->bqk", tokens, tokens) / self.width**0.5, -1e9)
        tokens = tokens + jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores, axis=-1), tokens)
        y = nn.Dense(p * p * self.out_channels, name="proj_out")(nn.silu(tokens[:, : x.shape[1]]))
        y = y.reshape(b, h // p, w // p, p, p, self.out_channels).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, self.out_channels)


class FlatEvaluator(CaptionEvaluator):
    """Judges an image by the colour that is nearest to its mean."""

    def judge(self, images, examples, splits):
        names = list(COLOURS)
        distances = [[np.abs(image.mean((0, 1)) - COLOURS[name]).sum() for name in names] for image in images]
        nearest = [names[int(np.argmin(row))] for row in distances]
        return {"colour": rate([name in self.caption(example) for name, example in zip(nearest, examples)])}


@dataclass(frozen=True)
class Flat:
    """Images of one colour, named in their captions."""

    image_size: int = 16
    count: int = 16

    name: ClassVar[str] = "flat"
    evaluator: ClassVar[CaptionEvaluator] = FlatEvaluator()

    def identity(self):
        return {"source": self.name, "count": self.count}

    def splits(self):
        return ("train", "test")

    def examples(self, split):
        for i in range(self.count):
            name = list(COLOURS)[i % 2]
            image = np.full((self.image_size, self.image_size, 3), COLOURS[name], np.uint8)
            yield Example(f"{split}{i}", image, (f"a {name} square",), {})


def configs(folder):
    common = {
        "data": {"source": "flat", "directory": str(folder / "data"), "image_size": 16},
        "mesh": {"data": 1},
        "train": {"batch_size": 8, "steps": 3, "log_every": 1, "save_every": 3, "sample_every": 3},
    }
    tower = {"width": 16, "layers": 1, "heads": 1, "embed_dim": 16}
    encoder = common | {
        "text": tower,
        "vision": tower | {"patch_size": 8},
        "tokenizer": {"context_length": 8, "vocab_size": 300},
        "train": common["train"] | {"task": "contrastive"},
    }
    sampler = common | {
        "text": {"init_from": str(folder / "clip")},
        "denoiser": {"kind": "patch_transformer", "width": 24},
        "sample": {"steps": 2},
        "train": common["train"] | {"task": "text_to_image", "evaluate_every": 3, "evaluate_num": 4},
    }
    return encoder, sampler


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A text-to-image run of a source and a denoiser that are registered by one table line each."""
    folder = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "flat", Flat)
        patch.setitem(DENOISERS, "patch_transformer", PatchTransformer)
        encoder, sampler = configs(folder)
        prepare(make_task(encoder))
        train(make_task(encoder), str(folder / "clip"))
        train(make_task(sampler), str(folder / "run"))
        yield folder / "run"


def test_a_denoiser_and_a_source_from_outside_train_and_are_evaluated_in_the_loop(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line][-1] > 0
    in_loop = next(line["evaluation/colour"] for line in lines if "evaluation/colour" in line)
    results = evaluate(str(run), num=4)
    assert next(iter(results["scales"].values()))["colour"]["share"] == in_loop


def test_a_denoiser_from_outside_samples_and_exports_the_same_images(run, tmp_path):
    sampler, _ = directory.load_sampler(run)
    images = sampler.sample(["a red square", "a blue square"], seed=3)
    export(str(run), str(tmp_path / "exported"), hints=NO_HINTS, changes={}, max_rows=4)
    draw = load_exported(tmp_path / "exported")
    columns = (*sampler.tokenizer.encode(["a red square", "a blue square"]), *sampler.tokenizer.encode(["", ""]))
    exported_images = draw(*columns, np.array([3, 4]))
    assert np.abs(images.astype(int) - exported_images).max() <= 1
    assert images.shape == (2, 16, 16, 3)


def test_config_names_the_denoisers_there_are(run):
    _, sampler = configs(run.parent)
    sampler["denoiser"] = {"kind": "patch_transfomer"}
    with pytest.raises(ValueError, match=r"config.denoiser.kind .*did you mean 'patch_transformer'"):
        make_task(sampler)


CONFIG_WITH_A_SOURCE = """
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from jdiff.data.records import Example
from jdiff.data.sources import SOURCES


@dataclass(frozen=True)
class Grey:
    image_size: int = 16
    brightness: int = 0
    name, evaluator = "grey", "captions"

    def identity(self):
        return {"source": self.name, "brightness": self.brightness}

    def splits(self):
        return ("train",)

    def examples(self, split):
        yield Example("0", np.full((16, 16, 3), self.brightness, np.uint8), ("a grey square",), {})


SOURCES["grey"] = Grey


def get_config():
    tower = dict(width=16, layers=1, heads=1, embed_dim=16)
    return ConfigDict(
        dict(
            data=dict(source="grey", image_size=16, brightness=7),
            tokenizer=dict(context_length=8, vocab_size=300),
            text=tower,
            vision=tower | dict(patch_size=8),
            train=dict(task="contrastive", batch_size=1, steps=1),
        )
    )
"""


def test_config_file_may_add_a_source_with_keys_of_its_own(tmp_path):
    """Such a file does not import JAX; a key that neither the source nor jdiff has is still refused."""
    (tmp_path / "grey.py").write_text(CONFIG_WITH_A_SOURCE)
    jdiff("prepare", "--config=grey.py", cwd=tmp_path)
    assert any(path.is_file() for path in (tmp_path / "data").rglob("*array_record*"))
    process = jdiff("prepare", "--config=grey.py", "--config.data.brightnes=7", cwd=tmp_path, check=False)
    assert process.returncode == 2 and "config.data.brightnes" in process.stderr
