"""Strict switches for every test: eight devices, no silent broadcasting, no NaN, no key used twice."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jdiff import runtime

runtime.setup()

import jax  # noqa: E402, after the flags it reads

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_debug_nans", True)
