"""jdiff export: a whole sampler in files that need JAX alone."""

from __future__ import annotations

import dataclasses
import inspect
import json

import jax
import numpy as np
from etils import epath
from safetensors.numpy import save

from jdiff import runs, standalone
from jdiff.construct import ConfigError
from jdiff.interop.foreign import Hints
from jdiff.sample import named


def export(source: str, destination: str, *, hints: Hints, changes: dict, max_rows: int) -> None:
    """Write the model at ``source`` as a folder that draws by itself.

    changes: of the settings that it draws with; method.safetensors, which holds them, is data of the program.
    max_rows: the most rows that any method may take which is put in its place.
    Raises ``ConfigError`` where ``destination`` has something already.
    """
    folder = epath.Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{destination} is there already; name a directory that is not, or empty it")
    model = runs.find(source, hints)
    if model.setup.train.objective != "diffusion":
        raise ConfigError(f"{source} is a dual encoder, which cannot draw; name a text-to-image model")
    for note in model.notes:
        print(f"{source}: {note}")
    sampler = runs.sampler(model)
    sampler = dataclasses.replace(sampler, settings=dataclasses.replace(sampler.settings, **changes))
    method = sampler.method([sampler.settings], max_rows=max_rows)  # refuse impossible settings first
    print(f"writing a program of up to {method.tableau.rows} rows for any number of images, on CPU, CUDA and TPU")
    program = sampler.exported(max_rows=max_rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sampler.jax").write_bytes(program.serialize())
    for name, tree in (("weights", sampler.weights), ("method", method)):
        arrays = {path: np.asarray(leaf) for path, leaf in named(tree).items()}
        (folder / f"{name}.safetensors").write_bytes(save(arrays))
    sampler.tokenizer.save(folder / "tokenizer.json")
    (folder / "captions.json").write_text(json.dumps(sampler.tokenizer.layout(), indent=2) + "\n")
    about = {"source": source, "step": model.step, **dataclasses.asdict(sampler.settings), "jax": jax.__version__}
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "draw.py").write_text(inspect.getsource(standalone))
    print(f"wrote {folder}; `python {folder / 'draw.py'} 'a red circle'` draws, without jdiff")
