"""The train state: one tree, saved and restored whole."""

from __future__ import annotations

from typing import Any

import flax.struct
from jax import Array

from jdiff.training.masks import merge
from jdiff.training.spikes import Health

Params = Any


@flax.struct.dataclass
class TrainState:
    """step: () int32, updates made.   params: trained parameters.   opt_state: of the optimizer.

    ema: running averages of ``params``, by name.   frozen: parameters that are not trained.
    ema_name: which average inference uses, None for ``params`` themselves.
    health: of the last steps, by which updates are skipped; None accepts all.
    Parameters are by network: "text", "vision", "denoiser", "autoencoder", ...
    """

    step: Array
    params: Params
    opt_state: Any
    ema: dict[str, Params]
    frozen: Params
    ema_name: str | None = flax.struct.field(pytree_node=False, default=None)
    health: Health | None = None

    @property
    def inference_params(self) -> Params:
        """The parameters of all networks for inference: of trained networks an EMA, if the run keeps any."""
        return merge(self.frozen, self.params if self.ema_name is None else self.ema[self.ema_name])
