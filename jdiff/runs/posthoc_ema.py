"""Post-hoc EMA: an average of any width, fitted after training to those that were kept [edm2 sec. 3.2]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from jdiff.config.construct import ConfigError
from jdiff.training import ema
from jdiff.training.checkpoint import Snapshots

MAX_ERROR = 0.1  # of a profile, as a share of its norm, above which a fit is refused


def posthoc_ema(
    workdir: epath.PathLike,
    snapshots: Snapshots,
    name: str,
    names: Sequence[str],
    step: int,
    newest: dict[str, Any],
    sharding: Sharding,
) -> Any:
    """Parameters averaged with a width that was not kept, as a sum of all EMAs that were.

    name: "width=W", of what is asked for.   names: of the EMAs that the run keeps.
    step, newest: of the newest checkpoint, and its EMAs by name.
    Raises ``ConfigError`` where the run keeps no such EMAs, or the fit is off by more than ``MAX_ERROR``.
    """
    kept_names = f"{workdir} keeps {', '.join(names) or 'no EMA'}"
    width = ema.parse_width(name)
    if width is None:
        raise ConfigError(
            f"there is no EMA {name}: {kept_names}, and {ema.WIDTH_PREFIX}W is fitted to snapshots for any W between "
            f"0 and {ema.MAX_WIDTH:.4f}"
        )
    widths = {other: ema.parse_width(other) for other in names if other.startswith(ema.WIDTH_PREFIX)}
    if not widths:
        raise ConfigError(f"{name} can only be fitted to EMAs with a width, config.ema.widths; {kept_names}")
    steps = [earlier for earlier in snapshots.steps if earlier < step] + [step]
    terms = [(at_step, other) for at_step in steps for other in widths]
    shares, error = ema.fit_profile([(at_step, widths[other]) for at_step, other in terms], step, width)
    if error > MAX_ERROR:
        raise ConfigError(
            f"{name} fitted to {len(steps) - 1} snapshots and the newest checkpoint is off by {error:.0%}; use "
            "another width, or a lower config.ema.snapshot_every when training"
        )
    print(f"{name} is fitted to {len(terms)} EMAs, its profile off by {error:.2%}")
    total = None
    for i, at_step in enumerate(steps):
        trees = newest if at_step == step else snapshots.restore(at_step, sharding)
        for share, other in zip(shares[i * len(widths) :], widths):
            term = jax.tree.map(lambda leaf, share=share: np.float64(share) * np.asarray(leaf), trees[other])
            total = term if total is None else jax.tree.map(np.add, total, term)
    return jax.tree.map(lambda leaf: jax.device_put(leaf.astype(np.float32), sharding), total)
