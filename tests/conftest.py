"""Strict switches for every test: eight devices, no silent broadcasting, no NaN, no key used twice.

Programs are compiled without LLVM's expensive optimizations, in half the time; those of tests run for milliseconds.
Between two files, a worker forgets its compiled programs and returns memory, so that it stays below 3 GiB.
"""

import ctypes
import gc
import os
import platform

import pytest

XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
flags = os.environ.get("XLA_FLAGS", "")  # a worker inherits those of the process that started it
os.environ["XLA_FLAGS"] = " ".join([flags, *(flag for flag in XLA_FLAGS if flag not in flags)]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jdiff import runtime  # noqa: E402, so that it starts with these flags

runtime.setup()

import jax  # noqa: E402, after the flags it reads

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_debug_nans", True)


@pytest.fixture(autouse=True, scope="module")
def memory_is_returned():
    yield
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":  # whose malloc keeps freed memory after ``runtime.setup``
        ctypes.CDLL(None).malloc_trim(0)
