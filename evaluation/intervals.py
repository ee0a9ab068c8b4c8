"""Uncertainty of what is measured over prompts: bootstrap intervals for means, paired differences, preference accuracy.

Pure functions of numbers, seeded and deterministic, without torch. The prompt is the unit that is resampled; whoever
has several answers to a prompt averages them first. Results go into `results.json` and from there into the report.

The intervals are bootstrap percentiles, taken a little further out when n is small ("expanded percentile interval",
Hesterberg 2015, What Teachers Should Know About the Bootstrap, section 5.3): the plain ones cover too rarely there. So
do these where a share rests on a few prompts that differ from all others: of a share of 3 % of 100, 95 % becomes 87 %.
There the interval of Clopper & Pearson (1934), which covers at least as often as it says, takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[float, float]

SHARE: Bounds = (0.0, 1.0)
"""What a share, or a win counted with ties as halves, lies within."""

_FEW = 10
"""Fewer prompts than this that differ from all others say too little for percentiles."""
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
    values: Iterable[float],
    *,
    within: Bounds | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The mean of `values` (booleans count as 0 and 1) and its bootstrap interval.

    Args:
        values: one number per prompt.
        within: the least and the greatest value that there can be, such as `SHARE`. Values that are all equal, or a
            single one, then give the exact interval of `_all_alike`, and values of which all but a few are equal that
            of `_two_values`; without it the former give the point itself, as the data show no spread and nothing else
            is known.
        seed: of the draws.
        resamples: how many draws.
        level: of confidence.
    """
    _check(resamples, level)
    sample = _finite_vector(values, "values")
    if within is not None and any(not within[0] <= value <= within[1] for value in sample):
        raise ValueError(f"values must lie within {within}")
    n = sample.size
    if n == 0:
        return Interval(estimate=None, low=None, high=None, n=0)
    if sample.min() == sample.max():
        return _all_alike(float(sample[0]), n, within, (1 - level) / 2)
    exact = None if within is None else _two_values(sample, (1 - level) / 2)
    if exact is not None and within is not None and {sample.min(), sample.max()} == set(within):
        low, high = exact
    else:
        tail = expanded_tail((1 - level) / 2, n)
        low, high = map(float, np.quantile(_resampled_means(sample, resamples, seed), [tail, 1 - tail]))
        if exact is not None:
            # A third value, which nobody has seen yet, can be: to that side the percentiles may reach further.
            low, high = min(low, exact[0]), max(high, exact[1])
    return Interval(estimate=float(sample.mean()), low=low, high=high, n=n)


def _two_values(sample: NDArray[np.float64], tail: float) -> Bounds | None:
    """The interval of Clopper & Pearson (1934) for the mean of two values, one of them rare; None where neither is.

    With a share q of the rarer value among all prompts, the mean is a straight line in q, and q is a binomial share.
    """
    usual, rare = float(sample.min()), float(sample.max())
    seen = int((sample == rare).sum())
    if seen + (sample == usual).sum() < sample.size:
        return None
    if 2 * seen > sample.size:
        usual, rare, seen = rare, usual, sample.size - seen
    if seen >= _FEW:
        return None
    ends = (usual + q * (rare - usual) for q in _binomial_share(seen, sample.size, tail))
    low, high = sorted(ends)
    return low, high


def _binomial_share(seen: int, n: int, tail: float) -> Bounds:
    """The least and the greatest share of which `seen` of n, or less (more), has at least the probability `tail`."""
    least = _crossing(lambda share: 1 - _at_most(seen - 1, n, share), tail) if seen else 0.0
    return least, 1 - _crossing(lambda rest: _at_most(seen, n, 1 - rest), tail)


def _at_most(seen: int, n: int, share: float) -> float:
    """Probability of `seen` or fewer of n."""
    return sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(seen + 1))


def _crossing(rising: Callable[[float], float], level: float) -> float:
    """Where in [0, 1] a function that rises reaches a level, by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < level else (low, middle)
    return (low + high) / 2


def _all_alike(value: float, n: int, within: Bounds | None, tail: float) -> Interval:
    """The interval for a mean of which n draws have all been `value`, where draws cannot leave `within`.

    If a share q of all prompts has this value, n draws have it with probability q^n, so q < tail^(1/n) can be ruled
    out (Clopper & Pearson 1934, at n of n); whatever is left is at worst all at one end. For a share of which all were
    0, or all 1, this is the Clopper-Pearson interval.
    """
    if within is None:
        return Interval(estimate=value, low=value, high=value, n=n)
    q = tail ** (1 / n)
    low, high = (q * value + (1 - q) * end for end in within)
    return Interval(estimate=value, low=low, high=high, n=n)


def paired_bootstrap_ci(
    a: Iterable[float],
    b: Iterable[float],
    *,
    within: Bounds | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The mean of `b - a` and its interval, where `a[i]` and `b[i]` were measured on the same prompt.

    Resampling whole prompts keeps what the two have in common out of the interval, so it is tighter than comparing two
    separate means whenever hard prompts are hard for both. `within` bounds `a` and `b`, see `bootstrap_mean_ci`.
    """
    before, after = _finite_vector(a, "a"), _finite_vector(b, "b")
    if before.size != after.size:
        raise ValueError(f"paired values must be of the same prompts: a has {before.size}, b has {after.size}")
    gaps = None if within is None else (within[0] - within[1], within[1] - within[0])
    return bootstrap_mean_ci(after - before, within=gaps, seed=seed, resamples=resamples, level=level)


def paired_ratio_ci(
    a: Iterable[tuple[float, float]],
    b: Iterable[tuple[float, float]],
    *,
    exponent: bool = False,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """The difference `b - a` of a figure that is no mean over rows but a ratio of sums, and its interval.

    Args:
        a: per row a pair (x, w); the figure is sum x / sum w.
        b: the same of another policy on the same rows, which are resampled together.
        exponent: whether the figure is exp of that, as perplexity is of nats over tokens.
        seed, resamples, level: as for `bootstrap_mean_ci`.

    Returns:
        No estimate where a sum of weights is 0.
    """
    _check(resamples, level)
    parts = [_finite_vector(column, "a and b") for rows in (a, b) for column in zip(*rows, strict=True)]
    if not parts:
        return Interval(estimate=None, low=None, high=None, n=0)
    n = parts[0].size
    if len(parts) != 4 or {part.size for part in parts} != {n}:
        raise ValueError("paired values must be of the same rows")
    if parts[1].sum() == 0 or parts[3].sum() == 0:
        return Interval(estimate=None, low=None, high=None, n=n)
    x_a, w_a, x_b, w_b = (np.append(_resampled_means(part, resamples, seed), part.mean()) for part in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        before, after = x_a / w_a, x_b / w_b
        drawn = np.exp(after) - np.exp(before) if exponent else after - before
    tail = expanded_tail((1 - level) / 2, n) if n > 1 else (1 - level) / 2
    low, high = np.nanquantile(drawn[:-1], [tail, 1 - tail])
    return Interval(estimate=float(drawn[-1]), low=float(low), high=float(high), n=n)


def preference_accuracy(
    margins: Iterable[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float | None, Interval]:
    """How often the chosen answer is preferred, from `margins` (chosen minus rejected), with its interval.

    A margin of exactly 0 counts one half, so a policy equal to its reference has 0.5, not 0.
    """
    wins = (np.sign(_finite_vector(margins, "margins")) + 1) / 2
    interval = bootstrap_mean_ci(wins, within=SHARE, seed=seed, resamples=resamples, level=level)
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
    should be Student's.
    """
    z = NormalDist().inv_cdf(1 - tail)
    return NormalDist().cdf(-sqrt(n / (n - 1)) * student(z, n - 1))


def student(z: float, freedom: int) -> float:
    """Student's quantile at the probability at which the normal one is `z`; tends to `z` as `freedom` grows.

    By its expansion in 1 / freedom (Abramowitz & Stegun 26.7.5, three terms); at z = 3, 3 % short of it for 4 degrees
    of freedom.
    """
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
