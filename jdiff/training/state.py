"""What a training run is made of, as one tree: saved whole, restored whole."""

from __future__ import annotations

from typing import Any

import flax.struct
from jax import Array

Params = Any


@flax.struct.dataclass
class TrainState:
    """step: () int32, updates made.   params: what is trained.   opt_state: the optimizer's memory.

    ema: running average of ``params``, or None.   frozen: parameters that are read and never changed.
    Both are by network: "text", "vision", "unet", "autoencoder", ...
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None
    frozen: Params

    @property
    def best(self) -> Params:
        """The parameters to use, of all networks: of what is trained the average where there is one."""
        return {**self.frozen, **(self.params if self.ema is None else self.ema)}
