"""What a training run is made of, as one tree: saved whole, restored whole."""

from __future__ import annotations

from typing import Any

import flax.struct
from jax import Array

Params = Any


@flax.struct.dataclass
class TrainState:
    """step: () int32, updates made.   params: what is trained.   opt_state: the optimizer's memory.

    ema: running averages of ``params``, by name.   frozen: parameters that are read and never changed.
    used: the name of the average that is used, None for ``params`` themselves.
    Parameters are by network: "text", "vision", "unet", "autoencoder", ...
    """

    step: Array
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    frozen: Params
    used: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def best(self) -> Params:
        """The parameters to use, of all networks: of what is trained an average where there is one."""
        return {**self.frozen, **(self.params if self.used is None else self.ema[self.used])}
