"""The over-optimisation watch: has the true quality turned while the reward that is trained on still rises?

A policy that is optimised against an imperfect reward first gains by it and then loses, although the reward goes on
rising (Gao et al. 2023, arXiv 2210.10760). What shows it is a second opinion: a score that training does not see, such
as rules on held-out prompts or another reward model. Pure functions of numbers, without torch.

With d = sqrt(KL), that paper's frontiers are d (a - b d) for best-of-n and d (a - b log d) for RL. A cubic in d comes
close to both and to steeper falls; fitted by least squares, it gives the place of the turn and how sure its fall is.

Training asks anew at every measurement, and whoever asks often enough is once told what chance made. So a turn must
show at several measurements in a row, and few measurements must show it more clearly than many: error bounds are
Student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import student

Array = NDArray[np.float64]
LEAST = 8
"""Fewer measurements show no turn that chance could not."""
_IN_A_ROW = 2
"""Measurements, the last among them, at each of which the turn must have shown."""
_SURE = 3.0
"""Standard errors by which the fitted quality must fall at the end, had they been estimated from many measurements."""
_SEEN = 2.0
"""Standard errors by which the last measurements must lie below those around the turn."""
_RISES = 2.0
"""Standard errors by which the training reward must rise from the turn on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where the held-out score turned while the training reward went on rising."""

    step: float
    """Of the highest fitted held-out score."""
    kl: float | None
    """There, in nats; None where no KL was given."""
    best: float
    """Fitted held-out score there."""
    last: float
    """Fitted held-out score at the last step."""


def watch(
    steps: Sequence[float],
    training: Sequence[float | None],
    held_out: Sequence[float | None],
    kl: Sequence[float | None] | None = None,
) -> Turn | None:
    """The turn, or None as long as none is shown.

    Args:
        steps: of the measurements, rising.
        training: reward that is trained on, at each step (the mean since the last one, for instance).
        held_out: independent score on held-out prompts; a step at which any figure is missing is left out.
        kl: divergence from the reference in nats. Without it the step itself stands for the distance.

    Returns:
        A turn only if all of this holds, for the measurements up to the last and up to each of those just before it:
        the fitted held-out score falls at the end, by more than its uncertainty; the last measurements lie below those
        around the turn; the training reward rises from the turn on.
    """
    rows = _complete(steps, training, held_out, kl)
    if rows is None:
        return None
    shown = [_turn(rows[: len(rows) - left_out], kl is not None) for left_out in range(_IN_A_ROW)]
    return None if None in shown else shown[0]


def _turn(rows: Array, kl_known: bool) -> Turn | None:
    """The turn that these measurements show by themselves."""
    at, reward, score, far = rows.T
    # Optimisation moves away from its reference: what falls back in the KL's estimate is mostly noise.
    distance = _rising(np.sqrt(np.maximum(far, 0.0))) if kl_known else at - at[0] + 1e-9
    if distance[-1] <= distance[0]:
        return None
    found = _fit(distance, score)
    if found is None:
        return None
    peak, error, fitted = found
    turn = float(np.interp(peak, distance, at))
    if not (_fell(at, score, turn, error) and _rises(at, reward, turn)):
        return None
    return Turn(
        step=turn,
        kl=float(peak**2) if kl_known else None,
        best=float(np.interp(peak, distance, fitted)),
        last=float(fitted[-1]),
    )


def mean_since(scores: Mapping[float, float | None], before: float, step: float) -> float | None:
    """Mean training reward after one measurement, up to the next; at step 0 that of the first step.

    Args:
        scores: training reward by step.
        before, step: of two measurements that follow one another.
    """
    # What was measured before the first step belongs to the reward of the first rollout, which that policy sampled.
    end = step if step > 0 else min(scores, default=0.0)
    known = [value for at, value in scores.items() if value is not None and before < at <= end]
    return sum(known) / len(known) if known else None


def _complete(
    steps: Sequence[float],
    training: Sequence[float | None],
    held_out: Sequence[float | None],
    kl: Sequence[float | None] | None,
) -> Array | None:
    """Rows of step, reward, score and KL (or step) where all are finite; None where that is too little."""
    columns = [steps, training, held_out, steps if kl is None else kl]
    rows = np.array([[np.nan if v is None else v for v in row] for row in zip(*columns, strict=True)], float)
    rows = rows[np.isfinite(rows).all(axis=1)] if len(rows) else rows
    if len(rows) < LEAST or (np.diff(rows[:, 0]) <= 0).any():
        return None
    return rows


def _rising(values: Array) -> Array:
    """The nearest series that never falls (pool adjacent violators), in least squares."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, weight = blocks.pop()
            total = blocks[-1][1] + weight
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * weight) / total, total]
    return np.concatenate([np.full(int(weight), mean) for mean, weight in blocks])


def _fit(x: Array, y: Array) -> tuple[float, float, Array] | None:
    """Where a cubic in the distance is highest, the residuals' deviation, its values; None where its end does not fall.

    The slope at the end is linear in the parameters, so its uncertainty knows nothing of where the peak was found.
    """
    scaled = x / x[-1]
    design = np.stack([scaled**power for power in range(4)], axis=1)
    inverse = np.linalg.pinv(design.T @ design)
    parameters = inverse @ design.T @ y
    free = max(len(y) - 4, 1)
    error = sqrt(float(((y - design @ parameters) ** 2).sum()) / free)
    at_end = np.array([0.0, 1.0, 2.0, 3.0])
    if float(at_end @ parameters) > -student(_SURE, free) * error * sqrt(float(at_end @ inverse @ at_end)):
        return None
    grid = np.linspace(scaled[0], 1.0, 1001)
    peak = float(grid[np.argmax(np.polynomial.polynomial.polyval(grid, parameters))]) * float(x[-1])
    return peak, error, design @ parameters


def _fell(at: Array, score: Array, turn: float, error: float) -> bool:
    """Whether the last quarter of the measurements lies below as many around the turn."""
    few = max(3, len(at) // 4)
    around = np.sort(np.argsort(np.abs(at - turn), kind="stable")[:few])
    last = np.arange(len(at) - few, len(at))
    last = last[last > around[-1]] if around[-1] >= last[0] else last
    if len(last) < 2:
        return False
    drop = float(score[around].mean() - score[last].mean())
    return drop > _SEEN * error * sqrt(1 / len(around) + 1 / len(last))


def _rises(at: Array, reward: Array, turn: float) -> bool:
    """Whether the training reward's slope from the turn on is surely above 0."""
    after = at >= turn
    if after.sum() < 3:
        return False
    x, y = at[after] - at[after].mean(), reward[after]
    slope = float((x * y).sum() / (x**2).sum())
    left = y - y.mean() - slope * x
    error = sqrt(float((left**2).sum()) / max(int(after.sum()) - 2, 1) / float((x**2).sum()))
    return slope > _RISES * error and slope > 0
