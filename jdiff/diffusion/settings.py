"""Sampling settings, as a user gives them, and the tableau that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from jdiff.diffusion.prediction import BLIND_AT_ZERO_SNR
from jdiff.diffusion.schedules import Schedule
from jdiff.diffusion.solvers import SOLVERS, VARIANCES
from jdiff.diffusion.spacing import SPACINGS
from jdiff.diffusion.tableau import Tableau, level_grid, with_guidance

RANGES = {  # inclusive; a number that is not listed may be any finite one
    "eta": (0, 1),
    "guidance_rescale": (0, 1),
    "apg_norm": (0, np.inf),
    "threshold_percentile": (0, 100),
}


@dataclass(frozen=True)
class Settings:
    """Sampling settings: the defaults of a config's ``sample`` section, of flags and of ``Sampler.sample``.

    solver, spacing: names in SOLVERS and SPACINGS.
    steps: sampling steps; "heun" evaluates the network twice in all but the last (2 steps - 1 NFE).
    steps_offset: added to the timesteps of leading spacing.
    final_step_to_zero: whether the last step ends at the clean image, or at timestep 0, which has a little noise.
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
        """The tableau of these settings. Raises ``ValueError`` where they contradict each other or the model.

        learned_variance: whether the network has a learned variance.
        denoising_mse: levels -> the mean over dimensions of Var[x0 | xt], which variance "analytic" needs.
        """
        for name, choices in (("solver", SOLVERS), ("spacing", SPACINGS), ("variance", VARIANCES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name, value in asdict(self).items():
            low, high = RANGES.get(name, (-np.inf, np.inf))
            if isinstance(value, (int, float)) and not (np.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} is {value:g}, expected a finite number from {low:g} to {high:g}")
        low = -np.inf if self.guidance_from is None else self.guidance_from
        high = np.inf if self.guidance_to is None else self.guidance_to
        if low > high:
            raise ValueError(f"guidance_from is {low:g}, expected at most guidance_to, which is {high:g}")
        if self.threshold_percentile and not self.clip:
            raise ValueError(
                f"threshold_percentile is {self.threshold_percentile:g}, but clip is False; set clip to True, or "
                "threshold_percentile to 0"
            )
        if not 1 <= self.steps <= schedule.timesteps:
            raise ValueError(
                f"steps is {self.steps}, expected 1 to {schedule.timesteps}, the schedule's number of timesteps"
            )
        timesteps = SPACINGS[self.spacing](schedule, self.steps)
        timesteps = timesteps + (self.steps_offset if self.spacing == "leading" else 0)
        if not self.final_step_to_zero:  # no step starts at the timestep where sampling ends
            timesteps = timesteps[timesteps > schedule.first + 1e-6 * (schedule.last - schedule.first)]
        if not len(timesteps):
            raise ValueError(
                f"steps is {self.steps}, and its only timestep is where sampling ends with final_step_to_zero=False; "
                "take more steps"
            )
        if not schedule.first <= timesteps.min() <= timesteps.max() <= schedule.last:
            raise ValueError(
                f"steps_offset is {self.steps_offset}, which makes timesteps from {timesteps.min():g} to "
                f"{timesteps.max():g}, but the schedule's are {schedule.first:g} to {schedule.last:g}"
            )
        if self.variance == "learned" and not learned_variance:
            raise ValueError("variance is 'learned', but the network was trained without learned_variance")
        grid = level_grid(schedule, timesteps, end_timestep=-1 if self.final_step_to_zero else schedule.first)
        if grid.level.alpha[0] == 0 and prediction_type in BLIND_AT_ZERO_SNR:
            raise ValueError(
                f"sampling starts at pure noise, where prediction_type {prediction_type!r} does not determine the "
                "image; set spacing to 'leading', which starts at a lower timestep"
            )
        if self.variance == "analytic" and self.solver == "ddpm" and denoising_mse is None:
            raise ValueError(
                "variance is 'analytic', but the model's denoising error was not measured; run `jdiff evaluate` on it"
            )
        solver = SOLVERS[self.solver]
        options = {"eta": self.eta, "variance": self.variance, "denoising_mse": denoising_mse}
        tableau = solver.make_tableau(grid, **{name: options[name] for name in solver.options})
        return with_guidance(tableau, self.guidance_scale, low=low, high=high)
