"""A network of points: a few dense layers, each told the time."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jdiff.models.layers import sinusoids


class MLP(nn.Module):
    """Predicts what the loss asks for, of points in place of images.

    xt: (b, d).   timestep: (b,) float.   Returns (b, d).
    """

    width: int = 128
    layers: int = 3

    @nn.compact
    def __call__(self, xt: Array, timestep: Array) -> Array:
        time = nn.silu(nn.Dense(self.width, name="time")(sinusoids(timestep, self.width)))
        x = nn.Dense(self.width, name="in")(xt)
        for i in range(self.layers):
            told = nn.silu(x + nn.Dense(self.width, name=f"told_{i}")(time))
            x = x + nn.Dense(self.width, name=f"layer_{i}")(nn.silu(nn.LayerNorm(name=f"norm_{i}")(told)))
        return nn.Dense(xt.shape[-1], kernel_init=nn.initializers.zeros, name="out")(nn.silu(x)).astype(jnp.float32)
