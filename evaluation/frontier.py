"""What each nat of divergence bought: policies on a frontier of value against sqrt(KL), compared at equal KL.

A policy that moved further may have a higher score for the distance alone (Gao et al. 2023, arXiv 2210.10760, plot gold
reward against sqrt(KL) for that reason). So paths are compared where both have been: each path runs from its reference,
at KL 0, through its policies, straight in between, with x = sqrt(KL). A frontier that bends lies above that line: by
b (x - x0) (x1 - x) between two policies where Gao's x (a - b x) holds, and from the reference on by b x log(x1 / x)
where x (a - b log x) does. So who went further is shown as worse than it is, and as it is where a policy stands.

Pure functions of numbers, seeded, without torch. Prompts are resampled, the same ones for every policy, KL and value
together, so the uncertainty of where a policy stands is part of every interval.

P prompts, K spots of a path, R resamples, G places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.intervals import Interval, bootstrap_mean_ci, expanded_tail

Array = NDArray[np.float64]
RESAMPLES = 4000
_BLOCK = 500
"""So many resamples are worked on at a time, which bounds memory."""


@dataclass(frozen=True, slots=True)
class Spot:
    """One policy of a path: per prompt its divergence and its value, NaN where that was not measured.

    Every spot of everything that is compared has the same prompts in the same order.
    """

    kl_P: Array
    """log pi(y|x) - log ref(y|x) in nats; its mean estimates KL(pi || ref)."""
    value_P: Array

    @classmethod
    def of(cls, kl: ArrayLike, value: ArrayLike) -> Spot:
        """From anything that numpy reads as vectors of one length; what is not finite counts as not measured."""
        kl_P, value_P = (np.where(np.isfinite(v), v, np.nan) for v in (np.asarray(kl, float), np.asarray(value, float)))
        if kl_P.ndim != 1 or kl_P.shape != value_P.shape:
            raise ValueError(f"kl and value must be vectors of one length, not {kl_P.shape} and {value_P.shape}")
        return cls(kl_P, value_P)

    @property
    def kl(self) -> float:
        """Mean divergence over the prompts it was measured on."""
        return float(np.nanmean(self.kl_P)) if np.isfinite(self.kl_P).any() else np.nan

    @property
    def value(self) -> float:
        """Mean value over the prompts it was measured on."""
        return float(np.nanmean(self.value_P)) if np.isfinite(self.value_P).any() else np.nan


Path = Sequence[Spot]
"""The reference first, with a divergence of 0; the policies in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualKl:
    """Two paths at the largest divergence that both reached."""

    kl: float
    """In nats per response."""
    a: float
    b: float
    """Value of each path there."""
    difference: Interval
    """b minus a."""
    near_a: float
    near_b: float
    """Divergence of each path's policy that is nearest to there: elsewhere the path is a line, not a measurement."""


def interpolate(kl_RK: Array, value_RK: Array, kl_G: ArrayLike) -> Array:
    """Value of R paths at G divergences: piecewise linear in sqrt(KL), the last piece going on beyond the last spot.

    Args:
        kl_RK: mean divergence of each spot in nats, in any order; estimates below 0 count as 0.
        value_RK: mean value of each spot.
        kl_G: where to read the paths.

    Returns:
        (R, G). Spots at one and the same place count as their mean.
    """
    x_RK, at_G = np.sqrt(np.maximum(kl_RK, 0.0)), np.sqrt(np.maximum(np.asarray(kl_G, float), 0.0))
    order = np.argsort(x_RK, axis=1, kind="stable")
    x_RK, y_RK = np.take_along_axis(x_RK, order, 1), np.take_along_axis(np.asarray(value_RK, float), order, 1)
    if x_RK.shape[1] == 1:
        return np.repeat(y_RK, at_G.size, axis=1)
    right_RG = np.clip((x_RK[:, :, None] < at_G).sum(axis=1), 1, x_RK.shape[1] - 1)
    x0, x1 = (np.take_along_axis(x_RK, right_RG - back, 1) for back in (1, 0))
    y0, y1 = (np.take_along_axis(y_RK, right_RG - back, 1) for back in (1, 0))
    width = x1 - x0
    share = np.where(width > 0, (at_G - x0) / np.where(width > 0, width, 1.0), 0.5)
    found: Array = y0 + (y1 - y0) * share
    return found


def at_equal_kl(a: Path, b: Path, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95) -> EqualKl | None:
    """How far path b stands above path a at the largest divergence that both reached, with a paired interval.

    Returns:
        None where one of them went nowhere: a divergence that cannot be told from 0 has no place to be compared at.
    """
    if not (departs(a) and departs(b)):
        return None
    kl = min(max(spot.kl for spot in path) for path in (a, b))
    values = [float(_values(path, [kl])[0]) for path in (a, b)]
    drawn = [_resampled(path, [kl], seed, resamples)[:, 0] for path in (a, b)]
    low, high = _bounds((drawn[1] - drawn[0])[:, None], _prompts((*a, *b)), level)
    found = Interval(estimate=values[1] - values[0], low=float(low[0]), high=float(high[0]), n=_prompts((*a, *b)))
    near = [min((spot.kl for spot in path[1:]), key=lambda own: abs(_root(own) - _root(kl))) for path in (a, b)]
    return EqualKl(kl=kl, a=values[0], b=values[1], difference=found, near_a=near[0], near_b=near[1])


def band(
    path: Path, kl_G: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> list[Interval]:
    """The path's value at each divergence with its pointwise interval, for drawing."""
    low, high = _bounds(_resampled(path, kl_G, seed, resamples), _prompts(path), level)
    rows = zip(_values(path, kl_G), low, high, strict=True)
    return [Interval(estimate=float(v), low=float(lo), high=float(hi), n=_prompts(path)) for v, lo, hi in rows]


def departs(path: Path) -> bool:
    """Whether the path's furthest policy is surely apart from the reference: the interval of its KL lies above 0."""
    furthest = max(path, key=lambda spot: spot.kl if np.isfinite(spot.kl) else -np.inf)
    found = bootstrap_mean_ci(furthest.kl_P[np.isfinite(furthest.kl_P)], resamples=2000)
    return found.low is not None and found.low > 0


def _root(kl: float) -> float:
    return float(np.sqrt(max(kl, 0.0)))


def _values(path: Path, kl_G: Sequence[float]) -> Array:
    kl_1K, value_1K = (np.array([[getattr(spot, name) for spot in path]]) for name in ("kl", "value"))
    found: Array = interpolate(kl_1K, value_1K, kl_G)[0]
    return found


def _resampled(path: Path, kl_G: Sequence[float], seed: int, resamples: int) -> Array:
    """The path's values (R, G) over resampled prompts; one seed draws the same prompts for every path."""
    generator = np.random.default_rng(seed)
    prompts = path[0].kl_P.size
    kl, value = (_Columns.of([getattr(spot, name) for spot in path]) for name in ("kl_P", "value_P"))
    parts = []
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        counts_RP = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=rows).astype(float)
        parts.append(interpolate(kl.means(counts_RP), value.means(counts_RP), kl_G))
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Columns:
    """One figure of all spots, prompt by prompt, with 0 and a false mask where it was not measured."""

    value_PK: Array
    mask_PK: Array

    @classmethod
    def of(cls, columns: Sequence[Array]) -> _Columns:
        value_PK = np.stack(columns, axis=1)
        mask_PK = np.isfinite(value_PK)
        return cls(np.where(mask_PK, value_PK, 0.0), mask_PK.astype(float))

    def means(self, counts_RP: Array) -> Array:
        """Means (R, K) of resamples that hold each prompt so often; NaN where none of a figure's prompts was drawn."""
        weight_RK = counts_RP @ self.mask_PK
        found: Array = np.where(weight_RK > 0, (counts_RP @ self.value_PK) / np.maximum(weight_RK, 1.0), np.nan)
        return found


def _bounds(drawn_RG: Array, n: int, level: float) -> tuple[Any, Any]:
    tail = expanded_tail((1 - level) / 2, n) if n > 1 else (1 - level) / 2
    low, high = np.nanquantile(drawn_RG, [tail, 1 - tail], axis=0)
    return low, high


def _prompts(spots: Sequence[Spot]) -> int:
    """The fewest prompts that any figure of any spot rests on: what the width of an interval is to be judged by."""
    return min(int(np.isfinite(vector).sum()) for spot in spots for vector in (spot.kl_P, spot.value_P))
