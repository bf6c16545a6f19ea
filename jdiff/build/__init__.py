"""Configs to objects: the only place that reads a config.

Every section of a config names a constructor's arguments, so an unknown key is an error, with the
nearest right one in its sentence, and no key can go unread.
"""

from jdiff.build.experiment import Experiment, experiment
from jdiff.build.points import Spiral, spiral

__all__ = ["Experiment", "Spiral", "experiment", "spiral"]
