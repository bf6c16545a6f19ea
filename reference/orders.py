"""Order of convergence: the power of the stride that a method's error falls with, on Gaussian data N(MEAN, STD^2).

Its probability flow has a closed form, so errors are exact; all in float64. Levels are pairs of rates (alpha, sigma).
"""

import numpy as np

MEAN, STD = 0.3, 0.25
RATIO_START, RATIO_END = 3.0, 0.3  # of sigma / alpha, between which the orders are measured


def stretch(steps, *, even_in_ratio):
    """Rates of steps + 1 levels, even in sigma / alpha or else in the log SNR. Returns (alpha, sigma)."""
    if even_in_ratio:
        ratio = np.linspace(RATIO_START, RATIO_END, steps + 1)
    else:
        ratio = np.exp(np.linspace(np.log(RATIO_START), np.log(RATIO_END), steps + 1))
    alpha = 1 / np.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def flow(alpha, sigma):
    """The image at a level, on the path of the probability flow 1.3 standard deviations above the mean."""
    return MEAN * alpha + 1.3 * np.sqrt((alpha * STD) ** 2 + sigma**2)


def moments(alpha, sigma):
    """Mean and variance of the noised data at a level."""
    return MEAN * alpha, (alpha * STD) ** 2 + sigma**2


def observed_orders(errors):
    """The powers between errors of strides that are halved each time."""
    return np.log2(np.array(errors[:-1]) / errors[1:])
