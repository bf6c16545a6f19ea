"""How to sample, as a user says it, and the tableau that it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR
from jdiff.diffusion.schedules import SPACINGS, Schedule
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.diffusion.tableau import Tableau, grid, with_guidance

RANGES = {"eta": (0, 1), "rescale": (0, 1), "norm": (0, np.inf), "percentile": (0, 100)}  # of other numbers, any


@dataclass(frozen=True)
class Settings:
    """How to sample, when the caller does not say.

    solver, spacing: names in SOLVERS and SPACINGS.   steps: of the grid; "heun" asks the network twice in each.
    offset: added to the timesteps of leading spacing.   ends_clean: whether the last step ends at the clean image, or
        at timestep 0, whose little noise stays; Stable Diffusion was shipped with 1 and the latter.
    eta: DDIM's noise, from 0, none, to 1, DDPM's.   variance: DDPM's, of VARIANCES.
    guidance_scale: 1 is the plain conditional model.   guidance_from, guidance_to: the log SNRs between which it is
        used; everywhere if not said.   rescale, parallel, norm, momentum: see ``guidance.Corrections``.
    clip: hold the clean image in [-1, 1]; never latents.   percentile: of dynamic thresholding, 0 for none.
    """

    solver: str = "ddim"
    steps: int = 50
    spacing: str = "trailing"
    offset: int = 0
    ends_clean: bool = True
    eta: float = 0.0
    variance: str = "small"
    guidance_scale: float = 4.0
    guidance_from: float | None = None
    guidance_to: float | None = None
    rescale: float = 0.0
    parallel: float = 1.0
    norm: float | None = None
    momentum: float = 0.0
    clip: bool = True
    percentile: float = 0.0

    def tableau(
        self,
        schedule: Schedule,
        prediction_type: str = "x0",
        *,
        learned_variance: bool = False,
        x0_variance: Callable | None = None,
    ) -> Tableau:
        """The coefficients these settings ask for. Raises ``ValueError`` where they cannot be had.

        learned_variance: whether the network says one.   x0_variance: what "analytic" needs, a function of levels.
        """
        if self.solver not in SOLVERS or self.spacing not in SPACINGS or self.variance not in VARIANCES:
            raise ValueError(
                f"solver, spacing and variance are {self.solver}, {self.spacing} and {self.variance}; known are "
                f"{', '.join(SOLVERS)}; {', '.join(SPACINGS)}; {', '.join(VARIANCES)}"
            )
        for name, value in asdict(self).items():
            low, high = RANGES.get(name, (-np.inf, np.inf))
            if isinstance(value, (int, float)) and not (np.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} is {value:g}, but it must be finite, and from {low:g} to {high:g}")
        low = -np.inf if self.guidance_from is None else self.guidance_from
        high = np.inf if self.guidance_to is None else self.guidance_to
        if low > high:
            raise ValueError(f"guidance_from is {low:g}, but it must not be above guidance_to, {high:g}")
        if self.percentile and not self.clip:
            raise ValueError(f"percentile is {self.percentile:g}, but clip is false, so nothing is thresholded")
        if not 1 <= self.steps <= schedule.timesteps:
            raise ValueError(
                f"steps is {self.steps}, but it must be from 1 to {schedule.timesteps}, the schedule's timesteps"
            )
        timesteps = SPACINGS[self.spacing](schedule, self.steps) + (self.offset if self.spacing == "leading" else 0)
        if not self.ends_clean:  # where it ends, no step begins
            timesteps = timesteps[timesteps > schedule.first + 1e-6 * (schedule.last - schedule.first)]
        if not len(timesteps):
            raise ValueError(f"steps is {self.steps}, and the only timestep is the last, where ends_clean=False ends")
        if not schedule.first <= timesteps.min() <= timesteps.max() <= schedule.last:
            raise ValueError(
                f"offset is {self.offset}, and so the timesteps are from {timesteps.min():g} to {timesteps.max():g}, "
                f"but there are {schedule.first:g} to {schedule.last:g}"
            )
        if self.variance == "learned" and not learned_variance:
            raise ValueError("variance is 'learned', but the network was not trained to say one (learned_variance)")
        visited = grid(schedule, timesteps, last=-1 if self.ends_clean else schedule.first)
        if visited.level.alpha[0] == 0 and prediction_type in BLIND_AT_ZERO_SNR:
            raise ValueError(
                f"the first level is pure noise, of which a prediction of {prediction_type} says nothing; spacing "
                "'leading' starts below it"
            )
        if self.variance == "analytic" and self.solver == "ddpm" and x0_variance is None:
            raise ValueError(
                "variance is 'analytic', but what is unknown of x0 was not measured; `jdiff evaluate` measures it"
            )
        solver = SOLVERS[self.solver]
        given = {"eta": self.eta, "variance": self.variance, "x0_variance": x0_variance}
        tableau = solver.rows(visited, **{name: given[name] for name in solver.options})
        return with_guidance(tableau, self.guidance_scale, low=low, high=high)
