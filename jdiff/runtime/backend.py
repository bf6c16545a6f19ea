"""What is set before JAX starts: the flags that a backend needs, and where compiled programs are kept."""

from __future__ import annotations

import os
from importlib import metadata

from etils import epath

# XLA hands single convolutions of a CPU program to a library that is slow at their gradients. An unknown flag
# ends the process, so it is set only for releases of jaxlib that were seen to know it.
CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
CPU_FLAG_RELEASES = ("0.10.", "0.12.")


def configure() -> None:
    """Set XLA's flags and the compilation cache where the environment does not. Call before JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "")
    known = metadata.version("jaxlib").startswith(CPU_FLAG_RELEASES)
    if known and "xla_cpu_experimental_ynn_fusion_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CPU_FLAG}".strip()
    cache = epath.Path("~/.cache/jdiff/compiled").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.fspath(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
