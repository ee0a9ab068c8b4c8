"""The best of several policies that were measured on the same prompts, and which others it is surely ahead of.

Whoever picks the highest of K figures picks chance along with it: the best of K equal policies always looks better than
the rest. So the intervals of all K (K - 1) / 2 differences are made to hold together, by the bootstrap of the largest
studentised deviation among them ("max-T": Westfall and Young 1993, Resampling-Based Multiple Testing, section 2.3.2);
whichever pair the choice leads to is then covered. Pure functions of numbers, seeded, without torch.

P prompts, K policies, R resamples, D differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_RESAMPLES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The policy with the highest mean, and how the others stand to it."""

    best: int
    """Of several with the very same mean the first."""
    ties: tuple[int, ...]
    """All others with the very same mean."""
    mean: float
    """Of the best, over the n prompts: too high, as it was picked for being high."""
    behind: tuple[int, ...]
    """Those that are surely below the best, among all that were tried."""
    level_with: tuple[int, ...]
    """Those of which that cannot be said."""
    n: int
    """Prompts that all policies were measured on."""


def best_of(
    columns: Sequence[Array], *, least: float = 0.0, seed: int = 0, resamples: int = _RESAMPLES, level: float = 0.95
) -> Choice | None:
    """Pick the highest mean over the prompts that all policies have a value for.

    Args:
        columns: K vectors (P,), the same prompts in the same order; NaN where a prompt was not measured.
        least: a difference of up to this is chance by other reasons, such as another seed.
        seed: of the resampling.
        resamples: R.
        level: with which all differences hold together.

    Returns:
        None where there are fewer than two policies or two prompts.
    """
    value_PK = np.stack(list(columns), axis=1) if columns else np.empty((0, 0))
    value_PK = value_PK[np.isfinite(value_PK).all(axis=1)]
    n, policies = value_PK.shape
    if n < 2 or policies < 2:
        return None
    pairs = np.array(list(combinations(range(policies), 2)))
    difference_PD = value_PK[:, pairs[:, 0]] - value_PK[:, pairs[:, 1]]
    mean_D = difference_PD.mean(axis=0)
    error_D = difference_PD.std(axis=0, ddof=1) / np.sqrt(n)
    reach = _largest_deviation(difference_PD, mean_D, seed, resamples, level)
    mean_K = value_PK.mean(axis=0)
    best = int(np.argmax(mean_K))
    ties = tuple(at for at in range(policies) if at != best and np.isclose(mean_K[at], mean_K[best], rtol=1e-9))
    behind = []
    for (one, other), mean, error in zip(pairs.tolist(), mean_D, error_D, strict=True):
        if best in (one, other) and abs(mean) > max(reach * error, least, 0.0):
            behind.append(other if best == one else one)
    level_with = tuple(at for at in range(policies) if at != best and at not in behind)
    return Choice(
        best=best, ties=ties, mean=float(mean_K[best]), behind=tuple(sorted(behind)), level_with=level_with, n=n
    )


def _largest_deviation(difference_PD: Array, mean_D: Array, seed: int, resamples: int, level: float) -> float:
    """How many standard errors the furthest of all differences strays in so many cases, each resample by its own."""
    generator = np.random.default_rng(seed)
    n = len(difference_PD)
    counts_RP = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    drawn_RD = counts_RP @ difference_PD / n
    square_RD = counts_RP @ difference_PD**2 / n
    error_RD = np.sqrt(np.maximum(square_RD - drawn_RD**2, 0.0) / (n - 1))
    # A resample in which every prompt says the same says nothing of how far a difference strays.
    known = error_RD > 1e-12
    strayed_RD = np.where(known, np.abs(drawn_RD - mean_D) / np.where(known, error_RD, 1.0), 0.0)
    return float(np.quantile(strayed_RD.max(axis=1), level))
