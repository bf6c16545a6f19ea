"""The spiral of points."""

import numpy as np

from jdiff.data.spiral import distances, spiral_points


def test_points_are_evenly_spaced_and_centred():
    points = spiral_points(1000, turns=2.0)
    assert points.shape == (1000, 2)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.01)
    angle = np.unwrap(np.arctan2(*(points - (points[0] - [0.15, 0])).T[::-1]))  # about the spiral's centre
    np.testing.assert_allclose(angle[-1] - angle[0], 4 * np.pi, atol=0.05)


def test_distances_are_to_the_nearest_point():
    points = np.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(distances(points, np.array([[0.0, 1.0], [9.0, 9.0]])), [1.0, np.sqrt(18)])
