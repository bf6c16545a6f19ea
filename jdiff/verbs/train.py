"""jdiff train: a run, from its beginning or from where it stopped."""

from __future__ import annotations

import json
from contextlib import closing

import jax
import numpy as np
from etils import epath

from jdiff import build, grids
from jdiff.build import Experiment
from jdiff.construct import ConfigError
from jdiff.data import records
from jdiff.data.pipeline import Batches
from jdiff.embed import Encoder
from jdiff.sharding import mesh as meshes
from jdiff.training import loop
from jdiff.training.metrics import Writer, from_checkpoint

SHOWN = {"contrastive": 64, "diffusion": 16}  # test captions in the pictures drawn during training


def train(setup: Experiment, workdir: str) -> None:
    """Train to the config's last step, from the newest checkpoint if there is one."""
    path = epath.Path(workdir)
    setup = build.with_text_of_run(setup, path)
    train = setup.train
    dataset = records.records(setup.dataset(), "train")
    mesh = setup.mesh()
    if train.batch_size % mesh.size:
        raise ConfigError(
            f"config.train.batch_size is {train.batch_size}, which {mesh.size} devices cannot share evenly"
        )
    tokenizer = _claim(setup, path, dataset)
    with build.checkpoints(path, keep=train.keep) as store:
        everywhere, merged = meshes.everywhere(mesh), None
        if train.objective == "contrastive":
            frozen = {}
        elif store.latest is None:
            frozen = build.restore_weights(setup.text_run, everywhere)[0]["text"]
        else:
            frozen = store.restore_parts(everywhere, "frozen")["frozen"]
        state = setup.initial_state(tokenizer, mesh, frozen)
        if store.latest is not None:
            state = store.restore(state)
            merged = from_checkpoint(store.restore_parts(everywhere, "averages")["averages"])
        start = int(state.step)
        if start >= train.steps:
            print(f"{workdir} has all its {train.steps} steps already")
            return
        weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        device = mesh.devices.flat[0].device_kind
        print(f"{train.objective} training of {weights / 1e6:.2f} M parameters on {mesh.size} x {device}")
        print(f"steps {start} to {train.steps} of {train.batch_size} out of {len(dataset)} images; saving to {path}")
        batches = Batches(
            dataset,
            tokenizer,
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start,
            shard=jax.process_index(),
            shards=jax.process_count(),
        )
        writer = Writer(path, start_step=start)
        with closing(batches), closing(writer):
            loop.train(
                state,
                setup.step(tokenizer),
                (meshes.place(mesh, batch) for batch in batches),
                steps=train.steps,
                every=setup.every,
                checkpoints=store,
                writer=writer,
                show_samples=_shower(setup, tokenizer, path, writer),
                merged=merged,
            )
    print(f"wrote {path / 'checkpoints'}, {path / 'metrics.jsonl'} and {path / 'samples'}", flush=True)


def _claim(setup: Experiment, path: epath.Path, dataset):
    """Make ``path`` the run of this config, with its tokenizer; a run of another config is not touched."""
    saved = path / "config.json"
    if saved.exists():
        for key, (old, new) in sorted(_differences(json.loads(saved.read_text()), setup.config).items()):
            raise ConfigError(
                f"{path} was begun with config.{key} = {old!r}, and now it is {new!r}; "
                "name another --workdir, or change the config back"
            )
        return build.saved_tokenizer(path)
    if setup.train.objective == "contrastive":
        captions = (caption.decode() for i in range(len(dataset)) for caption in dataset[i]["captions"])
        tokenizer = setup.train_tokenizer(captions)
    else:
        tokenizer = build.saved_tokenizer(setup.text_run)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path / "tokenizer.json")
    saved.write_text(json.dumps(setup.config, indent=2) + "\n")
    return tokenizer


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


def _shower(setup: Experiment, tokenizer, path: epath.Path, writer):
    """What is drawn during training: samples of fixed captions, or the similarity of captions and images."""
    held = records.records(setup.dataset(), "test")
    rows = [held[i] for i in range(min(SHOWN[setup.train.objective], len(held)))]
    captions = [row["captions"][0].decode() for row in rows]

    def show(state) -> None:
        step = int(state.step)
        if setup.train.objective == "diffusion":
            images = setup.sampler(tokenizer, state.frozen, state.best).sample(captions, seed=0)
            picture = grids.grid(images, columns=4, scale=grids.scale_for(setup.image_size))
        else:
            encoder = Encoder(tokenizer, setup.encoder(tokenizer), state.best)
            similarity = encoder.embed_texts(captions) @ encoder.embed_images(np.stack([r["image"] for r in rows])).T
            picture = grids.heat(np.asarray(similarity), cell=8)
        grids.write(
            path / "samples" / f"step_{step}.png", picture, {"workdir": str(path), "step": step, "captions": captions}
        )
        writer.image(step, "samples", picture)

    return show
