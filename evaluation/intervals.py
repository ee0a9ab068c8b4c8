"""Uncertainty of what is measured over prompts: bootstrap intervals for means, paired differences, preference accuracy.

Pure functions of numbers, seeded and deterministic, without torch. The prompt is the unit that is resampled; whoever
has several answers to a prompt averages them first. Results go into `results.json` and from there into the report.

The intervals are bootstrap percentiles, taken a little further out when n is small ("expanded percentile interval",
Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 5.3): the plain ones cover too rarely there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_CELLS_AT_ONCE = 2_000_000
"""Bound on the resampled numbers held in memory at a time (16 MB of indices, 16 MB of values)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval; all three are None when there was nothing to measure."""

    estimate: float | None
    low: float | None
    high: float | None
    n: int
    """How many prompts (or pairs) it rests on."""

    @property
    def bounds(self) -> list[float] | None:
        """`[low, high]`, the form that `results.json` holds, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


def bootstrap_mean_ci(
    values: Iterable[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean of `values` (booleans count as 0 and 1) and its bootstrap interval.

    One value, or values that are all equal, give the point itself as interval: the data show no spread. For rates near
    0 or 1 over few prompts that is too sure of itself, so n belongs beside every interval that is shown.
    """
    _check(resamples, level)
    sample = _finite_vector(values, "values")
    n = sample.size
    if n == 0:
        return Interval(estimate=None, low=None, high=None, n=0)
    if sample.min() == sample.max():
        point = float(sample[0])
        return Interval(estimate=point, low=point, high=point, n=n)
    tail = expanded_tail((1 - level) / 2, n)
    low, high = np.quantile(_resampled_means(sample, resamples, seed), [tail, 1 - tail])
    return Interval(estimate=float(sample.mean()), low=float(low), high=float(high), n=n)


def paired_bootstrap_ci(
    a: Iterable[float], b: Iterable[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean of `b - a` and its interval, where `a[i]` and `b[i]` were measured on the same prompt.

    Resampling whole prompts keeps what the two have in common out of the interval, so it is tighter than comparing two
    separate means whenever hard prompts are hard for both.
    """
    before, after = _finite_vector(a, "a"), _finite_vector(b, "b")
    if before.size != after.size:
        raise ValueError(f"paired values must be of the same prompts: a has {before.size}, b has {after.size}")
    return bootstrap_mean_ci(after - before, seed=seed, resamples=resamples, level=level)


def preference_accuracy(
    margins: Iterable[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float | None, Interval]:
    """How often the chosen answer is preferred, from `margins` (chosen minus rejected), with its interval.

    A margin of exactly 0 counts one half, so a policy equal to its reference has 0.5, not 0.
    """
    wins = (np.sign(_finite_vector(margins, "margins")) + 1) / 2
    interval = bootstrap_mean_ci(wins, seed=seed, resamples=resamples, level=level)
    return interval.estimate, interval


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")


def _finite_vector(values: Iterable[float], name: str) -> NDArray[np.float64]:
    vector = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be one number per prompt, not an array of shape {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {vector[bad[0]]}: leave out what was not measured")
    return vector


def _resampled_means(sample: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of `resamples` draws with replacement, in blocks so that many prompts do not need much memory."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // sample.size)
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means[start : start + rows] = sample[generator.integers(sample.size, size=(rows, sample.size))].mean(axis=1)
    return means


def expanded_tail(tail: float, n: int) -> float:
    """The tail probability at which to read the bootstrap percentiles, for n >= 2 values; tends to `tail` as n grows.

    Two corrections in one: the spread of a resampled mean is too small by sqrt((n - 1) / n), and the normal quantile
    should be Student's, here by its expansion in 1 / (n - 1) (Abramowitz & Stegun 26.7.5, three terms).
    """
    z = NormalDist().inv_cdf(1 - tail)
    nu = n - 1
    student = (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
    return NormalDist().cdf(-sqrt(n / nu) * student)
