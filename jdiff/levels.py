"""Noise levels: the two rates of x_t = alpha x_0 + sigma eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

AnyArray = np.ndarray | Array
Rate = TypeVar("Rate", bound=ArrayLike)


def broadcast_like(value: ArrayLike, x: Array) -> Array:
    """One value per image, with trailing axes of one, to multiply a batch. x: (b, *dims), value: (b,) or ()."""
    value = jnp.asarray(value, x.dtype)
    return jnp.reshape(value, value.shape + (1,) * (x.ndim - value.ndim))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level(Generic[Rate]):
    """Signal and noise rates, sqrt(alpha-bar) and sqrt(1 - alpha-bar) of DDPM.

    alpha, sigma: arrays of one shape, in [0, 1]; alpha**2 + sigma**2 = 1 on variance-preserving schedules. Those of
    NumPy, Level[np.ndarray], are float64 on the host; those of JAX, Level[Array], are on the device.
    """

    alpha: Rate
    sigma: Rate

    @property
    def logsnr(self) -> AnyArray:
        """log(alpha**2 / sigma**2): falls as noise grows; infinite at the clean end, minus infinite at pure noise."""
        if isinstance(self.alpha, np.ndarray):
            with np.errstate(divide="ignore"):
                return 2 * (np.log(self.alpha) - np.log(self.sigma))
        return 2 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def broadcast_like(self, x: Array) -> Level[Array]:
        """The same rates with trailing axes of one, to multiply a batch. x: (b, *dims), rates: (b,) or ()."""
        return Level(broadcast_like(self.alpha, x), broadcast_like(self.sigma, x))
