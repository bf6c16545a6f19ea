"""Training and sampling at full size on one GPU: img/s, memory, reproducibility and agreement with the CPU.

On an NVIDIA GPU: CLIP B/16 and a U-Net of 300 M parameters for 64 x 64 pixels, in bfloat16, on generated shapes. On a
CPU the same code runs with tiny networks, so that a test covers it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims import Claim, report
from benchmarks.flops import products
from jdiff.data import tokenizer as tokenizers
from jdiff.data.shapes.source import Shapes
from jdiff.sharding import mesh as meshes
from jdiff.tasks import TASKS, make_task
from jdiff.tasks.task import ImageTextTask
from jdiff.tasks.text_to_image import TextToImage
from jdiff.training.state import TrainState

NUM_IMAGES = 64  # of the data that a batch repeats
TOWER = {"activation": "gelu", "causal": False}
FULL = {
    "contrastive": {
        "data": {"image_size": 224},
        "tokenizer": {"context_length": 80},
        "text": {**TOWER, "width": 512, "layers": 12, "heads": 8, "embed_dim": 512, "dtype": "bfloat16"},
        "vision": {"patch_size": 16, "width": 768, "layers": 12, "heads": 12, "embed_dim": 512, "dtype": "bfloat16"},
    },
    "text_to_image": {
        "data": {"image_size": 64},
        "denoiser": {
            "channels": (192, 384, 576, 768),
            "attention": (False, False, True, True),
            "heads": (3, 6, 9, 12),
            "pooled": True,
            "scale_shift_norm": True,
            "dtype": "bfloat16",
        },
    },
}
TINY = {
    "contrastive": {
        "data": {"image_size": 32},
        "tokenizer": {"context_length": 16},
        "text": {**TOWER, "width": 64, "layers": 1, "heads": 1, "embed_dim": 64},
        "vision": {"patch_size": 8, "width": 64, "layers": 1, "heads": 1, "embed_dim": 64},
    },
    "text_to_image": {
        "data": {"image_size": 32},
        "denoiser": {
            "channels": (32,),
            "attention": (True,),
            "heads": (1,),
            "blocks": 1,
            "groups": 16,
            "patch_size": 2,
        },
    },
}
PROBE_BATCH = 32, 8  # the batch size that is compiled to measure memory, on a GPU and on a CPU
MEMORY_SHARE = 0.9  # of a device's memory that a step may use
CPU_MEMORY = 2**24  # bytes that a step may use where a device reports no limit


def config(task: str, *, full: bool, batch_size: int) -> dict:
    """The config of the run that is measured."""
    sizes = FULL if full else TINY
    sections = {
        **sizes["contrastive"],
        **sizes[task],
        "optimizer": {"warmup_steps": 1, "learning_rate": 1e-4},
        "diffusion": {"schedule": "cosine", "prediction_type": "v"},
        "ema": {"decays": (0.999,)},
        "mesh": {"data": 1},
        "train": {"task": task, "batch_size": batch_size, "steps": 10_000},
        "sample": {"steps": 50 if full else 5, "guidance_scale": 3.0},
    }
    return {name: section for name, section in sections.items() if name in TASKS[task].sections}


def measure(*, quick: bool, runs: str) -> int:
    """Train each model for a few steps, then sample. Returns the exit status."""
    return report("gpu_check", _claims(quick), quick=quick)


def _claims(quick: bool) -> Iterator[Claim]:
    platform = jax.default_backend()
    rate = _product_rate(platform)
    yield Claim("matrix products, TFLOP a second", rate / 1e12, note="(bfloat16)" if platform == "gpu" else "(float32)")
    yield from _compare_with_cpu()
    towers, steps = {}, (10 if quick else 30) if platform == "gpu" else 3
    for name in ("contrastive", "text_to_image"):
        task, state, captions = yield from _train(name, platform, towers, steps, rate)
        towers = {"text": state.params["text"]} if name == "contrastive" else towers
    yield from _sample(task, state, captions, 64 if platform == "gpu" else 2)
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    yield Claim("peak memory, GiB", peak and peak / 2**30)


def _product_rate(platform: str) -> float:
    """Floating point operations a second of large matrix products, the best of several."""
    n, dtype = (8192, jnp.bfloat16) if platform == "gpu" else (1024, jnp.float32)
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    multiply = jax.jit(lambda a, b: a @ b)
    return 2 * n**3 / min(_seconds(lambda: multiply(a, b)) for _ in range(8))


def _seconds(work: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def task_and_examples(config: dict) -> tuple[ImageTextTask, list]:
    """A config's task and captioned images of shapes, whose captions its tokenizer is trained on."""
    task = make_task(config)
    examples = list(Shapes(train=NUM_IMAGES, image_size=task.image_size).examples("train"))
    captions = [example.captions[0] for example in examples]
    length = task.config.context_length
    return task.with_tokenizer(tokenizers.train_tokenizer(captions, vocab_size=400, context_length=length)), examples


def _train(name: str, platform: str, towers: dict, steps: int, rate: float):
    """Claims about training. Returns the task, the final state, and the captions."""
    full = platform == "gpu"
    probe_batch = PROBE_BATCH[0] if full else PROBE_BATCH[1]
    task, examples = task_and_examples(config(name, full=full, batch_size=probe_batch))
    largest = _largest_batch(_compile_step(task, autotune=False), probe_batch)
    for count in (max(largest, probe_batch), probe_batch):  # the larger, if it fits once compiled
        task, examples = task_and_examples(config(name, full=full, batch_size=count))
        start = time.perf_counter()
        program = _compile_step(task)
        compile_seconds = time.perf_counter() - start
        if _largest_batch(program, count) >= count:
            break
    memory = program.memory_analysis()
    total_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    yield Claim(f"{name} training, seconds to compile", compile_seconds)
    yield Claim(f"{name} training, images a batch", count, note=f"({total_bytes / 2**30:.2f} GiB by the compiler)")
    flash = len(re.findall(r'custom_call_target="__cudnn\$fmha', program.as_text()))
    text = f"{name} training, attention by cuDNN in the compiled step"
    yield Claim(text, float(flash), 1.0 if full else None, note="" if flash else "(XLA's products)")

    tokens, mask = task.tokenizer.encode([example.captions[0] for example in examples])
    rows = {"image": np.stack([e.image for e in examples]), "tokens": tokens, "mask": mask}
    rows = {key: np.resize(x, (count, *x.shape[1:])) for key, x in rows.items()}
    mesh, hparams = task.config.mesh.make(), task.config.hparams
    batch = meshes.place_batch(mesh, rows | {"index": np.arange(count, dtype=np.int32)})
    losses_of_runs = []
    for _ in range(2):  # both of the same seed
        state = task.initial_state(mesh, jax.tree.map(jnp.copy, towers))
        seconds, losses = [], []
        for _ in range(steps + 2):  # the first two warm up
            start = time.perf_counter()
            state, metrics = program(hparams, state, batch)
            losses.append(float(metrics["loss"].compute()))
            seconds.append(time.perf_counter() - start)
        losses_of_runs.append(losses)
    millions = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
    images = count / float(np.median(seconds[2:]))
    yield Claim(f"{name} training, images a second", images, note=f"({millions:.1f} M parameters)")
    share = images * _work(task) / rate
    yield Claim(f"{name} training, of the rate of matrix products", share)
    difference = float(np.max(np.abs(np.subtract(*losses_of_runs))))
    text = f"{name} training, largest difference of losses between two runs of a seed"
    yield Claim(text, difference, note="(0: bit-identical)")
    # The noise of the first step.
    state, metrics = program(hparams, state.replace(step=jnp.int32(0)), batch)
    fall = losses[0] - float(metrics["loss"].compute())
    yield Claim(f"{name} training, loss falls by", fall, 0.0)
    return task, state, [example.captions[0] for example in examples]


def trace_step(task: ImageTextTask) -> jax.stages.Traced:
    """The training step, traced for the config's batch."""
    b, n, side, mesh = (
        task.config.train.batch_size,
        task.config.context_length,
        task.image_size,
        task.config.mesh.make(),
    )
    shapes = {"image": ((b, side, side, 3), np.uint8), "tokens": ((b, n), np.int32)}
    shapes |= {"mask": ((b, n), bool), "index": ((b,), np.int32)}
    sharding = meshes.batch_sharding(mesh)
    rows = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}
    step = task.compiled_step(mesh)
    return step.func.trace(*step.args, task.state_like(mesh), rows)


def _compile_step(task: ImageTextTask, *, autotune: bool = True) -> jax.stages.Compiled:
    """The training step, compiled. autotune: let XLA choose kernels by timing them, which is slow."""
    options = {} if autotune else {"xla_gpu_autotune_level": 0}
    return trace_step(task).lower().compile(compiler_options=options)


def _largest_batch(program: jax.stages.Compiled, count: int) -> int:
    """The largest batch that fits, a multiple of ``count``, if temporary memory is proportional to the batch size."""
    memory = program.memory_analysis()
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", CPU_MEMORY / MEMORY_SHARE)
    # Twice the arguments: a second run's state is allocated before the first is freed.
    available = MEMORY_SHARE * limit - 2 * memory.argument_size_in_bytes
    return int(available / memory.temp_size_in_bytes) * count


def _work(task: ImageTextTask) -> float:
    """FLOPs of products for one image: the forward pass, and twice as much for the gradients of trained networks."""
    params, n, side = task.param_shapes(), task.config.context_length, task.image_size
    caption = jax.ShapeDtypeStruct((1, n), np.int32), jax.ShapeDtypeStruct((1, n), bool)
    image, time = jax.ShapeDtypeStruct((1, side, side, 3), np.float32), jax.ShapeDtypeStruct((1,), np.float32)
    networks = task.make_networks()
    if not isinstance(task, TextToImage):
        encoder = networks["encoder"]
        return 3 * products(lambda params, *xs: encoder.apply({"params": params}, *xs), params, *caption, image)
    text, denoiser = networks["text"], networks["denoiser"]

    def forward(params: dict, image, time, *caption):
        hidden, pooled = text.apply({"params": params["text"]}, *caption)
        return denoiser.apply({"params": params["denoiser"]}, image, time, hidden, caption[1], pooled)

    text_work = products(lambda params, *caption: text.apply({"params": params["text"]}, *caption), params, *caption)
    return 3 * products(forward, params, image, time, *caption) - 2 * text_work


def _compare_with_cpu() -> Iterator[Claim]:
    """A small U-Net's loss and gradient in float32, at the highest matmul precision, on the device and the CPU."""
    task, examples = task_and_examples(config("text_to_image", full=False, batch_size=8))
    params = jax.device_get(jax.jit(task.init)(task.config.train.seed))
    params = jax.tree.map(
        lambda x: x + np.float32(0.02) * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), params
    )
    tokens, mask = task.tokenizer.encode([example.captions[0] for example in examples[:8]])
    image = np.stack([example.image for example in examples[:8]]).astype(np.float32) / 127.5 - 1
    networks = task.make_networks()
    text, denoiser = networks["text"], networks["denoiser"]

    def loss(denoiser_params: dict, image, tokens, mask):
        hidden, pooled = text.apply({"params": params["text"]}, tokens, mask)
        timestep = jnp.arange(8.0) * 100
        return jnp.mean(denoiser.apply({"params": denoiser_params}, image, timestep, hidden, mask, pooled) ** 2)

    results = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_matmul_precision("highest"):
            inputs = jax.device_put((params["denoiser"], image, tokens, mask), device)
            results.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(*inputs)))
    (device_loss, device_grads), (cpu_loss, cpu_grads) = results
    yield Claim(
        "float32, relative difference of a loss from the CPU's",
        float(abs(device_loss / cpu_loss - 1)),
        1e-5,
        at_most=True,
    )
    difference, norm = (
        float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree))))
        for tree in (jax.tree.map(np.subtract, device_grads, cpu_grads), cpu_grads)
    )
    yield Claim("float32, relative difference of a gradient from the CPU's", difference / norm, 1e-4, at_most=True)


def _sample(task: TextToImage, state: TrainState, captions: list[str], count: int) -> Iterator[Claim]:
    sampler = task.model(state.inference_params)
    start = time.perf_counter()
    images = sampler.sample(captions[:count])
    yield Claim("sampling, seconds of the first call, with compilation", time.perf_counter() - start)
    start = time.perf_counter()
    same_images = sampler.sample(captions[:count])
    rate = count / (time.perf_counter() - start)
    yield Claim(f"sampling of {task.config.sample.steps} guided DDIM steps, images a second", rate)
    yield Claim("the same seed samples the same images", float(np.array_equal(images, same_images)), 1.0)
