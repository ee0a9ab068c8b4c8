"""Bootstrap intervals: hand cases, coverage over simulated experiments, ties, pairing, determinism."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial

from evaluation.intervals import (
    SHARE,
    Interval,
    bootstrap_mean_ci,
    expanded_tail,
    paired_bootstrap_ci,
    paired_ratio_ci,
    preference_accuracy,
)


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
    accuracy, interval = preference_accuracy([0.0] * 9)
    others = 1 - 0.025 ** (1 / 9)
    assert accuracy == interval.estimate == 0.5
    assert interval.bounds == pytest.approx([0.5 - others / 2, 0.5 + others / 2], abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 6, 40])
@pytest.mark.parametrize("right", [0, 1])
def test_a_share_of_which_all_are_alike_is_no_certainty(right, n):
    """0 of 6 leaves up to 46 %: against scipy's exact binomial interval."""
    interval = bootstrap_mean_ci([right] * n, within=SHARE)
    exact = binomtest(right * n, n).proportion_ci(0.95, method="exact")
    assert (interval.estimate, interval.n) == (right, n)
    assert interval.bounds == pytest.approx([exact.low, exact.high], abs=1e-12)
    assert bootstrap_mean_ci([right] * n).bounds == [right, right]


def test_two_prompts_that_both_rose_do_not_prove_a_rise():
    """Of one's 0 and the other's 1 on two prompts nothing follows; six of six do exclude no change."""
    few, more = (paired_bootstrap_ci([0] * n, [1] * n, within=SHARE) for n in (2, 6))
    assert few.low < 0 < few.high == 1
    assert 0 < more.low == pytest.approx(2 * 0.025 ** (1 / 6) - 1)
    assert paired_bootstrap_ci([0] * 2, [1] * 2).low == 1
    same = paired_bootstrap_ci([0, 1, 1], [0, 1, 1], within=SHARE)
    assert same.estimate == 0
    assert same.low == -same.high < 0


@pytest.mark.parametrize("share", [0.03, 0.985])
def test_shares_near_an_end_are_covered(share):
    """40 prompts each: where most experiments see all alike, the point interval covers next to none of these."""
    draws = np.random.default_rng(23).random((1500, 40)) < share
    alike = [row for row in draws if row.min() == row.max()]
    assert len(alike) > 400
    intervals = [bootstrap_mean_ci(row, within=SHARE) for row in alike]
    assert all(one.low <= share <= one.high for one in intervals)
    assert not any(one.low <= share <= one.high for one in map(bootstrap_mean_ci, alike))


@cache
def intervals_of_shares(n, within):
    """Of 0 of n, 1 of n, ... n of n."""
    return [bootstrap_mean_ci([1] * k + [0] * (n - k), within=within, resamples=4000) for k in range(n + 1)]


def covered_share(share, n, within=SHARE):
    """How often the interval holds a true share: not by drawing, but over every count that there can be."""
    weights = binom.pmf(np.arange(n + 1), n, share)
    return sum(w for w, one in zip(weights, intervals_of_shares(n, within), strict=True) if holds(one, share))


def holds(interval, value):
    return interval.low - 1e-9 <= value <= interval.high + 1e-9


@pytest.mark.parametrize("n", [5, 13, 20, 32, 100])
def test_every_share_is_covered_however_few_prompts_it_rests_on(n):
    """Percentiles alone hold 3 of 100 in 87 %, and 10 of 32; with fewer counts than these 95 % cannot be met exactly,
    so what covers never less than 93 % covers more than 97 % in places."""
    covered = {share: covered_share(share, n) for share in np.arange(0.01, 1, 0.005)}
    assert min(covered.values()) >= 0.93, min(covered, key=covered.__getitem__)


@pytest.mark.parametrize(("share", "n"), [(0.08, 100), (0.12, 100), (0.18, 100), (0.4, 100), (0.95, 20)])
def test_shares_as_reports_show_them(share, n):
    """Counts come in steps, so rare shares are covered a little too often: of 20 prompts more so than of 100."""
    assert 0.93 <= covered_share(share, n) <= (0.985 if n == 100 else 1)


def test_percentiles_alone_do_not_cover_a_rare_share():
    """The control: what `within` adds is what makes the difference."""
    assert covered_share(0.035, 100, within=None) < 0.9 <= covered_share(0.035, 100)


@pytest.mark.parametrize(("seen", "n"), [(1, 2), (1, 20), (9, 100), (19, 20), (97, 100), (4, 5000)])
def test_a_rare_share_has_the_exact_binomial_interval(seen, n):
    """Against scipy's; ten of a kind are percentiles again, see below."""
    interval = bootstrap_mean_ci([1] * seen + [0] * (n - seen), within=SHARE, resamples=50)
    exact = binomtest(seen, n).proportion_ci(0.95, method="exact")
    assert interval.bounds == pytest.approx([exact.low, exact.high], abs=1e-12)
    assert interval.estimate == pytest.approx(seen / n)


def test_ten_of_a_kind_are_enough_for_percentiles():
    for values in ([1] * 10 + [0] * 90, [0] * 10 + [1] * 90):
        assert bootstrap_mean_ci(values, within=SHARE) == bootstrap_mean_ci(values)


def outcomes(n, minus, plus):
    """Every count of -1 and of 1 among n that is not next to impossible, with its probability."""
    counts = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    weights = multinomial.pmf([(b, c, n - b - c) for b, c in counts], n, [minus, plus, 1 - minus - plus])
    return [(b, c, weight) for (b, c), weight in zip(counts, weights, strict=True) if weight > 1e-5]


@pytest.mark.parametrize(
    ("minus", "plus"), [(0.02, 0.02), (0.1, 0.1), (0.05, 0.01), (0.02, 0.1), (0.1, 0.0), (0.3, 0.35), (0.15, 0.5)]
)
def test_differences_of_rates_on_the_same_prompts_are_covered(minus, plus):
    """32 prompts, some of which only one of the two gets right; as many as -1, 0 and 1 are, so are wins with ties."""
    held = called = total = 0.0
    for lost, won, weight in outcomes(32, minus, plus):
        rest = 32 - lost - won
        before, after = [1] * lost + [0] * won + [0] * rest, [0] * lost + [1] * won + [0] * rest
        interval = paired_bootstrap_ci(before, after, within=SHARE, resamples=1000)
        wins = bootstrap_mean_ci([0] * lost + [1] * won + [0.5] * rest, within=SHARE, resamples=1000)
        assert wins.bounds == pytest.approx([(1 + end) / 2 for end in interval.bounds], abs=0.01)
        held += weight * holds(interval, plus - minus)
        called += weight * (interval.low > 0 or interval.high < 0)
        total += weight
    assert total > 0.99 and held >= 0.93
    assert minus != plus or called <= 0.06, "equal policies are called different no more often than that"


def test_one_prompt_that_rose_is_no_rise():
    """Of two values in the middle of what there can be, a third may be out there: the interval holds no change."""
    for rose in (1, 2, 3):
        interval = paired_bootstrap_ci([0] * 100, [1] * rose + [0] * (100 - rose), within=SHARE)
        assert interval.low <= 0 < interval.high
        exact = binomtest(rose, 100).proportion_ci(0.95, method="exact")
        assert interval.high >= exact.high - 1e-12


def test_what_leaves_its_bounds_is_refused():
    with pytest.raises(ValueError, match="within"):
        bootstrap_mean_ci([0.5, 1.5], within=SHARE)


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


def _texts(n, seed, worse):
    """Rows of two policies, (nats, tokens) each: long texts are harder, and the second is `worse` per token."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 60, n)
    own = tokens * (1.5 + 0.3 * generator.normal(size=n) + 0.005 * tokens)
    other = own + tokens * (worse + 0.1 * generator.normal(size=n))
    return list(zip(own, tokens, strict=True)), list(zip(other, tokens, strict=True))


def test_a_ratio_is_that_of_the_sums_by_a_slow_loop():
    """Perplexity: exp of nats over tokens, both summed first; each resample anew, row by row."""
    a, b = _texts(12, 1, 0.2)
    found = paired_ratio_ci(a, b, exponent=True, resamples=400)
    values = [math.exp(sum(x for x, _ in rows) / sum(w for _, w in rows)) for rows in (a, b)]
    assert found.estimate == pytest.approx(values[1] - values[0]) and found.n == 12
    drawn = []
    for picked in np.random.default_rng(0).integers(12, size=(400, 12)):
        ends = [math.exp(sum(rows[i][0] for i in picked) / sum(rows[i][1] for i in picked)) for rows in (a, b)]
        drawn.append(ends[1] - ends[0])
    tail = expanded_tail(0.025, 12)
    assert found.bounds == pytest.approx(list(np.quantile(drawn, [tail, 1 - tail])))


def test_a_ratio_covers_the_truth():
    """500 sets of 40 texts, where the true difference is known from very many: 93 to 97 in 100 intervals hold it."""
    a, b = _texts(100_000, 99, 0.15)
    truth = [math.exp(sum(x for x, _ in rows) / sum(w for _, w in rows)) for rows in (a, b)]
    found = [paired_ratio_ci(*_texts(40, seed, 0.15), exponent=True, resamples=800) for seed in range(500)]
    held = np.mean([one.low <= truth[1] - truth[0] <= one.high for one in found])
    assert 0.92 <= held <= 0.98


def test_a_ratio_of_one_and_the_same_policy_has_no_difference():
    a, b = _texts(20, 2, 0.2)
    assert paired_ratio_ci(a, a).bounds == [0.0, 0.0]
    assert paired_ratio_ci(a, b).low > 0 and paired_ratio_ci(b, a).high < 0


def test_a_ratio_without_weight_or_rows_is_not_measured():
    assert paired_ratio_ci([], []).estimate is None
    assert paired_ratio_ci([(1.0, 0.0)], [(2.0, 3.0)]).estimate is None
    assert paired_ratio_ci([(1.0, 2.0)], [(2.0, 2.0)]).bounds == [0.5, 0.5]
    with pytest.raises(ValueError, match="same rows"):
        paired_ratio_ci([(1.0, 2.0)], [(2.0, 2.0), (1.0, 1.0)])


def test_no_torch_is_needed():
    code = "import sys, evaluation.intervals; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def _width(interval: Interval) -> float:
    return interval.high - interval.low
