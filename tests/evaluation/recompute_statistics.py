"""Intervals and sums for the test that computes a report's numbers anew: plain code, none of it the project's."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache

import numpy as np
from scipy.stats import binomtest


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def student(tail, freedom):
    """The quantile by integrating Student's density, numerically."""
    grid = np.linspace(0, 400, 4_000_001)
    density = (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(grid[np.searchsorted(mass / mass[-1] / 2, 0.5 - tail)])


@cache
def tail(n):
    """Where percentiles of n resampled values are read."""
    return 0.5 * math.erfc(math.sqrt(n / (n - 1)) * student(0.025, n - 1) / math.sqrt(2))


def interval(values, within=None, draws=10_000):
    """Percentiles of resampled means, read a little further out for few values (Hesterberg 2015, 5.3).

    Of values that are all alike, and known to lie `within` two bounds, Clopper and Pearson's interval for n of n says
    how many others there may be; these lie at worst at a bound. Where fewer than ten differ from the rest, and all of
    them by the same, that interval says how many these may be; only between the two bounds can there be no third value.
    """
    sample = np.array(values, float)
    n = len(sample)
    if n == 1 or (sample == sample[0]).all():
        others = 1 - binomtest(n, n).proportion_ci(0.95, method="exact").low
        return [sample[0] + others * (end - sample[0]) for end in within or (sample[0], sample[0])]
    picked = np.random.default_rng(0).integers(n, size=(draws, n))
    drawn = [float(bound) for bound in np.quantile(sample[picked].mean(1), [tail(n), 1 - tail(n)])]
    ends = np.unique(sample)
    high = int((sample == ends[-1]).sum())
    if not within or len(ends) > 2 or min(high, n - high) >= 10:
        return drawn
    share = binomtest(high, n).proportion_ci(0.95, method="exact")
    exact = [float(ends[0] + q * (ends[1] - ends[0])) for q in (share.low, share.high)]
    return exact if tuple(ends) == tuple(within) else [min(drawn[0], exact[0]), max(drawn[1], exact[1])]


def measured(values, scale=1.0, n=True, within=None):
    """Mean, interval and count as the page shows them; whatever is shown in percent is a share."""
    within = within or ((0, 1) if scale == 100 else None)
    shown = [scale * float(np.mean(values)), *(scale * bound for bound in interval(values, within))]
    return [*shown, len(values)] if n else shown


def changed(before, after):
    """The mean difference with its interval; what is surely lost is told without the sign."""
    gain, low, high = measured(np.array(after) - np.array(before), n=False)
    return [-gain, -high, -low] if high < 0 else [gain, low, high]


def exact(k, n, miss):
    """Clopper and Pearson's interval of k in n; anything at all for none of none."""
    found = binomtest(k, n).proportion_ci(1 - miss, method="exact") if n else None
    return (found.low, found.high) if found else (0.0, 1.0)


def read(path, kl, picked=slice(None)):
    """A path's value at a divergence: straight between its spots, and beyond the last, in the root of the KL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        spots = sorted((max(np.nanmean(nats[picked]), 0) ** 0.5, at, np.nanmean(value[picked]))
                       for at, (nats, value) in enumerate(path))  # fmt: skip
    at = min(max(sum(x < kl**0.5 for x, *_ in spots), 1), len(spots) - 1)
    (x0, _, y0), (x1, _, y1) = spots[at - 1], spots[at]
    return y0 + (y1 - y0) * ((kl**0.5 - x0) / (x1 - x0) if x1 > x0 else 0.5)


def grams(ids, n):
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
