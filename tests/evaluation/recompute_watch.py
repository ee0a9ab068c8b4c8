"""The rule of the over-optimisation watch once more, with other libraries' fits and quantiles, for the tests."""

from __future__ import annotations

import numpy as np
from scipy.stats import linregress, norm, t
from sklearn.isotonic import IsotonicRegression

LEAST, IN_A_ROW = 8, 2


def turned(steps, training, held_out, kl):
    """Step, nats, fitted score at the turn and at the end; None where one of the last two measurements shows none."""
    if len(steps) < LEAST:
        return None
    series = np.array([steps, training, held_out, kl], float)
    found = [shown(*series[:, : len(steps) - left_out]) for left_out in range(IN_A_ROW)]
    return None if None in found else found[0]


def shown(steps, training, held_out, kl):
    root = np.sqrt(np.clip(kl, 0, None))
    far = IsotonicRegression().fit_transform(np.arange(len(root)), root)
    if far[-1] <= far[0]:
        return None
    x = far / far[-1]
    powers = np.vander(x, 4, increasing=True)
    weights = np.linalg.lstsq(powers, held_out, rcond=None)[0]
    free = len(x) - 4
    error = np.sqrt(((held_out - powers @ weights) ** 2).sum() / free)
    slope = np.array([0, 1, 2, 3.0])
    spread = error * np.sqrt(slope @ np.linalg.pinv(powers.T @ powers) @ slope)
    # Student's quantile is taken from a series by the project, which lies 3 % below at worst.
    if slope @ weights > -t.ppf(norm.cdf(3.0), free) * spread:
        return None
    grid = np.linspace(x[0], 1, 20_001)
    top = grid[np.argmax(np.vander(grid, 4, increasing=True) @ weights)]
    step = np.interp(top * far[-1], far, steps)
    few = max(3, len(steps) // 4)
    around = sorted(sorted(range(len(steps)), key=lambda i: abs(steps[i] - step))[:few])
    last = [i for i in range(len(steps) - few, len(steps)) if around[-1] < len(steps) - few or i > around[-1]]
    if len(last) < 2:
        return None
    drop = np.mean(held_out[around]) - np.mean(held_out[last])
    if drop <= 2.0 * error * np.sqrt(1 / len(around) + 1 / len(last)):
        return None
    after = steps >= step
    if after.sum() < 3:
        return None
    line = linregress(steps[after], training[after])
    if line.slope <= 0 or line.slope <= 2 * line.stderr:
        return None
    fitted = powers @ weights
    return float(step), float((top * far[-1]) ** 2), float(np.interp(top, x, fitted)), float(fitted[-1])
