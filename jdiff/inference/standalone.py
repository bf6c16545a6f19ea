"""Draw images from prompts with the files beside this one, which hold a whole trained sampler; needs JAX alone.

Needs jax and flatbuffers, which JAX reads its exported programs with; none of what the sampler was trained with.

    python draw.py "a red circle" "a blue star" --negative="a ring" --guidance_scale=3 --seed=7 --out=images

Words need the package tokenizers, PNG files need Pillow; ``load_exported`` needs neither:

    draw = load_exported(folder)
    images = draw(tokens, mask, negative_tokens, negative_mask, seeds)    # (b, h, w, 3) uint8
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from jax import device_put, export, jit

TYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "BOOL": np.bool_}


def tensors(path):
    """The arrays of a safetensors file by name: a header of names, types, shapes and places, then bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        body = file.read()
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def load_exported(folder, guidance_scale=None):
    """The sampler as a function of captions: (tokens, mask, negative_tokens, negative_mask, seeds) -> images.

    tokens, mask: (b, context_length) int32 and bool, true on real tokens.   seeds: (b,).   A new b compiles anew.
    guidance_scale: in place of that of settings.safetensors, where that guides.
    """
    folder = Path(folder)
    program = export.deserialize(bytearray((folder / "sampler.jax").read_bytes()))
    weights, settings = device_put(tensors(folder / "weights.safetensors")), tensors(folder / "settings.safetensors")
    if guidance_scale is not None:
        scale = settings["tableau/guidance_scale"]
        if (scale == 1).all():
            raise ValueError("guidance_scale cannot be set: the sampler was exported without guidance")
        settings["tableau/guidance_scale"] = np.where(scale != 1, np.float32(guidance_scale), scale)
    call = jit(program.call)

    def draw(tokens, mask, negative_tokens, negative_mask, seeds):
        captions = {
            "tokens": np.asarray(tokens, np.int32),
            "mask": np.asarray(mask, bool),
            "negative_tokens": np.asarray(negative_tokens, np.int32),
            "negative_mask": np.asarray(negative_mask, bool),
            "seeds": np.asarray(seeds, np.uint32),
        }
        per_image = {name: column.repeat(len(captions["seeds"]), axis=-1) for name, column in settings.items()}
        return np.asarray(call(weights, per_image, captions))

    return draw


def encoder(folder):
    """Captions to tokens and mask, as the model was trained to read them."""
    from tokenizers import Tokenizer

    layout = json.loads((Path(folder) / "captions.json").read_text())
    model = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    model.encode_special_tokens = True  # a mark in a caption is text

    def encode(captions):
        tokens = np.full((len(captions), layout["context_length"]), layout["pad"], np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, caption in enumerate(captions):
            caption = " ".join(caption.encode("utf-8", "ignore").decode().split())  # as jdiff.text.clean_text
            if layout["lowercase"]:
                caption = caption.lower()
            ids = model.encode(layout["before"] + caption if caption else "", add_special_tokens=False).ids
            room = layout["context_length"] - len(layout["start"]) - 1
            ids = [*layout["start"], *ids[:room], layout["end"]]
            tokens[i, : len(ids)] = ids
            mask[i, : len(ids)] = True
        return tokens, mask

    return encode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--guidance_scale", type=float, help="in place of the exported one")
    parser.add_argument("--seed", type=int, default=0, help="image i has seed + i")
    parser.add_argument("--out", default="images", help="directory for the images")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from runtime import setup

    setup()  # memory allocator, XLA flags and compilation cache, before JAX starts its backend
    try:
        import flatbuffers  # noqa: F401
        from PIL import Image

        encode = encoder(Path(__file__).parent)
    except ImportError as error:
        sys.exit(f"draw.py: {error.name} is not installed; this needs jax, flatbuffers, tokenizers and Pillow")
    try:
        draw = load_exported(Path(__file__).parent, arguments.guidance_scale)
    except ValueError as error:
        sys.exit(f"draw.py: {error}")
    n = len(arguments.prompts)
    images = draw(*encode(arguments.prompts), *encode([arguments.negative] * n), arguments.seed + np.arange(n))
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:06d}.png")
    print(f"wrote {folder}/000000.png to {n - 1:06d}.png")


if __name__ == "__main__":
    main()
