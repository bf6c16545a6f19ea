"""jdiff train: a run, from its beginning or from where it stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jdiff import grids, runs
from jdiff.build import Experiment
from jdiff.construct import ConfigError
from jdiff.data import records
from jdiff.data.pipeline import Batches, own_groups
from jdiff.data.tokenizer import Tokenizer
from jdiff.diffusion.loss import spectrum_of
from jdiff.embed import Encoder
from jdiff.runs import Model
from jdiff.runtime import distributed
from jdiff.sharding import mesh as meshes
from jdiff.sharding import rules
from jdiff.training import loop
from jdiff.training.metrics import Writer, from_checkpoint
from jdiff.training.state import TrainState

CONFIG, DATA = "config.json", "data.json"
FITTED = 512  # training pictures that a Gaussian is fitted to, beside whose loss the loss is reported
SHOWN = {"contrastive": 64, "text_to_image": 16}  # test captions in the pictures drawn during training


def train(setup: Experiment, workdir: str) -> None:
    """Train to the config's last step, from the newest checkpoint if there is one.

    Every process of a run calls this; what is printed and written for all, one of them does.
    """
    path = epath.Path(workdir)
    setup, starts = runs.with_starts(setup, path)
    train = setup.train
    builder = setup.dataset()
    dataset = records.records(builder, "train")
    mesh = setup.mesh()
    shares = meshes.num_batch_shards(mesh)
    if train.batch_size % shares:
        raise ConfigError(f"config.train.batch_size is {train.batch_size}, which {shares} devices cannot share evenly")
    own = meshes.local_batch_shards(mesh)
    try:
        own_groups(train.batch_size, train.group, own, shares)
    except ValueError as error:
        why = f"config.train.group is {train.group}, but this process reads what its devices hold: {error}"
        raise ConfigError(why) from error
    setup.parts()  # these raise what cannot be, while nothing is written yet
    if train.task == "contrastive":
        setup.contrastive_loss()
    _check_unchanged(setup, path, builder)
    tokenizer = tokenizer_of(setup, path, starts, dataset)
    new = runs.latest_step(path) is None
    about = {"data": f"{builder.builder_config.name}, {len(dataset)}", "state of --workdir": f"{new}"}
    distributed.assert_equal_across_processes(config=json.dumps(setup.config), tokenizer=tokenizer.text, **about)
    if new:
        merged = None
        state = setup.initial_state(tokenizer, mesh, runs.starting_weights(starts, meshes.replicated(mesh)))
    show_samples = _shower(setup, tokenizer, path, builder)
    if distributed.is_primary_process():
        claim(setup, path, builder, tokenizer)
    with runs.checkpoints(path, keep=train.keep) as store:
        if not new:
            state = store.restore(setup.state_like(tokenizer, mesh))
            merged = from_checkpoint(store.restore_items(meshes.replicated(mesh), "train_metrics")["train_metrics"])
        start = int(state.step)
        if start >= train.steps:
            _say(f"{workdir} has all its {train.steps} steps already")
            return
        weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        device = mesh.devices.flat[0].device_kind
        _say(f"{train.task} training of {weights / 1e6:.2f} M parameters on {mesh.size} x {device}")
        if mesh.size > 1:
            _say(f"mesh {dict(mesh.shape)}; parameters lie on it by jdiff/sharding/rules.py:")
            _say(rules.placement_table(mesh, {**state.params, **state.frozen}))
        _say(f"steps {start} to {train.steps} of {train.batch_size} out of {len(dataset)} images; saving to {path}")
        batches = Batches(
            dataset,
            tokenizer,
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start,
            group=train.group,
            own=own,
            parts=shares,
        )
        with ExitStack() as stack:
            stack.enter_context(closing(batches))
            writer, stop = stack.enter_context(_writer(path, start)), stack.enter_context(distributed.StopSignals())
            kept = setup.every.snapshot and stack.enter_context(runs.snapshots(path, resume_step=start))
            loop.train(
                state,
                setup.step(tokenizer, spectrum(setup, dataset, state)),
                _placed(mesh, batches, train.steps_per_dispatch),
                steps=train.steps,
                every=setup.every,
                checkpoints=store,
                writer=writer,
                show_samples=partial(show_samples, writer),
                stop=stop.poll,
                snapshots=kept or None,
                steps_per_dispatch=train.steps_per_dispatch,
                merged=merged,
            )
    distributed.assert_equal_across_processes(end="of the run")  # one process may still have been drawing
    _say(f"wrote {path / 'checkpoints'}, {path / 'metrics.jsonl'} and {path / 'samples'}")


def _placed(mesh: Mesh, batches: Iterable[dict], steps_per_dispatch: int) -> Iterator[dict]:
    """Batches on a mesh, those of several steps, where these are taken at a time, one above the other."""
    if steps_per_dispatch == 1:
        yield from (meshes.place_batch(mesh, batch) for batch in batches)
    else:
        for together in zip(*[iter(batches)] * steps_per_dispatch):
            yield meshes.place_batch(mesh, jax.tree.map(lambda *rows: np.stack(rows), *together), batch_axis=1)


def _say(text: str) -> None:
    if distributed.is_primary_process():
        print(text, flush=True)


@contextmanager
def _writer(path: epath.Path, start: int) -> Iterator[Writer | None]:
    """The run's writer, on the process that writes."""
    if not distributed.is_primary_process():
        yield None
        return
    with closing(Writer(path, start_step=start)) as writer:
        yield writer


def spectrum(setup: Experiment, dataset, state: TrainState) -> np.ndarray | None:
    """The variances of a Gaussian fitted to what a U-Net works in; the first pictures stand for all."""
    if setup.train.task != "text_to_image":
        return None
    images = np.stack([dataset[i]["image"] for i in range(min(FITTED, len(dataset)))])
    found, autoencoder = images.astype(np.float32) / 127.5 - 1, setup.autoencoder()
    if autoencoder is not None:
        encode = jax.jit(lambda weights, x: autoencoder.apply({"params": weights}, x, method="encode")[0])
        weights = meshes.gather_to_local_device(setup.mesh(), state.frozen["autoencoder"])
        found = np.concatenate([encode(weights, found[i : i + 8]) for i in range(0, len(found), 8)])
    return np.asarray(multihost_utils.broadcast_one_to_all(spectrum_of(found)))  # it is a constant of the program


def _check_unchanged(setup: Experiment, path: epath.Path, builder: records.CaptionedImages) -> None:
    """See that a run that was begun had this config, on whatever mesh, and this data. Raises ``ConfigError``."""
    if (path / CONFIG).exists():
        old = json.loads((path / CONFIG).read_text())
        for key, (before, now) in sorted(_differences(old | {"mesh": {}}, setup.config | {"mesh": {}}).items()):
            raise ConfigError(
                f"{path} was begun with config.{key} = {before!r}, and now it is {now!r}; "
                "name another --workdir, or change the config back"
            )
    if (path / DATA).exists():
        before, now = json.loads((path / DATA).read_text())["name"], builder.builder_config.name
        if before != now:
            raise ConfigError(
                f"{path} was begun on the data set {before}, and config.data now makes {now}, as files have changed; "
                "name another --workdir"
            )


def tokenizer_of(setup: Experiment, path: epath.Path, starts: dict[str, Model], dataset) -> Tokenizer:
    """The run's own, or for a new run that of the text tower it begins with, or one learnt from the captions."""
    if (path / CONFIG).exists():
        return runs.saved_tokenizer(path)
    if "text" in starts:
        return starts["text"].tokenizer
    return setup.train_tokenizer(caption.decode() for i in range(len(dataset)) for caption in dataset[i]["captions"])


def claim(setup: Experiment, path: epath.Path, builder: records.CaptionedImages, tokenizer: Tokenizer) -> None:
    """Make ``path`` a run of this config, if it is none yet; its config.json is written last."""
    if not (path / CONFIG).exists():
        path.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path / "tokenizer.json")
        (path / DATA).write_text(json.dumps({"name": builder.builder_config.name}) + "\n")
        (path / CONFIG).write_text(json.dumps(setup.config, indent=2) + "\n")


def _differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple]:
    """Dotted keys whose values differ."""
    found = {}
    for key in {*old, *new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[prefix + key] = (a, b)
    return found


def _shower(setup: Experiment, tokenizer: Tokenizer, path: epath.Path, builder: records.CaptionedImages):
    """What is drawn during training: samples of fixed captions, or the similarity of captions and images.

    They are the test split's, or of data that has none, the training split's.
    """
    split = "test" if "test" in builder.info.splits else "train"
    held = records.records(builder, split)
    rows = [held[i] for i in range(min(SHOWN[setup.train.task], len(held)))]
    captions = [row["captions"][0].decode() for row in rows]

    def show(writer: Writer | None, state: TrainState) -> None:
        weights = meshes.gather_to_local_device(setup.mesh(), state.inference_params)
        if writer is None:
            return
        step = int(state.step)
        about = {"workdir": str(path), "step": step, "split": split, "captions": captions}
        if setup.train.task == "text_to_image":
            images = setup.sampler(tokenizer, weights).sample(captions, seed=0)
            picture = grids.grid(images, columns=4, scale=grids.scale_for(setup.image_size))
            about |= {"seed": 0, **dataclasses.asdict(setup.sample)}
        else:
            encoder = Encoder(tokenizer, setup.on_one_device(setup.encoder(tokenizer.vocab_size)), weights)
            images = np.stack([row["image"] for row in rows])
            similarity = encoder.embed_texts(captions) @ encoder.embed_images(images).T
            picture = grids.heat(np.asarray(similarity), cell=8)
        grids.write(path / "samples" / f"step_{step}.png", picture, about)
        writer.image(step, "samples", picture)

    return show
