"""Families with so many looks at once: exact intervals, a loss that is found, and no false alarm among equals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluation.families import clopper_pearson, family_differences, paired_share_interval

PAIR = [("sft", "dpo")]


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 9), (1, 40), (29, 30), (600, 2000)])
@pytest.mark.parametrize("miss", [0.05, 0.003])
def test_the_exact_interval_is_that_of_scipy(k, n, miss):
    theirs = binomtest(k, n).proportion_ci(1 - miss, method="exact")
    assert clopper_pearson(k, n, miss) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_of_no_prompts_nothing_is_known():
    assert clopper_pearson(0, 0, 0.05) == (0.0, 1.0)


@pytest.mark.parametrize("lost", range(13))
def test_it_leaves_out_zero_only_where_the_sign_test_does(lost):
    """12 prompts of which some were lost and none won; half of the error is the sign test's."""
    low, high = paired_share_interval(0, lost, 12, 0.05)
    shown = lost > 0 and binomtest(lost, lost).pvalue < 0.025
    assert (high < 0) == shown and low < 0 < 1 + high
    assert paired_share_interval(lost, 0, 12, 0.05) == pytest.approx((-high, -low))


def drawn(generator, changed, won, families=17, least=5, most=40):
    """Right answers of two policies, family by family: each prompt changes, and is won, with these probabilities."""
    names, before, after = [], [], []
    for family in range(families):
        n = int(generator.integers(least, most))
        changes = generator.random(n) < changed
        wins = generator.random(n) < won
        first = np.where(changes, ~wins, generator.random(n) < 0.4)
        second = np.where(changes, wins, first)
        names += [f"family {family}"] * n
        before += first.astype(float).tolist()
        after += second.astype(float).tolist()
    return family_differences(PAIR, names, {"sft": before, "dpo": after})


def test_equals_differ_in_no_family_in_19_cases_of_20():
    """400 evaluations of 17 families of equals: in at most 1 of 20 is any family called different."""
    generator = np.random.default_rng(4)
    alarms = [any(row["ci95"][0] > 0 or row["ci95"][1] < 0 for row in drawn(generator, 0.4, 0.5)) for _ in range(400)]
    assert np.mean(alarms) <= 0.05


def test_all_families_hold_together():
    """200 evaluations in which policies do differ, by 0.3 x (2 x 0.7 - 1): all 17 intervals hold it in 19 of 20."""
    generator = np.random.default_rng(5)
    held = [all(row["ci95"][0] <= 0.12 <= row["ci95"][1] for row in drawn(generator, 0.3, 0.7)) for _ in range(200)]
    assert np.mean(held) >= 0.95


def test_intervals_of_their_own_would_call_equals_different():
    """The control: without widening, some family of equals looks different in many evaluations more."""
    generator = np.random.default_rng(4)
    alarms = 0
    for _ in range(200):
        counts = [(generator.binomial(20, 0.2), generator.binomial(20, 0.2)) for _ in range(17)]
        alarms += any(binomtest(won, won + lost).pvalue < 0.05 for won, lost in counts if won + lost)
    assert alarms / 200 > 0.1


def test_a_family_that_is_lost_is_found():
    names = ["lost"] * 30 + ["kept"] * 30
    before, after = [1.0] * 60, [0.0] * 20 + [1.0] * 40
    kept, lost = family_differences(PAIR, names, {"sft": before, "dpo": after})
    assert (lost["family"], lost["n"], lost["from"], lost["to"]) == ("lost", 30, "sft", "dpo")
    assert lost["difference"] == pytest.approx(-20 / 30) and lost["ci95"][1] < 0
    assert kept["difference"] == 0 and kept["ci95"][0] == -kept["ci95"][1] < 0


def test_only_prompts_of_a_family_that_were_judged_for_both_count():
    right = {"sft": [1.0, None, 1.0, 0.0], "dpo": [0.0, 1.0, None, 0.0]}
    (row,) = family_differences(PAIR, ["a", "a", "a", None], right)
    assert (row["family"], row["n"], row["difference"]) == ("a", 1, -1.0)
    assert family_differences(PAIR, ["a"], {}) == []
