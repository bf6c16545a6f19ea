"""The papers' formulas once more, in float64 NumPy, written from the papers; this file never imports jdiff."""

from functools import partial

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
            x0_coef = np.sqrt(prev) * beta / (1 - ab)
            xt_coef = np.sqrt(1 - beta) * (1 - prev) / (1 - ab)
            slope, offset = x0_coef * gain + xt_coef, x0_coef * const
            added = 0.0 if prev == 1.0 else (beta if method == "large" else beta * (1 - prev) / (1 - ab))
        now_mean, now_var = slope * now_mean + offset, slope**2 * now_var + added
    return now_mean, now_var


def softmax_cross_entropy(logits, label):
    """-log of the softmax probability of one label."""
    shifted = logits - logits.max()
    return np.log(np.exp(shifted).sum()) - shifted[label]


def contrastive(kind, text, image, scale, bias):
    """CLIP's loss [clip fig. 3], or SigLIP's [siglip alg. 1], pair by pair. text, image (b, d)."""
    logits, b = scale * text @ image.T + bias, len(text)
    if kind == "softmax":
        ways = [softmax_cross_entropy(rows[i], i) for rows in (logits, logits.T) for i in range(b)]
        return sum(ways) / (2 * b)
    signs = 2 * np.eye(b) - 1
    return sum(np.log1p(np.exp(-signs[i, j] * logits[i, j])) for i in range(b) for j in range(b)) / b


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


def gaussian_answers(mean, std):
    """E[x0 | xt] and E[eps | xt] of data N(mean, std^2), from the regression of one normal on another."""

    def answers(x, alpha, sigma):
        total = (alpha * std) ** 2 + sigma**2
        return mean + alpha * std**2 / total * (x - alpha * mean), sigma / total * (x - alpha * mean)

    return answers


def gaussian_unknown(std):
    """Var[x0 | xt] of data of this deviation."""
    return lambda alpha, sigma: std**2 * sigma**2 / ((alpha * std) ** 2 + sigma**2)


def _ancestral(alpha, sigma, x, answers, noise, eta=0.0):
    """k-diffusion: Euler in x / alpha down to sigma_down, then up by sigma_up; eta scales sigma_up."""
    for i in range(len(alpha) - 1):
        x0, eps = answers(x, alpha[i], sigma[i])
        s, t = sigma[i] / alpha[i], sigma[i + 1] / alpha[i + 1]
        up = min(t, eta * np.sqrt(t**2 * (s**2 - t**2) / s**2))
        down = np.sqrt(t**2 - up**2)
        x = alpha[i + 1] * (x / alpha[i] + (down - s) * eps + (up * noise(i) if up else 0))
    return x


def ddpm_variances(alpha_s, sigma_s, alpha_t, sigma_t):
    """DDPM section 3.2 on a stride from s to t: the posterior's variance, and the variance of one step, beta."""
    beta = 1 - (alpha_t / alpha_s) ** 2
    return beta * sigma_s**2 / sigma_t**2, beta


def _ddpm(alpha, sigma, x, answers, noise, variance="small", unknown=None, fraction=0.5):
    """DDPM algorithm 2 on a stride, as its equation 7.

    variance: "small", "large"; "learned": Improved DDPM equation 15 of a fraction; "analytic": Analytic-DPM equation 7,
    the posterior's variance and what is unknown of x0 times the square of x0's coefficient in the mean.
    """
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        if sigma[i + 1] == 0:
            return x0
        mean, small = gaussian_posterior(alpha[i] ** 2, alpha[i + 1] ** 2, x, x0)
        _, beta = ddpm_variances(alpha[i + 1], sigma[i + 1], alpha[i], sigma[i])
        x0_coef = alpha[i + 1] * beta / sigma[i] ** 2
        chosen = {
            "small": small,
            "large": beta,
            "learned": np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(small)),
            "analytic": small + x0_coef**2 * (unknown(alpha[i], sigma[i]) if unknown else 0),
        }
        x = mean + np.sqrt(chosen[variance]) * noise(i)
    return x


def _heun(alpha, sigma, x, answers, noise):
    """EDM algorithm 1 in x / alpha, without churn."""
    y = x / alpha[0]
    for i in range(len(alpha) - 1):
        s, t = sigma[i] / alpha[i], sigma[i + 1] / alpha[i + 1]
        slope = answers(alpha[i] * y, alpha[i], sigma[i])[1]
        ahead = y + (t - s) * slope
        if t > 0:
            slope = (slope + answers(alpha[i + 1] * ahead, alpha[i + 1], sigma[i + 1])[1]) / 2
            ahead = y + (t - s) * slope
        y = ahead
    return alpha[-1] * y


def _euler_maruyama(alpha, sigma, x, answers, noise):
    """score_sde's predictor: drift -beta/2 x - beta score, beta dt summed over a stride; the last step denoises."""
    for i in range(len(alpha) - 1):
        x0, eps = answers(x, alpha[i], sigma[i])
        if sigma[i + 1] == 0:
            return x0
        beta = np.log(alpha[i + 1] ** 2 / alpha[i] ** 2)
        drift = -beta / 2 * x - beta * (-eps / sigma[i])
        x = x - drift + np.sqrt(beta) * noise(i)
    return x


def _adams_bashforth(alpha, sigma, x, answers, noise, order=4):
    """k-diffusion's LMS: each Lagrange polynomial through the last eps, integrated over sigma / alpha."""
    y, seen, ratio = x / alpha[0], [], sigma / alpha
    for i in range(len(alpha) - 1):
        seen.insert(0, answers(alpha[i] * y, alpha[i], sigma[i])[1])
        seen = seen[:order]
        for j in range(len(seen)):
            basis = np.poly1d([1.0])
            for k in range(len(seen)):
                if k != j:
                    basis *= np.poly1d([1.0, -ratio[i - k]]) / (ratio[i - j] - ratio[i - k])
            area = basis.integ()
            y = y + (area(ratio[i + 1]) - area(ratio[i])) * seen[j]
    return alpha[-1] * y


def _dpmpp_2m(alpha, sigma, x, answers, noise):
    """DPM-Solver++ algorithm 2: D = (1 + 1/2r) x_i - 1/2r x_(i-1), r = h_(i-1) / h_i; the last step is of order 1."""
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    before = None
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        h = lam[i + 1] - lam[i]
        mixed = x0
        if before is not None and np.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * mixed
        before = x0
    return x


def _dpmpp_2m_sde(alpha, sigma, x, answers, noise):
    """DPM-Solver++ section 5: SDE-DPM-Solver++(2M)."""
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    before = None
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        h = lam[i + 1] - lam[i]
        if np.isinf(h):
            return alpha[i + 1] * x0
        lost = 1 - np.exp(-2 * h)
        ahead = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * lost * x0
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            ahead = ahead + alpha[i + 1] * lost * (x0 - before) / (2 * r)
        x = ahead + sigma[i + 1] * np.sqrt(lost) * noise(i)
        before = x0
    return x


def _exponential_integral(nodes, values, low, high):
    """The integral of exp(lambda - high) times the polynomial through (nodes, values), by 40 points of Gauss."""
    at, weight = np.polynomial.legendre.leggauss(40)
    at, weight = (at + 1) / 2 * (high - low) + low, weight / 2 * (high - low)
    total = 0.0
    for j, node in enumerate(nodes):
        basis = np.prod([(at - other) / (node - other) for k, other in enumerate(nodes) if k != j], axis=0)
        total = total + np.sum(weight * np.exp(at - high) * basis) * values[j]
    return total


def _unipc(alpha, sigma, x, answers, noise, order, corrects=True):
    """UniPC algorithm 1 in its own two stages: predict, ask, correct, and predict again from what was corrected.

    Without the correction, DPM-Solver++ of as many steps as its polynomial says. B(h) = expm1(h) halves the second
    moment where two points are used to predict, or one beside the new one to correct. Orders fall towards the end.
    """
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    n = len(alpha) - 1
    seen, base, used = [], x, 0  # base: where the step began whose end x predicts
    for i in range(n):
        new = answers(x, alpha[i], sigma[i])[0]
        if corrects and used:
            h = lam[i] - lam[i - 1]
            if used == 1:
                slope = -np.expm1(-h) * (seen[0] + (new - seen[0]) / 2)
            else:
                nodes = [lam[i], *(lam[i - 1 - j] for j in range(used))]
                slope = _exponential_integral(nodes, [new, *seen[:used]], lam[i - 1], lam[i])
            x = sigma[i] / sigma[i - 1] * base + alpha[i] * slope
        seen.insert(0, new)
        base, h = x, lam[i + 1] - lam[i]
        used = min(order, i + 1, n - i) if sigma[-1] == 0 else min(order, i + 1)
        if used == 1:
            slope = -np.expm1(-h) * new
        elif used == 2:
            r = (lam[i] - lam[i - 1]) / h
            slope = -np.expm1(-h) * (new + (new - seen[1]) / (2 * r))
        else:
            slope = _exponential_integral([lam[i - j] for j in range(used)], seen[:used], lam[i], lam[i + 1])
        x = sigma[i + 1] / sigma[i] * base + alpha[i + 1] * slope
    return x


def moments_of_rows(rows, mean, std, answers, start):
    """Mean and variance of what rows of equation (9) make of a normal variable, for answers that are straight lines.

    Then all that a row reads is jointly normal: x and what rows before found, kept here as a mean and a covariance.
    rows: an object of columns xt_coef, x0_coef, eps_coef, noise_coef (n,), history_weights (n, depth), level.alpha,
        level.sigma.
    answers: of ``gaussian_answers(mean, std)``.   start: mean and variance of x.
    """
    depth = rows.history_weights.shape[1]
    m, cov = np.zeros(depth + 1), np.zeros((depth + 1, depth + 1))  # of x, and of d, latest first
    m[0], cov[0, 0] = start
    for i in range(len(rows.xt_coef)):
        ends = [answers(x, rows.level.alpha[i], rows.level.sigma[i]) for x in (0.0, 1.0)]
        at_0, at_1 = (rows.x0_coef[i] * x0 + rows.eps_coef[i] * eps for x0, eps in ends)
        told = np.zeros((depth + 1, depth + 1))  # first x and the d's after the answer, then x after the row
        told[0, 0] = 1
        told[1, 0] = at_1 - at_0
        told[2:, 1:-1] = np.eye(depth - 1)
        shift = np.zeros(depth + 1)
        shift[1] = at_0
        step = np.eye(depth + 1)
        step[0] = [rows.xt_coef[i], *rows.history_weights[i]]
        m = step @ (told @ m + shift)
        cov = step @ told @ cov @ told.T @ step.T
        cov[0, 0] += rows.noise_coef[i] ** 2
    return m[0], cov[0, 0]


# Each as (alpha (n+1,), sigma (n+1,), x, answers, noise of step i) -> x at the last level.
_LOOPS = {
    "ddpm": _ddpm,
    "ddim": _ancestral,
    "euler": partial(_ancestral, eta=0.0),
    "euler_ancestral": partial(_ancestral, eta=1.0),
    "heun": _heun,
    "euler_maruyama": _euler_maruyama,
    "plms": _adams_bashforth,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_3m": partial(_unipc, order=3, corrects=False),
    "dpmpp_2m_sde": _dpmpp_2m_sde,
    "unipc_2": partial(_unipc, order=2),
    "unipc_3": partial(_unipc, order=3),
}
_NOISY = ("euler_ancestral", "euler_maruyama", "dpmpp_2m_sde")


def solved(name, alpha, sigma, x, answers, noise, **options):
    """What a method makes of x, the options being its loop's own.

    At pure noise, an SNR below 1e-6, most have no coordinate: there all but DDPM take a step of DDIM, whose eta is 1 in
    methods with noise, and begin at the level after it.
    """
    if name == "ddpm" or alpha[0] ** 2 >= 1e-6 * sigma[0] ** 2:
        return _LOOPS[name](alpha, sigma, x, answers, noise, **options)
    x0, eps = answers(x, alpha[0], sigma[0])
    beta = 1 - (alpha[0] / alpha[1]) ** 2
    std = options.get("eta", float(name in _NOISY)) * np.sqrt(beta) * sigma[1] / sigma[0]
    x = alpha[1] * x0 + np.sqrt(max(sigma[1] ** 2 - std**2, 0)) * eps + (std * noise(0) if std else 0)
    if len(alpha) == 2:
        return x
    return _LOOPS[name](alpha[1:], sigma[1:], x, answers, lambda i: noise(i + 1), **options)
