"""How good a reward model is on held-out pairs: accuracy, calibration, and what else its score goes by.

Functions of numbers. A gap is the chosen answer's score less the rejected one's, in log-odds as in the model's loss:
the model says that the chosen answer is the better one with probability sigmoid(gap).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci, preference_accuracy
from pipeline.algorithms.bradley_terry import bradley_terry_loss

BINS = 10
_FEW = 2000
"""Below so many pairs the bins hold equally many of them instead of being equally wide."""
_LEAST_IN_BIN = 10
"""And there are fewer bins rather than fewer pairs in each: chance alone would show as error."""
_FIGURES = (
    "eval_accuracy", "eval_accuracy_ci95", "eval_loss", "eval_margin", "eval_margin_ci95", "ece", "brier",
    "reliability", "score_length_correlation",
)  # fmt: skip
_SLICES = "accuracy_by_length", "accuracy_by_fault", "accuracy_by_source", "accuracy_by_family"
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """One held-out pair as the reward model sees it."""

    source: str
    family: str | None
    fault: str | None
    chosen_tokens: int
    rejected_tokens: int
    score_chosen: float
    score_rejected: float
    gap: float
    """In log-odds; the scores may have another scale."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of similar confidence: what the model says its accuracy is, and what it is."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether the model's probabilities are true."""

    ece: float
    """Expected calibration error: the mean over pairs of |accuracy - confidence| of their bin."""
    brier: float
    """Mean of (1 - P(chosen is better))^2: 0.25 for a model that knows nothing and says so."""
    reliability: tuple[Bin, ...]


def pair_quality(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """All figures of held-out pairs under the names that results carry; None each where there are no pairs."""
    if not pairs:
        return {"eval_n": 0, "eval_ties": 0} | dict.fromkeys(_FIGURES) | {name: {} for name in _SLICES}
    gaps = [pair.gap for pair in pairs]
    accuracy, interval = preference_accuracy(gaps)
    margin = bootstrap_mean_ci(gaps)
    calibrated = calibration(gaps)
    return {
        "eval_n": len(gaps),
        "eval_accuracy": accuracy,
        "eval_accuracy_ci95": interval.bounds,
        "eval_ties": gaps.count(0.0),
        "eval_loss": pair_loss(gaps),
        "eval_margin": margin.estimate,
        "eval_margin_ci95": margin.bounds,
        "ece": calibrated.ece,
        "brier": calibrated.brier,
        "reliability": [
            {"confidence": one.confidence, "accuracy": one.accuracy, "n": one.n} for one in calibrated.reliability
        ],
        "accuracy_by_length": accuracy_by([_longer(pair) for pair in pairs], gaps),
        "accuracy_by_fault": accuracy_by([pair.fault or "none named" for pair in pairs], gaps),
        "accuracy_by_source": accuracy_by([pair.source for pair in pairs], gaps),
        "accuracy_by_family": accuracy_by([pair.family or "none named" for pair in pairs], gaps),
        "score_length_correlation": correlation(
            [score for pair in pairs for score in (pair.score_chosen, pair.score_rejected)],
            [tokens for pair in pairs for tokens in (pair.chosen_tokens, pair.rejected_tokens)],
        ),
    }


def pair_loss(gaps: Sequence[float]) -> float:
    """Mean of -log sigmoid(gap): the log-loss of the model's probabilities."""
    chosen = torch.tensor(gaps, dtype=torch.float64)
    return float(bradley_terry_loss(chosen, torch.zeros_like(chosen)).mean())


def calibration(gaps: Sequence[float], bins: int = BINS) -> Calibration:
    """Compare confidence sigmoid(|gap|) with how often the preferred answer is the chosen one; ties count one half.

    Args:
        gaps: one per pair, at least one.
        bins: of equal width between 0.5 and 1; with fewer than 2000 pairs, of equally many pairs, 10 at least.
    """
    gap = np.asarray(gaps, dtype=np.float64)
    confidence = _sigmoid(np.abs(gap))
    right = (np.sign(gap) + 1) / 2
    found = [
        Bin(float(confidence[part].mean()), float(right[part].mean()), len(part))
        for part in _parts(confidence, bins)
        if len(part)
    ]
    ece = sum(one.n * abs(one.accuracy - one.confidence) for one in found) / gap.size
    return Calibration(float(ece), float(((1 - _sigmoid(gap)) ** 2).mean()), tuple(found))


def accuracy_by(labels: Sequence[str], gaps: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Accuracy and number of pairs for each label, in the labels' alphabetic order; ties count one half."""
    groups: dict[str, list[float]] = defaultdict(list)
    for label, gap in zip(labels, gaps, strict=True):
        groups[label].append(gap)
    return {
        label: {"accuracy": float((np.sign(groups[label]) + 1).mean() / 2), "n": len(groups[label])}
        for label in sorted(groups)
    }


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / spread if spread > 0 else None


def shift(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """By how much scores rose on the same answers: mean, its 95 % interval, and how many answers."""
    found = paired_bootstrap_ci(before, after)
    return {"shift": found.estimate, "ci95": found.bounds, "n": found.n}


def _longer(pair: ScoredPair) -> str:
    gap = pair.chosen_tokens - pair.rejected_tokens
    return "longer_chosen" if gap > 0 else "shorter_chosen" if gap < 0 else "equal"


def _parts(confidence: Vector, bins: int) -> list[NDArray[np.intp]]:
    """Indices of each bin's pairs, by rising confidence."""
    if confidence.size < _FEW:
        few = min(bins, max(1, confidence.size // _LEAST_IN_BIN))
        return np.array_split(np.argsort(confidence, kind="stable"), few)
    place = np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    return [np.flatnonzero(place == number) for number in range(bins)]


def _sigmoid(gap: Vector) -> Vector:
    # From |gap|, so that nothing overflows.
    small = np.exp(-np.abs(gap))
    return np.where(gap >= 0, 1 / (1 + small), small / (1 + small))
