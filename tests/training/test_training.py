"""Optimizer, average, steps and loop: closed forms, and the laws of noise that belongs to an example."""

import itertools
import json
import shutil
import signal
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from jdiff import build, rng, runs
from jdiff.runtime import distributed
from jdiff.sharding import mesh as meshes
from jdiff.training import ema, loop, metrics

CONFIG = {
    "data": {"image_size": 8},
    "tokenizer": {"context_length": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 16, "activation": "gelu", "causal": False},
    "vision": {"patch_size": 4, "width": 16, "layers": 1, "heads": 2, "embed_dim": 16},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
    "mesh": {"data": 1},
    "train": {"task": "contrastive", "batch_size": 8, "steps": 6},
    "ema": {"decays": (0.9,), "widths": (0.1,)},
}


class Words:
    """A tokenizer's interface over random tokens."""

    vocab_size = 20


def batch(step):
    generator = np.random.default_rng(step)
    tokens = generator.integers(1, 20, (8, 8)).astype(np.int32)
    images = generator.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
    return {"image": images, "tokens": tokens, "mask": tokens > 3, "index": np.arange(8, dtype=np.int32)}


def run(workdir, *, stop_at=None, save_every=100, config=CONFIG):
    """Train CONFIG in ``workdir``, going on if there is a checkpoint; a SIGINT arrives at step ``stop_at``."""
    setup = build.experiment(config)
    mesh = setup.mesh()
    with runs.checkpoints(workdir, keep=2) as store:
        state, merged = setup.initial_state(Words(), mesh, {}), None
        if store.latest is not None:
            state = store.restore(state)
            found = store.restore_parts(meshes.replicated(mesh), "metrics")["metrics"]
            merged = metrics.from_checkpoint(found)

        def batches(start):
            for step in itertools.count(start):
                if step == stop_at:
                    signal.raise_signal(signal.SIGINT)
                yield meshes.place(mesh, batch(step))

        start = int(state.step)
        writer = metrics.Writer(epath.Path(workdir), start_step=start)
        with closing(writer), distributed.Stop() as stop, runs.snapshots(workdir, resume_step=start) as snapshots:
            return loop.train(
                state,
                setup.step(Words()),
                batches(start),
                steps=setup.train.steps,
                every=loop.Every(log=3, save=save_every, sample=100, snapshot=2),
                snapshots=snapshots,
                checkpoints=store,
                writer=writer,
                show_samples=lambda state: None,
                stop=stop.asked,
                merged=merged,
            )


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole")
    with pytest.raises(loop.Interrupted, match="stopped at step 4, saved") as stopped:
        run(tmp_path / "parts", stop_at=3)
    assert stopped.value.signal == signal.SIGINT
    resumed = run(tmp_path / "parts")
    assert int(whole.step) == int(resumed.step) == 6
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    lines = [(tmp_path / part / "metrics.jsonl").read_text() for part in ("whole", "parts")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [3, 6]


def test_reading_leaves_alone_what_is_being_written(tmp_path):
    run(tmp_path, save_every=2)
    unfinished = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert runs.latest_step(tmp_path) == 6
    assert unfinished.exists()
    with runs.checkpoints(tmp_path) as store:
        found = store.restore_parts(runs.first_device(), "ema", ema_names=["0.9"])
        assert list(found["ema"]) == ["0.9"]
    assert runs.latest_step(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(tmp_path):
    setup = build.experiment(CONFIG)

    def step(state, batch):
        pytest.fail("no step is due")

    with runs.checkpoints(tmp_path, keep=2) as store:
        writer = metrics.Writer(epath.Path(tmp_path), start_step=0)
        state = setup.initial_state(Words(), setup.mesh(), {})

        with pytest.raises(loop.Interrupted) as stopped, distributed.Stop() as stop:
            signal.raise_signal(signal.SIGTERM)
            loop.train(
                state,
                step,
                itertools.repeat({}),
                steps=4,
                every=loop.Every(),
                checkpoints=store,
                writer=writer,
                show_samples=lambda state: None,
                stop=stop.asked,
            )
        writer.close()
        assert (stopped.value.signal, store.latest) == (signal.SIGTERM, None)


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"train": {"seed": 2**32 + 7}, "optimizer": {"learning_rate": 3e-4, "final_lr_fraction": 0.5}}, True),
        ({"optimizer": {"weight_decay": 0.3, "b1": 0.8, "clip_norm": 0.1}}, True),
        ({"optimizer": {"warmup_steps": 3}}, False),
    ],
    ids=str,
)
def test_a_config_of_other_numbers_finds_its_step_compiled(changes, shared):
    """A sweep's next run need not be compiled, as the cache of compiled programs knows them by their text."""

    def text(config):
        setup = build.experiment(config)
        step, state = setup.step(Words()), setup.state_like(Words(), setup.mesh())
        return step.func.lower(*step.args, state, batch(0)).as_text()

    other = CONFIG | {name: CONFIG[name] | section for name, section in changes.items()}
    assert (text(CONFIG) == text(other)) is shared


def test_the_logit_scale_is_at_most_100_and_comes_down_again():
    setup = build.experiment(CONFIG | {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 1}})
    mesh, step, scales = setup.mesh(), setup.step(Words()), []
    state = setup.initial_state(Words(), mesh, {})
    state = state.replace(params=state.params | {"logit_scale": jnp.float32(9.0)})
    for i in range(4):  # of pairs that do not belong together, which so sure a scale is wrong about
        state, _ = step(state, meshes.place(mesh, batch(i)))
        scales.append(float(jnp.exp(state.params["logit_scale"])))
    np.testing.assert_allclose(scales[0], 100, rtol=1e-5)
    assert scales[3] < 99.9


def test_a_held_text_tower_stays_to_the_bit_and_then_learns():
    setup = build.experiment(CONFIG | {"train": CONFIG["train"] | {"freeze_text_steps": 2}})
    mesh, step, states = setup.mesh(), setup.step(Words()), []
    state = setup.initial_state(Words(), mesh, {})
    for i in range(4):
        states.append(jax.device_get(state.params))
        if i == 2:  # about to be let go: the moments have gone on, so that the first step is no longer than others
            moments = optax.tree.get(state.opt_state, "mu")["text"]
            at_rest = [
                jax.tree_util.keystr(path, simple=True, separator="/")
                for path, moment in jax.tree_util.tree_leaves_with_path(moments)
                if not jnp.abs(moment).max() > 0
            ]
            assert at_rest == ["transformer/layers_0/attention/k/bias"]  # which a softmax does not see
        state, _ = step(state, meshes.place(mesh, batch(i)))

    def same(tower, i):
        return jax.tree.all(jax.tree.map(np.array_equal, states[i][tower], states[i + 1][tower]))

    assert [same("text", i) for i in range(3)] == [True, True, False]
    assert not any(same("vision", i) for i in range(1, 3))  # the first step's rate is 0, to warm up from


def test_lines_after_the_checkpoint_are_cut(tmp_path):
    path = epath.Path(tmp_path)
    (path / "metrics.jsonl").write_text("".join(f'{{"step": {s}}}\n' for s in (1, 2, 3)))
    metrics.Writer(path, start_step=2).close()
    assert (path / "metrics.jsonl").read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


def test_a_loss_that_is_no_number_is_not_saved(tmp_path):
    setup = build.experiment(CONFIG)
    with runs.checkpoints(tmp_path, keep=2) as store:
        writer = metrics.Writer(epath.Path(tmp_path), start_step=0)
        state = setup.initial_state(Words(), setup.mesh(), {})
        with jax.debug_nans(False), pytest.raises(loop.Diverged, match=r"config\.optimizer\.learning_rate"):
            loop.train(
                state,
                lambda state, batch: (state, metrics.from_report({"loss": jnp.float32(jnp.nan)})),
                itertools.repeat({}),
                steps=4,
                every=loop.Every(log=2, save=1, sample=9),
                checkpoints=store,
                writer=writer,
                show_samples=lambda state: None,
                stop=lambda: None,
            )
        writer.close()
        assert store.latest is None


def test_noise_belongs_to_the_example():
    """Keys follow seed, stream, step and place, and no two of them meet."""
    place = jnp.arange(4)

    def bits(seed, name, step):
        return np.asarray(rng.normal(rng.example_keys(rng.stream(seed, name), step, place), (2,)))

    base = bits(0, "noise", 5)
    np.testing.assert_array_equal(base, bits(0, "noise", 5))
    for other in (bits(1, "noise", 5), bits(0, "caption_dropout", 5), bits(0, "noise", 6), base[::-1]):
        assert not np.any(base == other)
    again = rng.normal(rng.example_keys(rng.stream(0, "noise"), 5, place[2:3]), (2,))
    np.testing.assert_array_equal(base[2:3], again)


def test_an_average_starts_at_the_parameters_and_follows_them():
    """d = min(decay, (1 + step) / (10 + step)), written out."""
    averages = ema.EmaConfig((0.3, 0.99))
    average = start = averages.begin(jnp.float32(4.0))
    expected = 4.0
    for step in range(5):
        average = averages.update(average, jnp.float32(0.0), jnp.int32(step))
        expected *= min(0.3, (1 + step) / (10 + step))
    np.testing.assert_allclose(average["0.3"], expected, rtol=1e-5)
    np.testing.assert_allclose(averages.update(start, start["0.99"], jnp.int32(7))["0.99"], start["0.99"])


def weights(width, steps):
    """(40), each step's share of an average of a power function, in float64."""
    return np.diff((np.arange(steps + 1) / steps) ** (ema.exponent(width) + 1))


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_a_power_function_weighs_training_by_its_width(width):
    """(40), (41): the shares of steps, found by averaging the steps' own unit vectors, and their standard deviation."""
    averages, n = ema.EmaConfig(widths=(width,)), 300
    update = jax.jit(lambda average, step: averages.update(average, jnp.eye(n)[step], step))
    average = averages.begin(jnp.ones(n))  # where it begins is forgotten with the first step
    for step in range(n):
        average = update(average, jnp.int32(step))
    np.testing.assert_allclose(average[f"width={width}"], weights(width, n), atol=2e-6)
    shares, times = weights(width, 20_000), np.arange(1, 20_001) / 20_000
    found = np.sqrt(np.sum(shares * times**2) - np.sum(shares * times) ** 2)
    np.testing.assert_allclose(found, width, rtol=1e-3)


def test_any_width_is_made_of_snapshots_of_two():
    """(42): one that was kept is itself; others are near their own profile, the nearer the more snapshots there are."""
    n, off = 1000, {}
    for every in (250, 50):
        kept = [(at, width) for at in range(every, n + 1, every) for width in (0.05, 0.1)]
        profiles = np.array([np.pad(weights(width, at), (0, n - at)) for at, width in kept])
        for width in (0.05, 0.07, 0.15):
            shares, said = ema.combination(kept, n, width)
            right = weights(width, n)
            off[every, width] = np.linalg.norm(shares @ profiles - right) / np.linalg.norm(right)
            assert abs(off[every, width] - said) < 0.01
            np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
        assert off[every, 0.05] < 1e-5
    assert all(off[50, width] < 0.03 and off[50, width] < off[250, width] / 2 for width in (0.07, 0.15)), off


def test_an_average_made_of_snapshots_is_the_one_that_could_have_been_kept(tmp_path):
    """Of a run that was stopped, too, whose later snapshots are made again, and the one that it was ended before."""
    train = CONFIG["train"] | {"steps": 30}
    two, three = ({"train": train, "ema": {"widths": widths}} for widths in ((0.05, 0.1), (0.05, 0.07, 0.1)))
    for name in ("two", "three"):
        (tmp_path / name).mkdir()
    right = run(tmp_path / "three", config=CONFIG | three)
    with pytest.raises(loop.Interrupted):
        run(tmp_path / "two", config=CONFIG | two, stop_at=15)
    shutil.rmtree(tmp_path / "two" / "ema_snapshots" / "16")
    stale = tmp_path / "two" / "ema_snapshots" / "18"
    shutil.copytree(tmp_path / "two" / "ema_snapshots" / "12", stale)
    run(tmp_path / "two", config=CONFIG | two)
    (tmp_path / "two" / "config.json").write_text(json.dumps(build.experiment(CONFIG | two).config))
    place = runs.first_device()
    with runs.snapshots(tmp_path / "two") as store:
        assert store.steps == list(range(2, 31, 2))
        kept = store.restore(18, place)["width=0.1"]
        before = store.restore(12, place)["width=0.1"]
    assert optax.tree.norm(jax.tree.map(jnp.subtract, kept, before)) > 1e-3
    made = runs.restore_weights(tmp_path / "two", place, average="width=0.07")
    moved, off = (
        float(optax.tree.norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), a, right.ema["width=0.07"])))
        for a in (right.params, made)
    )
    assert off < 0.03 * moved


def test_averages_weigh_by_count():
    a = metrics.from_report({"loss": jnp.float32(1), "bin": (jnp.float32(2), 3)})
    b = metrics.from_report({"loss": jnp.float32(3), "bin": (jnp.float32(6), 1)})
    assert metrics.values(metrics.merge(a, b)) == {"loss": 2.0, "bin": 3.0}
    assert metrics.values(metrics.from_report({"bin": (jnp.float32(0), 0)})) == {}
