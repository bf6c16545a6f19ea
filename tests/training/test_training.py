"""EMA, metrics, checkpoints, steps and loop: closed forms, bit-identical resume, and random keys by example."""

import itertools
import json
import shutil
import signal
from contextlib import closing
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from jdiff import rng
from jdiff.config.construct import ConfigError
from jdiff.runs import directory
from jdiff.runs.train import ema_snapshots
from jdiff.runtime import distributed
from jdiff.runtime.watchdog import Watchdog
from jdiff.sharding import mesh as meshes
from jdiff.tasks import make_task
from jdiff.training import ema, loop, metrics
from jdiff.training.checkpoint import Checkpoints
from tests.trees import distance

CONFIG = {
    "data": {"image_size": 8},
    "tokenizer": {"context_length": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 16, "activation": "gelu", "causal": False},
    "vision": {"patch_size": 4, "width": 16, "layers": 1, "heads": 2, "embed_dim": 16},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
    "mesh": {"data": 1},
    "train": {"task": "contrastive", "batch_size": 8, "steps": 6},
    "ema": {"decays": (0.9,), "widths": (0.1,), "snapshot_every": 2},
}


class Words:
    """The interface of a tokenizer, for random tokens."""

    vocab_size = 20


def batch(step):
    generator = np.random.default_rng(step)
    tokens = generator.integers(1, 20, (8, 8)).astype(np.int32)
    images = generator.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens, "mask": tokens > 3, "index": np.arange(8, dtype=np.int32)}


def make(config=CONFIG):
    return make_task(config).with_tokenizer(Words())


@cache
def compiled(config_text, tokenizer):
    """A task and its step, compiled once for all runs of a config. config_text: JSON."""
    task = make_task(json.loads(config_text)).with_tokenizer(tokenizer())
    return task, task.compiled_step(task.config.mesh.make())


def run(workdir, *, stop_at=None, save_every=100, config=CONFIG, tokenizer=Words):
    """Train in ``workdir``, resuming from a checkpoint if there is one; a SIGINT arrives at step ``stop_at``."""
    task, compiled_step = compiled(json.dumps(config), tokenizer)
    mesh = task.config.mesh.make()
    with Checkpoints(workdir / "checkpoints", keep=2) as store:
        state, pending = task.initial_state(mesh, {}), None
        if store.latest is not None:
            state = store.restore(store.newest_intact(), state)
            item = store.restore_items(store.latest, meshes.replicated(mesh), "train_metrics")["train_metrics"]
            pending = metrics.from_checkpoint(item)

        def batches(start):
            for step in itertools.count(start):
                if step == stop_at:
                    signal.raise_signal(signal.SIGINT)
                yield meshes.place_batch(mesh, batch(step))

        start = int(state.step)
        writer = metrics.Writer(epath.Path(workdir), start_step=start)
        stop, snapshots = distributed.StopSignals(), directory.snapshots(workdir, resume_step=start)
        with closing(writer), stop, snapshots:
            return loop.run_loop(
                state,
                compiled_step,
                batches(start),
                steps=task.config.train.steps,
                log_every=3,
                save_every=save_every,
                checkpoints=store,
                writer=writer,
                callbacks=[ema_snapshots(task, snapshots)],
                stop=stop,
                watchdog=Watchdog({}),
                pending=pending,
            )


def test_resume_is_bit_identical_after_a_signal(tmp_path):
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "resumed").mkdir()
    state = run(tmp_path / "uninterrupted")
    with pytest.raises(loop.Interruption, match="stopped at step 4 ") as interruption:
        run(tmp_path / "resumed", stop_at=3)
    assert interruption.value.signal == signal.SIGINT
    resumed_state = run(tmp_path / "resumed")
    assert int(state.step) == int(resumed_state.step) == 6
    jax.tree.map(np.testing.assert_array_equal, state, resumed_state)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "resumed")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [3, 6]


def test_reader_does_not_delete_a_temporary_checkpoint(tmp_path):
    run(tmp_path, save_every=2)
    temporary = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    temporary.mkdir()
    assert directory.latest_step(tmp_path) == 6
    assert temporary.exists()
    with directory.checkpoints(tmp_path) as store:
        items = store.restore_items(6, directory.first_device(), "ema", ema_names=["0.9"])
        assert list(items["ema"]) == ["0.9"]
    assert directory.latest_step(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()


def test_signal_before_the_first_step_stops_without_a_checkpoint(tmp_path):
    task = make()

    def step(state, batch):
        pytest.fail("no step is due")

    with Checkpoints(tmp_path / "checkpoints", keep=2) as store:
        writer = metrics.Writer(epath.Path(tmp_path), start_step=0)
        state = task.initial_state(task.config.mesh.make(), {})

        with pytest.raises(loop.Interruption) as interruption, distributed.StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            loop.run_loop(
                state,
                step,
                itertools.repeat({}),
                steps=4,
                log_every=50,
                save_every=500,
                checkpoints=store,
                writer=writer,
                callbacks=(),
                stop=stop,
                watchdog=Watchdog({}),
            )
        writer.close()
        assert (interruption.value.signal, store.latest) == (signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("changes", "same_program"),
    [
        ({"train": {"seed": 2**32 + 7}, "optimizer": {"learning_rate": 3e-4, "final_lr_fraction": 0.5}}, True),
        ({"optimizer": {"weight_decay": 0.3, "b1": 0.8, "clip_norm": 0.1}}, True),
        ({"optimizer": {"warmup_steps": 3}}, False),
    ],
    ids=str,
)
def test_configs_that_differ_in_traced_hyperparameters_share_a_program(changes, same_program):
    """The compilation cache looks programs up by their text, so the next run of a sweep is not compiled again."""

    def text(config):
        task = make(config)
        mesh = task.config.mesh.make()
        step, state = task.compiled_step(mesh), task.state_like(mesh)
        return step.func.lower(*step.args, state, batch(0)).as_text()

    other = CONFIG | {name: CONFIG[name] | section for name, section in changes.items()}
    assert (text(CONFIG) == text(other)) is same_program


def test_logit_scale_is_at_most_100_and_can_decrease_again():
    task = make(CONFIG | {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}})
    mesh, scales = task.config.mesh.make(), []
    step, state = task.compiled_step(mesh), task.initial_state(mesh, {})
    state = state.replace(params=state.params | {"logit_scale": jnp.float32(9.0)})
    for i in range(4):  # random pairs: a large scale is confidently wrong about them
        state, _ = step(state, meshes.place_batch(mesh, batch(i)))
        scales.append(float(jnp.exp(state.params["logit_scale"])))
    np.testing.assert_allclose(scales[0], 100, rtol=1e-5)
    assert scales[3] < 99.9


def test_frozen_text_tower_stays_bit_identical_and_then_learns():
    task = make(CONFIG | {"train": CONFIG["train"] | {"freeze_text_steps": 2}})
    mesh, states = task.config.mesh.make(), []
    step, state = task.compiled_step(mesh), task.initial_state(mesh, {})
    for i in range(4):
        states.append(jax.device_get(state.params))
        if i == 2:  # the last frozen step: moments were updated all along, so the first step is not too long
            moments = optax.tree.get(state.opt_state, "mu")["text"]
            zero_moments = [
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, moment in jax.tree_util.tree_leaves_with_path(moments)
                if not jnp.abs(moment).max() > 0
            ]
            assert zero_moments == ["transformer/layers_0/attention/k/bias"]  # softmax is invariant to it
        state, _ = step(state, meshes.place_batch(mesh, batch(i)))

    def is_unchanged(tower, i):
        return jax.tree.all(jax.tree.map(np.array_equal, states[i][tower], states[i + 1][tower]))

    assert [is_unchanged("text", i) for i in range(3)] == [True, True, False]
    assert not any(is_unchanged("vision", i) for i in range(1, 3))  # warm-up starts at a learning rate of 0


def test_text_tower_cannot_be_frozen_for_some_steps_and_for_all():
    task = make(CONFIG | {"train": CONFIG["train"] | {"freeze_text_steps": 2, "freeze": ("text/.*",)}})
    with pytest.raises(ConfigError, match=r"config\.train\.freeze_text_steps"):
        task.initial_state(task.config.mesh.make(), {})


def test_writer_removes_lines_after_the_checkpoint(tmp_path):
    path = epath.Path(tmp_path)
    (path / "metrics.jsonl").write_text("".join(f'{{"step": {s}}}\n' for s in (1, 2, 3)))
    metrics.Writer(path, start_step=2).close()
    assert (path / "metrics.jsonl").read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


def test_nan_loss_aborts_without_a_checkpoint(tmp_path):
    task = make()
    with Checkpoints(tmp_path / "checkpoints", keep=2) as store:
        writer = metrics.Writer(epath.Path(tmp_path), start_step=0)
        state = task.initial_state(task.config.mesh.make(), {})
        diverges = pytest.raises(loop.Divergence, match=r"config\.optimizer\.learning_rate")
        with jax.debug_nans(False), diverges, distributed.StopSignals() as stop:
            loop.run_loop(
                state,
                lambda state, batch: (state, metrics.from_values({"loss": jnp.float32(jnp.nan)})),
                itertools.repeat({}),
                steps=4,
                log_every=2,
                save_every=1,
                checkpoints=store,
                writer=writer,
                callbacks=(),
                stop=stop,
                watchdog=Watchdog({}),
            )
        writer.close()
        assert store.latest is None


def test_noise_depends_on_seed_stream_step_and_index():
    """Each of them changes all bits; one example alone has the noise that it has in its batch."""
    index = jnp.arange(4)

    def bits(seed, name, step):
        return np.asarray(rng.normal(rng.example_keys(rng.stream(seed, name), step, index), (2,)))

    base = bits(0, "noise", 5)
    np.testing.assert_array_equal(base, bits(0, "noise", 5))
    for other in (bits(1, "noise", 5), bits(0, "caption_dropout", 5), bits(0, "noise", 6), base[::-1]):
        assert not np.any(base == other)
    one_example = rng.normal(rng.example_keys(rng.stream(0, "noise"), 5, index[2:3]), (2,))
    np.testing.assert_array_equal(base[2:3], one_example)


def test_ema_starts_at_the_parameters_and_follows_them():
    """d = min(decay, (1 + step) / (10 + step)), written out."""
    averages = ema.EmaConfig((0.3, 0.99))
    ema_params = start = averages.init(jnp.float32(4.0))
    expected = 4.0
    for step in range(5):
        ema_params = averages.update(ema_params, jnp.float32(0.0), jnp.int32(step))
        expected *= min(0.3, (1 + step) / (10 + step))
    np.testing.assert_allclose(ema_params["0.3"], expected, rtol=1e-5)
    np.testing.assert_allclose(averages.update(start, start["0.99"], jnp.int32(7))["0.99"], start["0.99"])


def weights(width, steps):
    """(40): the weight of each step in a power function average, in float64."""
    return np.diff((np.arange(steps + 1) / steps) ** (ema.exponent(width) + 1))


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_power_function_ema_weighs_steps_by_its_width(width):
    """(40), (41): weights of steps, measured by averaging one unit vector per step, and their standard deviation."""
    averages, n = ema.EmaConfig(widths=(width,)), 300
    update = jax.jit(lambda average, step: averages.update(average, jnp.eye(n)[step], step))
    average = averages.init(jnp.ones(n))  # the first step has a rate of 1, which discards this
    for step in range(n):
        average = update(average, jnp.int32(step))
    np.testing.assert_allclose(average[f"width={width}"], weights(width, n), atol=2e-6)
    step_weights, times = weights(width, 20_000), np.arange(1, 20_001) / 20_000
    deviation = np.sqrt(np.sum(step_weights * times**2) - np.sum(step_weights * times) ** 2)
    np.testing.assert_allclose(deviation, width, rtol=1e-3)


def test_snapshots_of_two_widths_fit_any_width():
    """(42): a stored width is fitted exactly; others have a small error, smaller with more snapshots."""
    n, errors = 1000, {}
    for every in (250, 50):
        snapshots = [(step, width) for step in range(every, n + 1, every) for width in (0.05, 0.1)]
        profiles = np.array([np.pad(weights(width, step), (0, n - step)) for step, width in snapshots])
        for width in (0.05, 0.07, 0.15):
            snapshot_weights, estimate = ema.fit_profile(snapshots, n, width)
            target = weights(width, n)
            errors[every, width] = np.linalg.norm(snapshot_weights @ profiles - target) / np.linalg.norm(target)
            assert abs(errors[every, width] - estimate) < 0.01
            np.testing.assert_allclose(snapshot_weights.sum(), 1, rtol=1e-6)
        assert errors[every, 0.05] < 1e-5
    for width in (0.07, 0.15):
        assert errors[50, width] < 0.03 and errors[50, width] < errors[250, width] / 2


@pytest.mark.slow
def test_post_hoc_ema_equals_the_ema_of_its_width(tmp_path):
    """Also after a resume, which rewrites later snapshots, and the one that the interrupted process did not write."""
    train = CONFIG["train"] | {"steps": 30}
    two, three = (
        {"train": train, "ema": {"widths": widths, "snapshot_every": 2}} for widths in ((0.05, 0.1), (0.05, 0.07, 0.1))
    )
    for name in ("two", "three"):
        (tmp_path / name).mkdir()
    expected = run(tmp_path / "three", config=CONFIG | three)
    with pytest.raises(loop.Interruption):
        run(tmp_path / "two", config=CONFIG | two, stop_at=15)
    stale = tmp_path / "two" / "ema_snapshots" / "18"
    shutil.copytree(tmp_path / "two" / "ema_snapshots" / "12", stale)
    run(tmp_path / "two", config=CONFIG | two)
    directory.write_config(tmp_path / "two", make(CONFIG | two).config.raw)
    place = directory.first_device()
    with directory.snapshots(tmp_path / "two") as store:
        assert store.steps == list(range(2, 31, 2))
        rewritten_snapshot = store.restore(18, place)["width=0.1"]
        stale_snapshot = store.restore(12, place)["width=0.1"]
    assert distance(rewritten_snapshot, stale_snapshot) > 1e-3
    post_hoc = directory.restore_params(tmp_path / "two", place, ema="width=0.07")
    params_distance, error = (distance(tree, expected.ema["width=0.07"]) for tree in (expected.params, post_hoc))
    assert error < 0.03 * params_distance


def test_merged_metrics_are_weighted_by_count():
    a = metrics.from_values({"loss": jnp.float32(1), "bin": (jnp.float32(2), 3)})
    b = metrics.from_values({"loss": jnp.float32(3), "bin": (jnp.float32(6), 1)})
    assert metrics.values(metrics.merge(a, b)) == {"loss": 2.0, "bin": 3.0}
    assert metrics.values(metrics.from_values({"bin": (jnp.float32(0), 0)})) == {}
