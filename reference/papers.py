"""The papers' formulas in float64 NumPy, written from the papers."""

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
    """Mean and variance of the samples that an exact denoiser gives from N(0, 1), for data N(mean, variance).

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
            noise_var = std**2
        else:
            beta = 1 - ab / prev
            x0_coef = np.sqrt(prev) * beta / (1 - ab)
            xt_coef = np.sqrt(1 - beta) * (1 - prev) / (1 - ab)
            slope, offset = x0_coef * gain + xt_coef, x0_coef * const
            noise_var = 0.0 if prev == 1.0 else (beta if method == "large" else beta * (1 - prev) / (1 - ab))
        now_mean, now_var = slope * now_mean + offset, slope**2 * now_var + noise_var
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
    by_group = x.reshape(b, h * w, groups, c // groups)
    mean = by_group.mean((1, 3), keepdims=True)
    variance = ((by_group - mean) ** 2).mean((1, 3), keepdims=True)
    return ((by_group - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


def gaussian_answers(mean, std):
    """E[x0 | xt] and E[eps | xt] of data N(mean, std^2), from the regression of one normal on another."""

    def answers(x, alpha, sigma):
        total = (alpha * std) ** 2 + sigma**2
        return mean + alpha * std**2 / total * (x - alpha * mean), sigma / total * (x - alpha * mean)

    return answers


def gaussian_denoising_mse(std):
    """Var[x0 | xt] of data N(mean, std^2), a function of (alpha, sigma)."""
    return lambda alpha, sigma: std**2 * sigma**2 / ((alpha * std) ** 2 + sigma**2)


def _ancestral(alpha, sigma, x, answers, noise, eta=0.0):
    """k-diffusion: Euler in x / alpha down to sigma_down, then up by sigma_up; eta scales sigma_up."""
    for i in range(len(alpha) - 1):
        x0, eps = answers(x, alpha[i], sigma[i])
        s, t = sigma[i] / alpha[i], sigma[i + 1] / alpha[i + 1]
        sigma_up = min(t, eta * np.sqrt(t**2 * (s**2 - t**2) / s**2))
        sigma_down = np.sqrt(t**2 - sigma_up**2)
        x = alpha[i + 1] * (x / alpha[i] + (sigma_down - s) * eps + (sigma_up * noise(i) if sigma_up else 0))
    return x


def ddpm_variances(alpha_s, sigma_s, alpha_t, sigma_t):
    """DDPM section 3.2 on a stride from s to t: the posterior's variance, and the variance of one step, beta."""
    beta = 1 - (alpha_t / alpha_s) ** 2
    return beta * sigma_s**2 / sigma_t**2, beta


def _ddpm(alpha, sigma, x, answers, noise, variance="small", denoising_mse=None, fraction=0.5):
    """DDPM algorithm 2 on a stride, as its equation 7.

    variance: "small", "large"; "learned": Improved DDPM equation 15 of a fraction; "analytic": Analytic-DPM equation 7,
    the posterior's variance plus Var[x0 | xt] (``denoising_mse``) times the square of x0's coefficient in the mean.
    """
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        if sigma[i + 1] == 0:
            return x0
        mean, small = gaussian_posterior(alpha[i] ** 2, alpha[i + 1] ** 2, x, x0)
        _, beta = ddpm_variances(alpha[i + 1], sigma[i + 1], alpha[i], sigma[i])
        x0_coef = alpha[i + 1] * beta / sigma[i] ** 2
        variances = {
            "small": small,
            "large": beta,
            "learned": np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(small)),
            "analytic": small + x0_coef**2 * (denoising_mse(alpha[i], sigma[i]) if denoising_mse else 0),
        }
        x = mean + np.sqrt(variances[variance]) * noise(i)
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
    y, eps_history, ratio = x / alpha[0], [], sigma / alpha
    for i in range(len(alpha) - 1):
        eps_history.insert(0, answers(alpha[i] * y, alpha[i], sigma[i])[1])
        eps_history = eps_history[:order]
        for j in range(len(eps_history)):
            basis = np.poly1d([1.0])
            for k in range(len(eps_history)):
                if k != j:
                    basis *= np.poly1d([1.0, -ratio[i - k]]) / (ratio[i - j] - ratio[i - k])
            area = basis.integ()
            y = y + (area(ratio[i + 1]) - area(ratio[i])) * eps_history[j]
    return alpha[-1] * y


def _dpmpp_2m(alpha, sigma, x, answers, noise):
    """DPM-Solver++ algorithm 2: D = (1 + 1/2r) x_i - 1/2r x_(i-1), r = h_(i-1) / h_i; the last step is of order 1."""
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    previous_x0 = None
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        h = lam[i + 1] - lam[i]
        extrapolation = x0
        if previous_x0 is not None and np.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            extrapolation = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous_x0
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * extrapolation
        previous_x0 = x0
    return x


def _dpmpp_2m_sde(alpha, sigma, x, answers, noise):
    """DPM-Solver++ section 5: SDE-DPM-Solver++(2M)."""
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    previous_x0 = None
    for i in range(len(alpha) - 1):
        x0, _ = answers(x, alpha[i], sigma[i])
        h = lam[i + 1] - lam[i]
        if np.isinf(h):
            return alpha[i + 1] * x0
        gain = 1 - np.exp(-2 * h)
        ahead = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * gain * x0
        if previous_x0 is not None:
            r = (lam[i] - lam[i - 1]) / h
            ahead = ahead + alpha[i + 1] * gain * (x0 - previous_x0) / (2 * r)
        x = ahead + sigma[i + 1] * np.sqrt(gain) * noise(i)
        previous_x0 = x0
    return x


def _exponential_integral(nodes, values, low, high):
    """The integral of exp(lambda - high) times the polynomial through (nodes, values), by 40 points of Gauss."""
    points, weight = np.polynomial.legendre.leggauss(40)
    points, weight = (points + 1) / 2 * (high - low) + low, weight / 2 * (high - low)
    total = 0.0
    for j, node in enumerate(nodes):
        basis = np.prod([(points - other) / (node - other) for k, other in enumerate(nodes) if k != j], axis=0)
        total = total + np.sum(weight * np.exp(points - high) * basis) * values[j]
    return total


def _unipc(alpha, sigma, x, answers, noise, order, corrects=True):
    """UniPC algorithm 1 in its two stages: predict, evaluate, correct, and predict again from the corrected sample.

    Without the correction, DPM-Solver++ of as many steps as its polynomial says. B(h) = expm1(h) halves the second
    moment where two points predict, or where one beside the new one corrects. Orders fall towards the end.
    """
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)
    n = len(alpha) - 1
    x0_history, base, order_used = [], x, 0  # base: the start of the step whose end x predicts
    for i in range(n):
        new = answers(x, alpha[i], sigma[i])[0]
        if corrects and order_used:
            h = lam[i] - lam[i - 1]
            if order_used == 1:
                slope = -np.expm1(-h) * (x0_history[0] + (new - x0_history[0]) / 2)
            else:
                nodes = [lam[i], *(lam[i - 1 - j] for j in range(order_used))]
                slope = _exponential_integral(nodes, [new, *x0_history[:order_used]], lam[i - 1], lam[i])
            x = sigma[i] / sigma[i - 1] * base + alpha[i] * slope
        x0_history.insert(0, new)
        base, h = x, lam[i + 1] - lam[i]
        order_used = min(order, i + 1, n - i) if sigma[-1] == 0 else min(order, i + 1)
        if order_used == 1:
            slope = -np.expm1(-h) * new
        elif order_used == 2:
            r = (lam[i] - lam[i - 1]) / h
            slope = -np.expm1(-h) * (new + (new - x0_history[1]) / (2 * r))
        else:
            slope = _exponential_integral(
                [lam[i - j] for j in range(order_used)], x0_history[:order_used], lam[i], lam[i + 1]
            )
        x = sigma[i + 1] / sigma[i] * base + alpha[i + 1] * slope
    return x


def moments_of_rows(rows, mean, std, answers, start):
    """Mean and variance of a normal variable after rows of jdiff's equation (9), for answers that are affine in x.

    Then x and the d of earlier rows are jointly normal; their mean and covariance are carried along.
    rows: an object of columns xt_coef, x0_coef, eps_coef, noise_coef (n,), history_weights (n, depth),
        level.alpha and level.sigma.
    answers: of ``gaussian_answers(mean, std)``.   start: mean and variance of x.
    """
    depth = rows.history_weights.shape[1]
    m, cov = np.zeros(depth + 1), np.zeros((depth + 1, depth + 1))  # of x, and of d, latest first
    m[0], cov[0, 0] = start
    for i in range(len(rows.xt_coef)):
        ends = [answers(x, rows.level.alpha[i], rows.level.sigma[i]) for x in (0.0, 1.0)]
        at_0, at_1 = (rows.x0_coef[i] * x0 + rows.eps_coef[i] * eps for x0, eps in ends)
        observe = np.zeros((depth + 1, depth + 1))  # first x and the d's after the answer, then x after the row
        observe[0, 0] = 1
        observe[1, 0] = at_1 - at_0
        observe[2:, 1:-1] = np.eye(depth - 1)
        shift = np.zeros(depth + 1)
        shift[1] = at_0
        step = np.eye(depth + 1)
        step[0] = [rows.xt_coef[i], *rows.history_weights[i]]
        m = step @ (observe @ m + shift)
        cov = step @ observe @ cov @ observe.T @ step.T
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
_STOCHASTIC = ("euler_ancestral", "euler_maruyama", "dpmpp_2m_sde")


def sample_path(name, alpha, sigma, x, answers, noise, **options):
    """A sample by the named method from x; options go to its loop.

    At pure noise, an SNR below 1e-6, sigma / alpha and lambda are infinite or nearly: there every method but DDPM takes
    a step of DDIM, of eta 1 if it is stochastic, and starts at the next level.
    """
    if name == "ddpm" or alpha[0] ** 2 >= 1e-6 * sigma[0] ** 2:
        return _LOOPS[name](alpha, sigma, x, answers, noise, **options)
    x0, eps = answers(x, alpha[0], sigma[0])
    beta = 1 - (alpha[0] / alpha[1]) ** 2
    std = options.get("eta", float(name in _STOCHASTIC)) * np.sqrt(beta) * sigma[1] / sigma[0]
    x = alpha[1] * x0 + np.sqrt(max(sigma[1] ** 2 - std**2, 0)) * eps + (std * noise(0) if std else 0)
    if len(alpha) == 2:
        return x
    return _LOOPS[name](alpha[1:], sigma[1:], x, answers, lambda i: noise(i + 1), **options)
