"""Bootstrap intervals: hand cases, coverage over simulated experiments, ties, pairing, determinism."""

from __future__ import annotations

import subprocess
import sys
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.intervals import Interval, bootstrap_mean_ci, paired_bootstrap_ci, preference_accuracy


def test_nothing_measured_gives_none_not_zero():
    empty = Interval(estimate=None, low=None, high=None, n=0)
    assert bootstrap_mean_ci([]) == empty
    assert paired_bootstrap_ci([], []) == empty
    assert preference_accuracy([]) == (None, empty)
    assert empty.bounds is None


@pytest.mark.parametrize("values", [[3.5], [0.1] * 7, [True, True, True]])
def test_one_value_or_no_spread_is_the_point(values):
    point = float(values[0])
    interval = bootstrap_mean_ci(values)
    assert (interval.estimate, interval.bounds, interval.n) == (point, [point, point], len(values))


def test_bounds_are_binomial_quantiles_for_rates():
    """30 right of 100: a resampled count is Binomial(100, 0.3).

    With n = 100 the tail is read at Phi(-sqrt(100/99) * t_99(0.975)) = Phi(-1.9942) = 0.0231; the binomial's quantiles
    there are 21 and 39. 10,000 resamples leave each of them uncertain by one count at most.
    """
    pmf = [comb(100, k) * 0.3**k * 0.7 ** (100 - k) for k in range(101)]
    low, high = (int(np.searchsorted(np.cumsum(pmf), tail)) for tail in (0.0231, 1 - 0.0231))
    assert (low, high) == (21, 39)
    interval = bootstrap_mean_ci([1] * 30 + [0] * 70)
    assert interval.estimate == pytest.approx(0.3, abs=1e-12)
    assert interval.bounds == pytest.approx([0.21, 0.39], abs=0.0101)


def test_many_normal_values_agree_with_the_textbook_interval():
    values = np.random.default_rng(3).normal(5, 2, size=2000)
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    interval = bootstrap_mean_ci(values)
    assert interval.bounds == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_a_higher_level_is_a_wider_interval():
    values = np.random.default_rng(4).normal(size=50)
    narrow, wide = bootstrap_mean_ci(values, level=0.8), bootstrap_mean_ci(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("kind", "n"), [("normal", 12), ("normal", 60), ("rate", 150)])
def test_coverage_is_what_it_says(kind, n):
    """1,500 simulated experiments: a true 95 % interval lands in 93-97 % but for one such test in about 2,500."""
    generator = np.random.default_rng(17)
    draws = generator.normal(0.4, 1.0, (1500, n)) if kind == "normal" else generator.random((1500, n)) < 0.4
    intervals = [bootstrap_mean_ci(row, seed=i, resamples=1000) for i, row in enumerate(draws)]
    covered = np.mean([i.low <= 0.4 <= i.high for i in intervals])
    assert 0.93 <= covered <= 0.97


def test_a_tie_counts_one_half():
    accuracy, interval = preference_accuracy([1.0, -2.0, 0.0, 0.5])
    assert accuracy == interval.estimate == (1 + 0 + 0.5 + 1) / 4
    assert interval.n == 4


def test_a_policy_equal_to_its_reference_has_one_half():
    assert preference_accuracy([0.0] * 9) == (0.5, Interval(estimate=0.5, low=0.5, high=0.5, n=9))


def test_the_smallest_margin_is_not_a_tie():
    assert preference_accuracy([5e-324])[0] == 1.0
    assert preference_accuracy([-5e-324])[0] == 0.0


def test_the_difference_is_b_minus_a():
    assert paired_bootstrap_ci([0, 0, 1, 1], [1, 1, 1, 1]).estimate == 0.5
    assert paired_bootstrap_ci([1, 2, 3], [1.5, 2.5, 3.5]).bounds == [0.5, 0.5]


def test_pairing_is_tighter_only_when_prompts_have_something_in_common():
    """The pairing itself must do the work: shuffling one side (the negative control) has to undo it."""
    generator = np.random.default_rng(5)
    difficulty = generator.normal(size=200)
    a, b = difficulty + 0.2 * generator.normal(size=200), difficulty + 0.2 * generator.normal(size=200) + 0.1
    paired = _width(paired_bootstrap_ci(a, b))
    unpaired = np.hypot(_width(bootstrap_mean_ci(a)), _width(bootstrap_mean_ci(b)))
    shuffled = _width(paired_bootstrap_ci(a, generator.permutation(b)))
    assert paired < 0.35 * unpaired
    assert shuffled == pytest.approx(unpaired, rel=0.15)


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(6).normal(size=40)
    assert bootstrap_mean_ci(values) == bootstrap_mean_ci(values.tolist())
    assert bootstrap_mean_ci(values, seed=1) != bootstrap_mean_ci(values, seed=2)


def test_working_in_blocks_changes_nothing(monkeypatch):
    values = np.random.default_rng(7).normal(size=33)
    whole = bootstrap_mean_ci(values, resamples=500)
    monkeypatch.setattr("evaluation.intervals._CELLS_AT_ONCE", 100)
    assert bootstrap_mean_ci(values, resamples=500) == whole


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_interval_stays_inside_the_data(values):
    interval = bootstrap_mean_ci(values, resamples=200)
    slack = 1e-9 * (1 + max(abs(v) for v in values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="a has 2, b has 3"):
        paired_bootstrap_ci([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        bootstrap_mean_ci([1.0, float("nan")])
    with pytest.raises(ValueError, match="shape"):
        bootstrap_mean_ci(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean_ci([1, 2], level=95)


def test_no_torch_is_needed():
    code = "import sys, evaluation.intervals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _width(interval: Interval) -> float:
    return interval.high - interval.low
