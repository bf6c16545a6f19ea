"""XLA flags by backend and by release of jaxlib."""

from __future__ import annotations

import os
import sys
from importlib import metadata

# On a CPU, XLA offloads single convolutions to YNNPACK, whose gradients are up to three times as slow as XLA's own. The
# flag keeps them with XLA. An unknown flag aborts the process, so a flag is set only for the releases of jaxlib whose
# library was seen to contain it.
RELEASES = {"--xla_cpu_experimental_ynn_fusion_type=-individual_convolution": ("0.10.", "0.11.", "0.12.")}


def set_flags() -> None:
    """Add to XLA_FLAGS what the installed jaxlib knows and XLA_FLAGS does not name yet.

    XLA reads the variable when JAX starts its backend. From then on it stays unchanged, because JAX also reads it for
    the keys of the compilation cache.
    """
    if _backend_started():
        return
    flags, release = os.environ.get("XLA_FLAGS", ""), metadata.version("jaxlib")
    for flag, releases in RELEASES.items():
        if release.startswith(releases) and flag.split("=")[0] not in flags:
            flags = f"{flags} {flag}".strip()
    os.environ["XLA_FLAGS"] = flags


def _backend_started() -> bool:
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge  # JAX has no public function for this; a test checks that this one exists

    return xla_bridge.backends_are_initialized()
