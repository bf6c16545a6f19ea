"""Distances between trees of arrays, by NumPy, which compiles no program for each shape."""

import jax
import numpy as np


def norm(tree):
    return float(np.linalg.norm([np.linalg.norm(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]))


def distance(a, b):
    """The norm of the difference of two trees."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), a, b))


def relative_distance(a, b):
    """The norm of the difference of two trees, relative to the norm of the second."""
    return distance(a, b) / norm(b)
