"""The running average of parameters that samples are drawn from [ddpm app. B]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def update(ema, params, *, step: Array, decay: float):
    """ema + (1 - d) (params - ema), where d = min(decay, (1 + step) / (10 + step)).

    The average starts at the parameters, and the short memory of its first steps lets it forget
    where they began.
    """
    now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, new: average + (1 - now) * (new - average), ema, params)
