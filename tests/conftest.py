"""Strict switches for every test: eight devices, no silent broadcasting, no NaN, no key used twice.

Tests compile for longer than they compute. So programs are compiled without expensive optimizations, and kept in build/
for other workers, for the processes that tests start, and for the next run. Between two files, a worker forgets its
compiled programs and returns memory, so that it stays below 3 GiB. Long files come first, so that no worker waits for
another at the end.
"""

import ctypes
import gc
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest

XLA_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if metadata.version("jaxlib").startswith("0.10."):  # later ones abort at this flag
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
flags = os.environ.get("XLA_FLAGS", "")  # a worker inherits those of the process that started it
os.environ["XLA_FLAGS"] = " ".join([flags, *(flag for flag in XLA_FLAGS if flag not in flags)]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "test_programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from jdiff import runtime  # noqa: E402, so that it starts with these flags

runtime.setup()

import jax  # noqa: E402, after the flags it reads

gc.freeze()  # tracing allocates many small objects: with fewer collections it takes a fifth less time
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_debug_nans", True)


LONG_FILES = (
    "test_commands",
    "test_pins",
    "test_path",
    "test_sharding",
    "test_bucket",
    "test_vectorized",
    "test_benchmarks",
)


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def memory_is_returned():
    yield
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":  # whose malloc keeps freed memory after ``runtime.setup``
        ctypes.CDLL(None).malloc_trim(0)
