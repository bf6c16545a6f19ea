"""A residual MLP for diffusion on points: a few dense layers, each conditioned on the timestep."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jdiff.models.layers import sinusoids


class MLP(nn.Module):
    """Predicts the training target (eps, x0 or v) of noised points.

    xt: (b, d) noised points.   timestep: (b,) float.   Returns (b, d) float32.
    """

    width: int = 128  # of the hidden layers
    layers: int = 3  # residual layers

    @nn.compact
    def __call__(self, xt: Array, timestep: Array) -> Array:
        time = nn.silu(nn.Dense(self.width, name="time")(sinusoids(timestep, self.width)))
        x = nn.Dense(self.width, name="in")(xt)
        for i in range(self.layers):
            y = nn.silu(x + nn.Dense(self.width, name=f"told_{i}")(time))  # renaming it would break old checkpoints
            x = x + nn.Dense(self.width, name=f"layer_{i}")(nn.silu(nn.LayerNorm(name=f"norm_{i}")(y)))
        return nn.Dense(xt.shape[-1], kernel_init=nn.initializers.zeros, name="out")(nn.silu(x)).astype(jnp.float32)
