"""How to sample, as a user says it, and the tableau that it means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.diffusion.spacing import SPACINGS
from jdiff.diffusion.tableau import Tableau, grid, with_guidance

RANGES = {  # of other numbers, any
    "eta": (0, 1),
    "guidance_rescale": (0, 1),
    "apg_norm": (0, np.inf),
    "threshold_percentile": (0, 100),
}


@dataclass(frozen=True)
class Settings:
    """Sampling settings: the defaults of a config's ``sample`` section, of flags and of ``Sampler.sample``.

    solver, spacing: names in SOLVERS and SPACINGS.
    steps: sampling steps; "heun" evaluates the network twice in each (2 NFE a step).
    steps_offset: added to the timesteps of leading spacing.
    final_step_to_zero: whether the last step ends at the clean image, or at timestep 0, where a little noise is left.
        Stable Diffusion was released with an offset of 1 and the latter (diffusers: set_alpha_to_one=False).
    eta: DDIM's noise, from 0, none, to 1, DDPM's.   variance: DDPM's, a name in VARIANCES.
    guidance_scale: 1 is the plain conditional model.
    guidance_from, guidance_to: guidance is applied between these log SNRs; None: no bound.
    guidance_rescale, apg_parallel, apg_norm, apg_momentum: see ``guidance.Corrections``.
    clip: clip x0 to [-1, 1]; never applied to latents.
    threshold_percentile: of dynamic thresholding, 0 for none.
    """

    solver: str = "ddim"
    steps: int = 50
    spacing: str = "trailing"
    steps_offset: int = 0
    final_step_to_zero: bool = True
    eta: float = 0.0
    variance: str = "small"
    guidance_scale: float = 4.0
    guidance_from: float | None = None
    guidance_to: float | None = None
    guidance_rescale: float = 0.0
    apg_parallel: float = 1.0
    apg_norm: float | None = None
    apg_momentum: float = 0.0
    clip: bool = True
    threshold_percentile: float = 0.0

    def tableau(
        self,
        schedule: Schedule,
        prediction_type: str = "x0",
        *,
        learned_variance: bool = False,
        denoising_mse: Callable | None = None,
    ) -> Tableau:
        """The coefficients these settings ask for. Raises ``ValueError`` where they cannot be had.

        learned_variance: whether the network says one.   denoising_mse: what "analytic" needs, a function of levels.
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
        if self.threshold_percentile and not self.clip:
            raise ValueError(
                f"threshold_percentile is {self.threshold_percentile:g}, but clip is false, so nothing is thresholded"
            )
        if not 1 <= self.steps <= schedule.timesteps:
            raise ValueError(
                f"steps is {self.steps}, but it must be from 1 to {schedule.timesteps}, the schedule's timesteps"
            )
        timesteps = SPACINGS[self.spacing](schedule, self.steps)
        timesteps = timesteps + (self.steps_offset if self.spacing == "leading" else 0)
        if not self.final_step_to_zero:  # where it ends, no step begins
            timesteps = timesteps[timesteps > schedule.first + 1e-6 * (schedule.last - schedule.first)]
        if not len(timesteps):
            raise ValueError(
                f"steps is {self.steps}, and the only timestep is the last, where final_step_to_zero=False ends"
            )
        if not schedule.first <= timesteps.min() <= timesteps.max() <= schedule.last:
            raise ValueError(
                f"steps_offset is {self.steps_offset}, so the timesteps run from {timesteps.min():g} to "
                f"{timesteps.max():g}, but the schedule has {schedule.first:g} to {schedule.last:g}"
            )
        if self.variance == "learned" and not learned_variance:
            raise ValueError("variance is 'learned', but the network was not trained to say one (learned_variance)")
        visited = grid(schedule, timesteps, last=-1 if self.final_step_to_zero else schedule.first)
        if visited.level.alpha[0] == 0 and prediction_type in BLIND_AT_ZERO_SNR:
            raise ValueError(
                f"the first level is pure noise, of which a prediction of {prediction_type} says nothing; spacing "
                "'leading' starts below it"
            )
        if self.variance == "analytic" and self.solver == "ddpm" and denoising_mse is None:
            raise ValueError(
                "variance is 'analytic', but what is unknown of x0 was not measured; `jdiff evaluate` measures it"
            )
        solver = SOLVERS[self.solver]
        given = {"eta": self.eta, "variance": self.variance, "denoising_mse": denoising_mse}
        tableau = solver.rows(visited, **{name: given[name] for name in solver.options})
        return with_guidance(tableau, self.guidance_scale, low=low, high=high)
