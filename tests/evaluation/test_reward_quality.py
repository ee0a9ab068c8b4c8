"""Figures of a reward model: by hand, by simulation where the truth is known, and with controls that must fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evaluation.reward_quality import (
    ScoredPair,
    accuracy_by,
    calibration,
    correlation,
    pair_loss,
    pair_quality,
    shift,
)


def pair(gap: float, **values: Any) -> ScoredPair:
    defaults: dict[str, Any] = {
        "source": "a.jsonl", "family": None, "fault": None, "chosen_tokens": 5, "rejected_tokens": 5,
        "score_chosen": gap, "score_rejected": 0.0,
    }  # fmt: skip
    return ScoredPair(gap=gap, **(defaults | values))


def simulated(n: int, temperature: float = 1.0, seed: int = 0) -> np.ndarray:
    """Gaps of a model that says P(first is better) = sigmoid(temperature * gap), labels drawn from sigmoid(gap)."""
    draw = np.random.default_rng(seed)
    gaps = draw.normal(0, 1.5, n)
    first_is_better = draw.random(n) < 1 / (1 + np.exp(-gaps))
    return np.where(first_is_better, gaps, -gaps) * temperature


# Calibration


def test_calibration_by_hand():
    """Two bins of ten: |gap| 0 and log 3, so confidence 0.5 and 0.75.

    Ten ties are right by half, 0.5; of ten at 0.75 six are right, 0.6: ECE = 0.5 * 0 + 0.5 * 0.15 = 0.075. Brier:
    ten times 0.25, six times 0.0625, four times 0.5625 = 2.5 + 0.375 + 2.25 = 5.125 in 20.
    """
    found = calibration([0.0] * 10 + [math.log(3)] * 6 + [-math.log(3)] * 4, bins=2)
    assert [(one.n, one.accuracy) for one in found.reliability] == [(10, 0.5), (10, 0.6)]
    assert [one.confidence for one in found.reliability] == pytest.approx([0.5, 0.75])
    assert found.ece == pytest.approx(0.075)
    assert found.brier == pytest.approx(5.125 / 20)


@pytest.mark.parametrize("seed", range(3))
def test_a_calibrated_model_has_no_error(seed):
    """ECE below 0.02 at n = 20000. Control: the same model twice as sure of itself is wrong by far more."""
    found = calibration(simulated(20_000, seed=seed).tolist())
    assert found.ece < 0.02
    assert len(found.reliability) == 10 and sum(one.n for one in found.reliability) == 20_000
    assert calibration(simulated(20_000, temperature=2.0, seed=seed).tolist()).ece > 0.07


def test_bins_are_of_equal_width_when_pairs_are_many():
    """Confidence 0.5 to 0.55 in the first of ten bins, 0.95 to 1 in the last; the edges belong somewhere."""
    gaps = [0.0] * 1000 + [0.1] * 500 + [60.0] * 600
    found = calibration(gaps).reliability
    assert [one.n for one in found] == [1500, 600]
    assert found[1].confidence == 1.0


def test_bins_hold_ten_pairs_at_least_when_pairs_are_few():
    assert [one.n for one in calibration(np.linspace(0.1, 3, 105).tolist()).reliability] == [11] * 5 + [10] * 5
    assert [one.n for one in calibration(np.linspace(0.1, 3, 25).tolist()).reliability] == [13, 12]
    assert [one.n for one in calibration([0.3]).reliability] == [1]


def test_a_model_that_knows_nothing():
    """All ties: accuracy one half, calibrated, Brier 1/4, loss log 2."""
    found = pair_quality([pair(0.0)] * 40)
    assert found["eval_accuracy"] == 0.5 and found["eval_ties"] == 40
    assert found["ece"] == 0.0 and found["brier"] == 0.25
    assert found["eval_loss"] == pytest.approx(math.log(2))


def test_far_gaps_overflow_nowhere():
    with np.errstate(all="raise", under="ignore"):
        found = calibration([-5000.0, 5000.0])
    assert found.brier == 0.5 and found.ece == pytest.approx(0.5)
    assert pair_loss([-5000.0, 5000.0]) == 2500.0


# Accuracy and its slices


def test_ties_count_one_half():
    """Three wins, one loss, two ties of six: 4 / 6."""
    found = pair_quality([pair(gap) for gap in (1.0, 2.0, 0.5, -1.0, 0.0, 0.0)])
    assert found["eval_accuracy"] == pytest.approx(4 / 6)
    assert found["eval_ties"] == 2 and found["eval_n"] == 6
    low, high = found["eval_accuracy_ci95"]
    assert low < 4 / 6 < high
    assert accuracy_by(["b", "a", "b"], [0.0, 1.0, -1.0]) == {
        "a": {"accuracy": 1.0, "n": 1},
        "b": {"accuracy": 0.25, "n": 2},
    }


def test_slices():
    pairs = [
        pair(1.0, chosen_tokens=9, fault="terse", family="dates", source="a"),
        pair(-1.0, chosen_tokens=2, fault="terse", family="dates", source="a"),
        pair(-1.0, rejected_tokens=1, family="summary", source="b"),
        pair(1.0, source="b"),
    ]
    found = pair_quality(pairs)
    assert found["accuracy_by_length"] == {
        "equal": {"accuracy": 1.0, "n": 1},
        "longer_chosen": {"accuracy": 0.5, "n": 2},
        "shorter_chosen": {"accuracy": 0.0, "n": 1},
    }
    assert found["accuracy_by_fault"] == {
        "none named": {"accuracy": 0.5, "n": 2},
        "terse": {"accuracy": 0.5, "n": 2},
    }
    assert found["accuracy_by_source"] == {"a": {"accuracy": 0.5, "n": 2}, "b": {"accuracy": 0.5, "n": 2}}
    assert set(found["accuracy_by_family"]) == {"dates", "summary", "none named"}


def test_nothing_held_out_is_no_figure():
    """Every name is there, with None: a gate can tell that from zero."""
    found = pair_quality([])
    assert found["eval_n"] == 0 and found["eval_accuracy"] is None and found["ece"] is None
    assert {*pair_quality([pair(1.0), pair(-1.0)])} == {*found}


def test_loss_by_hand():
    """log(1 + e^-1) and log(1 + e^1)."""
    assert pair_loss([1.0, -1.0]) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2)


# Shortcuts


def test_correlation_with_length():
    """Scores that are the length have 1; both answers of each pair count; numpy agrees on any."""
    pairs = [
        pair(1.0, chosen_tokens=4, rejected_tokens=2, score_chosen=0.4, score_rejected=0.2),
        pair(2.0, chosen_tokens=9, rejected_tokens=1, score_chosen=0.9, score_rejected=0.1),
    ]
    assert pair_quality(pairs)["score_length_correlation"] == pytest.approx(1.0)
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=50), draw.normal(size=50)
    assert correlation(a.tolist(), b.tolist()) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation([1.0, 2.0], [3.0, 3.0]) is None


def test_shift_is_paired():
    """Scores that differ widely between answers but all rise by about 1: the interval is narrow."""
    before = [-100.0, 0.0, 50.0, 7.0]
    found = shift(before, [value + rise for value, rise in zip(before, (0.9, 1.0, 1.1, 1.0), strict=True)])
    assert found["shift"] == pytest.approx(1.0) and found["n"] == 4
    assert 0.7 < found["ci95"][0] < 1.0 < found["ci95"][1] < 1.3


@pytest.mark.parametrize("n", [400, 3000])
def test_calibration_is_what_scikit_learn_finds(n):
    """Brier score of either orientation, and the bins behind the calibration error, equally full or equally wide."""
    sklearn = pytest.importorskip("sklearn.calibration")
    from sklearn.metrics import brier_score_loss

    draw = np.random.default_rng(7)
    gaps = draw.normal(0.6, 1.5, n)
    found = calibration(gaps.tolist())
    turned = draw.random(n) < 0.5
    stated = 1 / (1 + np.exp(-np.where(turned, -gaps, gaps)))
    assert found.brier == pytest.approx(brier_score_loss(~turned, stated))
    right, confidence = gaps > 0, 1 / (1 + np.exp(-np.abs(gaps)))
    wide = n >= 2000
    scale = 2 * confidence - 1 if wide else confidence
    true, said = sklearn.calibration_curve(right, scale, n_bins=10, strategy="uniform" if wide else "quantile")
    assert [one.accuracy for one in found.reliability] == pytest.approx(true.tolist())
    assert [one.confidence for one in found.reliability] == pytest.approx(((said + 1) / 2 if wide else said).tolist())
    sizes = np.array([one.n for one in found.reliability])
    error = np.abs(true - ((said + 1) / 2 if wide else said))
    assert found.ece == pytest.approx(float((sizes * error).sum() / n))
