"""JAX's persistent compilation cache: compiled programs are kept in ~/.cache/jdiff/compiled for later processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DIRECTORY = "~/.cache/jdiff/compiled"
MIN_COMPILE_SECONDS = 0.5  # programs that compile faster are not kept


def enable() -> None:
    """Turn the cache on, unless the environment or ``jax.config`` has set a directory; at any time.

    The directory goes into the environment, which JAX reads when it is imported, and child processes inherit; where JAX
    is already imported, into ``jax.config`` as well.
    """
    directory = os.fspath(Path(DIRECTORY).expanduser())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", directory)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_COMPILE_SECONDS))
    if "jax" not in sys.modules:
        return
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
