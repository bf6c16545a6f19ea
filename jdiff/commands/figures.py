"""jdiff figures: an image after some steps of the forward process, and a spiral that is learnt in a minute."""

from __future__ import annotations

from absl import flags as absl_flags

from jdiff.commands import flags
from jdiff.config.construct import nearest

USAGE = "[forward] [spiral] --out"
FIGURES = ("forward", "spiral")


def define_flags() -> None:
    from jdiff.diffusion.schedules import SCHEDULES

    absl_flags.DEFINE_string("out", "figures", "Directory for the figure.")
    absl_flags.DEFINE_enum("schedule", "linear", list(SCHEDULES), "forward: noise schedule.")
    absl_flags.DEFINE_string("image", None, "forward: image to noise (default: a scene of the shapes world).")
    flags.define_config(default=flags.config_file("spiral"))


def run(arguments: list[str]) -> None:
    names = arguments or ["forward"]
    for name in names:
        if name not in FIGURES:
            raise flags.UsageError(f"there is no figure '{name}'; {nearest(name, FIGURES)}")
    f = absl_flags.FLAGS
    if "forward" in names:
        from jdiff.figures import forward_figure

        forward_figure(f.out, schedule=f.schedule, image=f.image)
    if "spiral" in names:
        from jdiff.figures import spiral_figure
        from jdiff.tasks.points import Points

        task = flags.task()
        if not isinstance(task, Points):
            raise flags.UsageError(f"--config is of task '{task.name}', but the figure is of task 'points'")
        spiral_figure(task, f.out)
