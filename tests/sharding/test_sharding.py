"""The same run on any mesh, and the sharding of its parameters."""

import runpy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from warnings import catch_warnings, simplefilter

import jax
import numpy as np
import optax
import pytest

from jdiff.commands.flags import shipped_configs
from jdiff.config.construct import ConfigError
from jdiff.runs import begin, directory, train
from jdiff.sharding import mesh as meshes
from jdiff.sharding import rules
from jdiff.tasks import make_task
from jdiff.training.checkpoint import Checkpoints
from jdiff.training.state import TrainState
from tests.trees import relative_distance

ONE_DEVICE = {"data": 1}
LAYOUTS = ({"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 2})
ALL_AXES = {"data": 2, "fsdp": 2, "tensor": 2}
BASE = {
    "data": {"image_size": 8},
    "tokenizer": {"context_length": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 16, "activation": "gelu", "causal": False},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
    "train": {"task": "contrastive", "batch_size": 16, "steps": 6},
    "ema": {"decays": (0.9,), "widths": (0.1,)},
}
CONTRASTIVE = BASE | {"vision": {"patch_size": 4, "width": 16, "layers": 1, "heads": 2, "embed_dim": 16}}
DIFFUSION = BASE | {
    "denoiser": {"channels": (16,), "attention": (False,), "heads": (2,), "blocks": 1, "groups": 8},
    "diffusion": {"prediction_type": "v"},
    "train": BASE["train"] | {"task": "text_to_image"},
}
TWO_STEPS = BASE["train"] | {"steps_per_dispatch": 2} | dict.fromkeys(("log_every", "save_every", "sample_every"), 2)
LATENTS = DIFFUSION | {"autoencoder": {"channels": (8, 16), "groups": 4}}
POOLED = CONTRASTIVE | {"vision": CONTRASTIVE["vision"] | {"pooling": "attention"}, "encoder": {"use_logit_bias": True}}
RESNET = CONTRASTIVE | {"vision": {"kind": "resnet", "width": 8, "layers": (1, 1, 1, 1), "heads": 2}}


class Words:
    """A tokenizer's interface over random tokens."""

    vocab_size = 20

    def __init__(self, context_length=8):
        self.context_length = context_length

    def encode(self, captions):
        shape = len(captions), self.context_length
        return np.zeros(shape, np.int32), np.ones(shape, bool)


def make(config):
    return make_task(config).with_tokenizer(Words())


def batch(step):
    generator = np.random.default_rng(step)
    tokens = generator.integers(1, 20, (16, 8)).astype(np.int32)
    images = generator.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens, "mask": tokens > 3, "index": np.arange(16, dtype=np.int32)}


def trained(config, layout, steps=3, **train_keys):
    """The loss of each step on a mesh, and the state at the end."""
    task = make(config | {"mesh": layout, "train": config["train"] | train_keys})
    mesh, losses = task.config.mesh.make(), []
    step, state = task.compiled_step(mesh), task.initial_state(mesh, {})
    for i in range(steps):
        state, metrics = step(state, meshes.place_batch(mesh, batch(i)))
        losses.append(float(metrics["loss"].compute()))
    return losses, state


@cache
def one_device_run(task):
    return trained(DIFFUSION if task == "text_to_image" else CONTRASTIVE, ONE_DEVICE)


@pytest.mark.parametrize(
    ("config", "layout"),
    [pytest.param(CONTRASTIVE, layout, id=f"contrastive-{layout}") for layout in LAYOUTS]
    + [pytest.param(DIFFUSION, layout, id=f"text_to_image-{layout}") for layout in ({"data": 8}, ALL_AXES)]
    + [
        pytest.param(DIFFUSION, layout, id=f"text_to_image-{layout}", marks=pytest.mark.slow)
        for layout in LAYOUTS[1::2]
    ],
)
def test_run_is_the_same_on_every_mesh(config, layout):
    """Every layout gets the same batch and noise, so losses and parameters agree within rounding, step by step."""
    losses, state = trained(config, layout)
    expected, one_device_state = one_device_run(config["train"]["task"])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert relative_distance(state.params, one_device_state.params) < 2e-5
    mesh = meshes.make_mesh(**layout)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(rules.placement(mesh, state))):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@pytest.mark.parametrize("form", [{"form": "gathered"}, {"form": "ring"}, {"form": "ring", "chunk": 2}], ids=str)
def test_every_form_of_the_contrastive_loss_gives_the_same_losses(form):
    losses, _ = trained(CONTRASTIVE | {"contrastive": form}, ALL_AXES)
    np.testing.assert_allclose(losses, one_device_run("contrastive")[0], rtol=1e-5)


@pytest.mark.parametrize("layout", [ONE_DEVICE, {"data": 2}], ids=str)
@pytest.mark.parametrize("config", [CONTRASTIVE | {"contrastive": {"form": "ring"}}, DIFFUSION], ids=["ring", "unet"])
def test_gradient_accumulation_gives_the_same_run(config, layout):
    """The U-Net's gradients are summed; the dual encoder, whose loss is over the whole batch, caches embeddings."""
    losses, state = trained(config, layout, microbatches=4)
    expected, one_device_state = one_device_run(config["train"]["task"])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert relative_distance(state.params, one_device_state.params) < 2e-5


def test_gradient_accumulation_takes_less_memory():
    """With eight microbatches a dual encoder holds the activations of one, and the embeddings of all."""
    tasks = [
        make(CONTRASTIVE | {"mesh": ONE_DEVICE, "train": BASE["train"] | {"batch_size": 256, "microbatches": n}})
        for n in (1, 8)
    ]
    rows = {
        "image": jax.ShapeDtypeStruct((256, 8, 8, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((256, 8), np.int32),
        "mask": jax.ShapeDtypeStruct((256, 8), bool),
        "index": jax.ShapeDtypeStruct((256,), np.int32),
    }

    def memory(task):
        mesh = task.config.mesh.make()
        step = task.compiled_step(mesh)
        lowered = step.func.lower(*step.args, task.state_like(mesh), rows)
        return lowered.compile().memory_analysis()

    full_memory, accumulation_memory = (memory(task).temp_size_in_bytes for task in tasks)
    assert accumulation_memory < full_memory / 3


def test_deterministic_reduction_is_bit_identical_on_every_layout():
    layouts = ({"data": 2}, {"data": 1, "fsdp": 4}, {"data": 2, "fsdp": 2})
    states = [trained(CONTRASTIVE, layout, deterministic_reduction=8) for layout in layouts]
    for losses, state in states[1:]:
        assert losses == states[0][0]
        jax.tree.map(np.testing.assert_array_equal, state, states[0][1])
    assert relative_distance(states[0][1].params, one_device_run("contrastive")[1].params) < 2e-5


def test_several_steps_per_dispatch_equal_single_steps():
    """Two steps in one call: the state after two calls, and the mean of their metrics."""
    losses, expected = trained(CONTRASTIVE, {"data": 2}, steps=2)
    task = make(CONTRASTIVE | {"mesh": {"data": 2}, "train": TWO_STEPS})
    mesh = task.config.mesh.make()
    batches = train._place(mesh, (batch(i) for i in range(4)), 2)
    state, metrics = task.compiled_step(mesh)(task.initial_state(mesh, {}), next(batches))
    assert int(state.step) == 2 and relative_distance(state.params, expected.params) < 1e-6
    np.testing.assert_allclose(float(metrics["loss"].compute()), np.mean(losses), rtol=1e-6)
    assert len(list(batches)) == 1


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CONTRASTIVE, {"microbatches": 3}, "config.train.microbatches is 3"),
        (CONTRASTIVE, {"microbatches": 0}, "config.train.microbatches is 0"),
        (CONTRASTIVE, {"deterministic_reduction": 6}, "config.train.deterministic_reduction is 6"),
        (CONTRASTIVE | {"mesh": ONE_DEVICE}, {"deterministic_reduction": 2}, "config.mesh.data or fsdp"),
        (CONTRASTIVE, {"deterministic_reduction": 8, "microbatches": 2}, "config.train.microbatches"),
        (CONTRASTIVE | {"contrastive": {"form": "ring"}}, {"deterministic_reduction": 8}, "config.contrastive.form"),
        (CONTRASTIVE, {"steps_per_dispatch": 4}, "config.train.steps is 6.*config.train.steps_per_dispatch"),
        (CONTRASTIVE | {"text": BASE["text"] | {"remat": "block"}}, {}, "config.text.remat.*'blocks'"),
        (CONTRASTIVE | {"ema": {"snapshot_every": 5}}, {}, "config.ema.snapshot_every.*config.ema.widths"),
        (DIFFUSION | {"denoiser": DIFFUSION["denoiser"] | {"dtype": "float16"}}, {}, "denoiser.dtype.*'bfloat16'"),
    ],
    ids=str,
)
def test_invalid_train_section_is_rejected(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        task = make({"mesh": {"data": 2}} | config | {"train": config["train"] | changes})
        task.compiled_step(task.config.mesh.make())


def test_fsdp_shards_parameters_moments_and_ema():
    _, state = trained(CONTRASTIVE, {"data": 1, "fsdp": 8}, steps=1)
    moments = next(part.mu for part in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if part)
    for tree in (state.params, moments, *state.ema.values()):
        kernel = tree["text"]["transformer"]["layers_0"]["mlp_1"]["kernel"]
        assert kernel.shape == (16, 64) and kernel.addressable_shards[0].data.shape == (2, 64)


def test_checkpoint_of_one_mesh_is_restored_on_another(tmp_path):
    _, state = trained(CONTRASTIVE, ALL_AXES, steps=1)
    task = make(CONTRASTIVE | {"mesh": {"data": 2, "fsdp": 4}})
    with Checkpoints(tmp_path, keep=1) as store:
        store.save(state)
        store.wait()
        restored_state = store.restore(1, task.state_like(task.config.mesh.make()))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored_state), strict=True):
        np.testing.assert_array_equal(a, b)
    kernel = restored_state.params["text"]["transformer"]["layers_0"]["mlp_1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 64)


def test_run_resumes_on_another_mesh_but_not_with_another_network(tmp_path):
    first_config = make(CONTRASTIVE | {"mesh": ONE_DEVICE}).config.raw
    directory.write_config(tmp_path, first_config)
    changes = begin.changes_on_resume(make(first_config | {"mesh": ALL_AXES}), tmp_path)
    assert changes and all(key.startswith("mesh.") for key in changes)
    with pytest.raises(ConfigError, match=r"config.text.width = 16, and now it is 32"):
        begin.changes_on_resume(make(first_config | {"text": first_config["text"] | {"width": 32}}), tmp_path)


def shipped_shapes():
    """Parameter shapes of every shipped config at full size, without pretrained weights."""
    for name, path in shipped_configs().items():
        config = runpy.run_path(str(path))["get_config"]().to_dict()
        # The networks of tune_clip and tune_t2i are those of pretrained weights.
        if "data" in config and name not in ("spiral", "tune_clip", "tune_t2i"):
            config["text"].pop("init_from", None)
            yield name, make(config).param_shapes()


def test_every_parameter_has_a_rule_and_every_rule_is_used():
    rule_indices = set()
    others = [make(config).param_shapes() for config in (RESNET, POOLED, LATENTS)]
    for shapes in [shapes for _, shapes in shipped_shapes()] + others:
        paths = ["/".join(key.key for key in keys) for keys, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        rule_indices |= {rules.rule_index(path) for path in paths}
    assert rule_indices == set(range(len(rules.RULES)))


STRANGE = {"denoiser": {"strange": {"kernel": np.ones((8, 4))}, "conv_1": {"kernel": np.ones((3, 3, 4, 8))}}}


@pytest.mark.parametrize("layout", [{"data": 1}, {"data": 4}], ids=str)
def test_parameter_without_rule_is_replicated_with_one_warning_where_no_parameter_is_sharded(layout):
    mesh = meshes.make_mesh(**layout)
    state = TrainState(np.int32(0), STRANGE, optax.adam(0.1).init(STRANGE), {"0.9": STRANGE}, {})
    with pytest.warns(rules.UnshardedParameter, match=r"rules\.py matches denoiser/strange/kernel;") as warnings:
        shardings = rules.placement(mesh, state)
    assert len(warnings) == 1
    assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))


def test_warning_of_parameter_without_rule_is_printed_once():
    """Python's default filter prints a sentence once for each line that warns; all callers share that line."""
    with catch_warnings(record=True) as warnings:
        simplefilter("default")
        for _ in range(2):
            rules.placement(meshes.make_mesh(data=1), STRANGE)
        rules.placement_table(meshes.make_mesh(data=1), STRANGE)
    assert len(warnings) == 1


@pytest.mark.parametrize("layout", [{"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}], ids=str)
def test_parameter_without_rule_is_an_error_where_parameters_are_sharded(layout):
    for function in (rules.placement, rules.placement_table):
        with pytest.raises(
            rules.MissingShardingRule, match=r"jdiff/sharding/rules\.py matches denoiser/strange/kernel;"
        ):
            function(meshes.make_mesh(**layout), STRANGE)


@pytest.mark.parametrize(
    ("name", "parts"), [("demo_clip", ("text", "vision", "logit_scale")), ("demo_t2i", ("denoiser",))]
)
def test_table_of_a_config(name, parts):
    """Goldens: rewrite them on purpose, and review the diff."""
    mesh, shapes = meshes.make_mesh(**ALL_AXES), dict(shipped_shapes())[name]
    text = rules.placement_table(mesh, {part: shapes[part] for part in parts}) + "\n"
    assert text == (Path(__file__).parent / f"{name}.txt").read_text()


@dataclass(frozen=True)
class Device:
    """The attributes of a device that a mesh reads."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(
    ("shape", "processes", "shards"),
    [
        ((4, 1, 1), (0, 0, 1, 1), [(0, 1), (2, 3)]),
        ((2, 2, 2), (0, 0, 0, 0, 1, 1, 1, 1), [(0, 1), (2, 3)]),
        ((1, 1, 4), (0, 0, 1, 1), [(0,), (0,)]),  # both hold shards of every parameter, and read every row
        ((1, 2, 2), (0, 1, 2, 3), [(0,), (0,), (1,), (1,)]),
        ((8, 1, 1), (0, 0, 1, 1, 0, 0, 1, 1), [(0, 1, 4, 5), (2, 3, 6, 7)]),  # as in a torus of TPUs
        ((3, 1, 2), (0, 0, 0, 1, 1, 1), [(0, 1), (1, 2)]),
    ],
    ids=str,
)
def test_process_reads_the_batch_shards_of_its_devices(monkeypatch, shape, processes, shards):
    devices = [Device(i, process) for i, process in enumerate(processes)]
    mesh = jax.sharding.Mesh(np.array(devices).reshape(shape), meshes.AXES)
    for process, local_shards in enumerate(shards):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert meshes.local_batch_shards(mesh) == local_shards


@pytest.mark.parametrize("batch_axis", [0, 1])
def test_shards_that_are_not_contiguous_reach_their_devices(monkeypatch, batch_axis):
    monkeypatch.setattr(meshes, "local_batch_shards", lambda mesh: (1, 3))
    indices = [(slice(None),) * batch_axis + (slice(3 * i, 3 * i + 3), slice(None)) for i in (3, 1)]

    def make_array(shape, sharding, shard):
        return shape, [shard(index) for index in indices]

    monkeypatch.setattr(jax, "make_array_from_callback", make_array)
    rows = np.arange(5 * 6 * 2).reshape(5, 6, 2)[slice(None) if batch_axis else 0]
    shape, (last, first) = meshes.place_batch(meshes.make_mesh(data=4), {"rows": rows}, batch_axis)["rows"]
    assert shape == ((5, 12, 2) if batch_axis else (12, 2))
    np.testing.assert_array_equal(np.concatenate([first, last], batch_axis), rows)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"data": 9}, "there are 8 devices"),
        ({"data": -1, "fsdp": 3}, "there are 8 devices"),
        ({"data": -1, "fsdp": -1}, "one of them may be -1"),
        ({"data": 1, "tensor": 0}, "must be 1 or more"),
        ({"data": 1, "tensors": 2}, "did you mean 'tensor'"),
    ],
    ids=str,
)
def test_invalid_mesh_is_rejected(layout, message):
    with pytest.raises(ValueError, match=message):
        make(CONTRASTIVE | {"mesh": layout}).config.mesh.make()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loss": "sigmoid"}, "encoder.use_logit_bias"),
        ({"form": "rings"}, "did you mean 'ring'"),
        ({"form": "dense", "chunk": 2}, "only 'ring'"),
        ({"form": "ring", "chunk": -2}, "must be 0, for all, or more"),
        ({"form": "ring", "chunk": 3}, "must divide a device's 4 images"),
    ],
    ids=str,
)
def test_invalid_contrastive_section_is_rejected(section, message):
    with pytest.raises(ConfigError, match=message):
        task = make(CONTRASTIVE | {"contrastive": section, "mesh": ALL_AXES})
        task.compiled_step(task.config.mesh.make())
