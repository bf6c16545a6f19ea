"""Loss weightings: how much an example's squared error counts, by its noise level.

Papers state a weight for an error of x0 or of eps; equation (7) of ``prediction`` turns it into that of an error in the
units of the network's prediction type, so that a weighting is the same objective in every type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array

from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR, equations
from jdiff.levels import Level

Weighting = Callable[[str, Level], Array]


def simple(prediction_type: str, level: Level) -> Array:
    """Weight 1: the plain squared error of the network's prediction [ddpm eq. 14]. level: rates (b,). Returns (b,)."""
    return jnp.ones_like(level.alpha)


def snr(prediction_type: str, level: Level) -> Array:
    """SNR in x0, which is 1 in eps: the objective of DDPM for every prediction type. As ``simple``."""
    return _weight_in_eps(prediction_type, level)


def min_snr(prediction_type: str, level: Level, *, cap: float = 5.0) -> Array:
    """min(SNR, cap) in x0: nearly clean images do not dominate the loss [minsnr eq. 5]. As ``simple``."""
    # min(1, cap / SNR) in eps, without dividing by an alpha of 0.
    limit = cap * level.sigma**2 / jnp.maximum(level.alpha**2, cap * level.sigma**2)
    return _weight_in_eps(prediction_type, level) * limit


def p2(prediction_type: str, level: Level, *, gamma: float = 1.0, k: float = 1.0) -> Array:
    """1 / (k + SNR)^gamma in eps: nearly clean images count less [p2 eq. 8]. As ``simple``."""
    return _weight_in_eps(prediction_type, level) * (level.sigma**2 / (k * level.sigma**2 + level.alpha**2)) ** gamma


def sigmoid(prediction_type: str, level: Level, *, bias: float = 0.0) -> Array:
    """S(bias - log SNR) in eps, S the logistic function [elbo sec. 5.1, without the factor of the schedule's speed]."""
    noise = jnp.exp(bias) * level.sigma**2
    return _weight_in_eps(prediction_type, level) * noise / (level.alpha**2 + noise)


def edm(prediction_type: str, level: Level, *, data_std: float = 0.5) -> Array:
    """(s^2 + d^2) / (s d)^2 in x0, s = sigma / alpha, d = data_std: weight 1 for a network with EDM's scaling
    [edm table 1]. Infinite for eps and score at pure noise, where they do not determine x0. As ``simple``."""
    _, _, det = equations(prediction_type, level)
    return (level.sigma**2 + (level.alpha * data_std) ** 2) / (data_std * det) ** 2


def root_snr(prediction_type: str, level: Level, *, floor: float = 0.1, cap: float = 2.0) -> Array:
    """sqrt(SNR) = alpha / sigma in x0, clipped to [floor, cap]; chosen by experiment, see docs/evidence/recipes.md.

    The geometric mean of weight 1 in x0 and weight 1 in eps, since |x0 error| |eps error| = (alpha / sigma)
    |x0 error|^2. The floor keeps the noisiest levels, where a scene is laid out. Infinite for eps and score at pure
    noise. As ``simple``.
    """
    root = jnp.clip(level.alpha, floor * level.sigma, cap * level.sigma)
    _, _, det = equations(prediction_type, level)
    return root * level.sigma / det**2


def _weight_in_eps(prediction_type: str, level: Level) -> Array:
    """(alpha / det)^2: the weight of a squared error in a type that equals weight 1 in eps, at pure noise too."""
    _, eps_coef, det = equations(prediction_type, level)
    if prediction_type in BLIND_AT_ZERO_SNR:  # alpha cancels
        return jnp.ones_like(level.alpha) / eps_coef**2
    return (level.alpha / det) ** 2


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "snr": snr,
    "min_snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
    "edm": edm,
    "root_snr": root_snr,
}


def select(weightings: Sequence[Weighting], index: int | Array) -> Weighting:
    """The weighting at a traced index, () int, so that vmapped runs with different weightings share one program."""

    def select_weights(prediction_type: str, level: Level) -> Array:
        return jnp.stack([weighting(prediction_type, level) for weighting in weightings])[index]

    return select_weights
