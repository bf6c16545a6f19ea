"""``python -m benchmarks weights``: memory and time of loading weights of published size. Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.claims import Claim, report
from reference import published


def measure(*, quick: bool, runs: str) -> int:
    """Load Stable Diffusion 1.5's U-Net, which no quick run does. Returns the exit status."""
    return report("weights", [] if quick else _loading(), quick=quick)


# A process of its own, so that its peak memory is that of loading alone; cached pages are dropped before each reading.
LOADING = """
import json, os, sys, time
import jax
import jax.numpy as jnp
from jdiff.interop import diffusers_weights, safetensors_files, tensors
from jdiff.models.unet import UNet
path, inputs = sys.argv[1], (jnp.zeros((1, 64, 64, 4)), jnp.zeros(1), jnp.zeros((1, 77, 768)))
shapes = {"denoiser": jax.eval_shape(UNet().init, jax.random.key(0), *inputs)["params"]}
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
jax.block_until_ready(jax.device_put(1.0, sharding))
def drop_cached_pages():
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
def seconds_to_read():
    drop_cached_pages()
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        block = bytearray(2**24)
        while file.readinto(block):
            pass
    return time.perf_counter() - start
def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
read_seconds = seconds_to_read()
drop_cached_pages()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets VmHWM, the peak
memory_at_start, start = memory("VmRSS"), time.perf_counter()
file = tensors.WeightFile(safetensors_files.scan(path), ("denoiser",), diffusers_weights.diffusers_unet(4))
weights = tensors.read_params(shapes, [file], sharding, source=path)
load_seconds = time.perf_counter() - start
peak_memory = memory("VmHWM")
read_seconds = min(read_seconds, seconds_to_read())
print(json.dumps({
    "read_seconds": read_seconds,
    "load_seconds": load_seconds,
    "memory_at_start": memory_at_start,
    "peak_memory": peak_memory,
}))
"""


def _loading() -> Iterator[Claim]:
    """Peak memory and time of loading Stable Diffusion 1.5's U-Net, beside its size and reading its bytes."""
    generator = np.random.default_rng(0)
    shapes = published.TABLES["sd15_unet"]["shapes"].items()
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "unet.safetensors"
        save_file({name: generator.standard_normal(shape, np.float32) for name, shape in shapes}, path)
        os.sync()
        size = path.stat().st_size
        process = subprocess.run([sys.executable, "-c", LOADING, str(path)], check=True, capture_output=True, text=True)
    figures = json.loads(process.stdout.splitlines()[-1])
    peak, growth = figures["peak_memory"], figures["peak_memory"] - figures["memory_at_start"]
    read_seconds, load_seconds = figures["read_seconds"], figures["load_seconds"]
    name = "Stable Diffusion 1.5's U-Net"
    note = f"({growth / 1e9:.2f} GB of {size / 1e9:.2f}; the process {peak / 1e9:.2f})"
    yield Claim(f"{name}: peak memory of loading, by its size", growth / size, 1.3, at_most=True, note=note)
    note = f"({load_seconds:.1f} s; the disk reads {size / 1e9 / read_seconds:.2f} GB/s)"
    yield Claim(f"{name}: time of loading, by that of reading the file", load_seconds / read_seconds, note=note)
