"""The papers' formulas once more, in float64 NumPy, written from the papers; this file never imports jdiff."""

import numpy as np


def linear_alpha_bar(t, beta_start=1e-4, beta_end=0.02, timesteps=1000):
    """DDPM section 2 and 4: the product of 1 - beta_s over s = 0..t, beta from start to end in equal steps."""
    product = 1.0
    for s in range(t + 1):
        product *= 1 - (beta_start + (beta_end - beta_start) * s / (timesteps - 1))
    return product


def gaussian_posterior(alpha_bar_t, alpha_bar_s, xt, x0):
    """q(xs | xt, x0) by Bayes' rule from two Gaussians, precision by precision; s before t, any stride.

    xs | x0 ~ N(sqrt(ab_s) x0, 1 - ab_s) and xt | xs ~ N(sqrt(ab_t/ab_s) xs, 1 - ab_t/ab_s).
    """
    prior_mean, prior_var = np.sqrt(alpha_bar_s) * x0, 1 - alpha_bar_s
    slope, noise_var = np.sqrt(alpha_bar_t / alpha_bar_s), 1 - alpha_bar_t / alpha_bar_s
    precision = 1 / prior_var + slope**2 / noise_var
    mean = (prior_mean / prior_var + slope * xt / noise_var) / precision
    return mean, 1 / precision


def strided_moments(alpha_bars, mean, variance, *, method, eta=0.0):
    """Mean and variance of what an exact denoiser's sampler makes of N(0, 1), for data N(mean, variance).

    For Gaussian data the exact answers are affine in xt, so each step keeps the sample Gaussian, and its two
    moments follow a recursion. alpha_bars: of the timesteps visited, noisiest first; the clean image comes after.
    method "ddim" follows DDIM equations 12 and 16; "large" and "small" DDPM section 3.2.
    """
    now_mean, now_var = 0.0, 1.0
    for ab, prev in zip(alpha_bars, [*alpha_bars[1:], 1.0], strict=True):
        # E[x0 | xt] = mean + gain (xt - sqrt(ab) mean)
        gain = np.sqrt(ab) * variance / (ab * variance + 1 - ab)
        const = mean - gain * np.sqrt(ab) * mean
        if method == "ddim":
            std = eta * np.sqrt((1 - prev) / (1 - ab)) * np.sqrt(1 - ab / prev)
            # xs = sqrt(prev) x0 + sqrt(1 - prev - std^2) (xt - sqrt(ab) x0) / sqrt(1 - ab)
            lean = np.sqrt(max(1 - prev - std**2, 0.0)) / np.sqrt(1 - ab)
            slope = np.sqrt(prev) * gain + lean * (1 - np.sqrt(ab) * gain)
            offset = (np.sqrt(prev) - lean * np.sqrt(ab)) * const
            added = std**2
        else:
            beta = 1 - ab / prev
            of_x0 = np.sqrt(prev) * beta / (1 - ab)
            of_xt = np.sqrt(1 - beta) * (1 - prev) / (1 - ab)
            slope, offset = of_x0 * gain + of_xt, of_x0 * const
            added = 0.0 if prev == 1.0 else (beta if method == "large" else beta * (1 - prev) / (1 - ab))
        now_mean, now_var = slope * now_mean + offset, slope**2 * now_var + added
    return now_mean, now_var


def softmax_cross_entropy(logits, label):
    """-log of the softmax probability of one label."""
    shifted = logits - logits.max()
    return np.log(np.exp(shifted).sum()) - shifted[label]


def attention(query, key, value, mask=None, causal=False):
    """One head, row by row: softmax(q k / sqrt(d)) v. query (n, d), key and value (m, d), mask (m,)."""
    rows = []
    for i, q in enumerate(query):
        scores = key @ q / np.sqrt(len(q))
        if mask is not None:
            scores = np.where(mask, scores, -np.inf)
        if causal:
            scores = np.where(np.arange(len(key)) <= i, scores, -np.inf)
        weights = np.exp(scores - scores.max())
        rows.append(weights / weights.sum() @ value)
    return np.stack(rows)


def group_norm(x, groups, scale, bias, epsilon):
    """Each image and group of channels brought to mean 0, variance 1, in two passes. x: (b, h, w, c)."""
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias
