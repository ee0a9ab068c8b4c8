"""Best-of-n: hand arithmetic, all subsets, simulation, the bound on the KL against the KL itself."""

from __future__ import annotations

import random
from itertools import combinations
from math import comb, log

import pytest

from evaluation.best_of_n import best_of_lines, best_of_rows, expected_best, kl_bound


def test_by_hand():
    """1, 2, 4, best of 2: the pairs have the largest scores 2, 4 and 4."""
    assert expected_best([4.0, 1.0, 2.0], 2) == pytest.approx(10 / 3)
    assert expected_best([4.0, 1.0, 2.0], 1) == pytest.approx(7 / 3), "the best of one is the mean"
    assert expected_best([4.0, 1.0, 2.0], 3) == 4.0


@pytest.mark.parametrize("scores", [[3.0, -1.0, 0.5, 2.0, 7.0, 2.5], [1.0, 1.0, 2.0, 2.0, 2.0, 0.0], [0.0] * 6])
def test_it_is_the_mean_over_all_subsets_ties_or_not(scores):
    for n in range(1, 7):
        best = [max(subset) for subset in combinations(scores, n)]
        assert expected_best(scores, n) == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_it_is_unbiased_for_answers_that_were_never_drawn():
    """Scores 0 to 9 alike likely: the best of 3 has mean 9 - sum of (k/10)^3; 4,000 estimates of 5 draws each.

    The naive estimate, the best of all that were drawn, is off by far.
    """
    generator, truth = random.Random(0), 9 - sum((k / 10) ** 3 for k in range(1, 10))
    draws = [[generator.randrange(10) for _ in range(5)] for _ in range(4000)]
    assert sum(expected_best(scores, 3) for scores in draws) / 4000 == pytest.approx(truth, abs=0.05)
    assert abs(sum(map(max, draws)) / 4000 - truth) > 0.5


def exact_kl(probabilities, n):
    """Of best-of-n with answers in rising order of score, each with a score of its own."""
    found, below = 0.0, 0.0
    for p in probabilities:
        best = (below + p) ** n - below**n
        found += best * log(best / p)
        below += p
    return found


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_bound_holds_and_is_tight_where_answers_are_rare(n):
    assert kl_bound(n) == pytest.approx(log(n) - (n - 1) / n)
    few, many = exact_kl([0.7, 0.2, 0.1], n), exact_kl([1 / 4000] * 4000, n)
    assert few < kl_bound(n) - 0.05, "with few answers the KL itself is far below"
    assert kl_bound(n) * 0.998 < many < kl_bound(n)


def test_the_best_of_one_goes_nowhere():
    assert kl_bound(1) == 0.0


@pytest.mark.parametrize(("scores", "n"), [([1.0], 2), ([1.0, 2.0], 0), ([], 1)])
def test_what_cannot_be_estimated_is_refused(scores, n):
    with pytest.raises(ValueError, match="cannot be estimated"):
        expected_best(scores, n)
    with pytest.raises(ValueError, match="at least 1"):
        kl_bound(0)


def test_rows_and_lines_tell_the_same():
    scores = [[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]]
    rows, lines = best_of_rows(scores, [4, 2, 4]), best_of_lines(scores, [4, 2])
    assert [row["n"] for row in rows] == [2, 4] and [row["score_n"] for row in rows] == [2, 2]
    for row in rows:
        mine = [line["score"] for line in lines if line["n"] == row["n"]]
        assert row["score"] == pytest.approx(sum(mine) / 2) and row["kl_bound"] == kl_bound(row["n"])
    assert rows[1]["score"] == pytest.approx(4.0) and rows[1]["score_ci95"] == pytest.approx([3.0, 5.0])


def test_large_numbers_stay_exact():
    scores = [float(at) for at in range(400)]
    weights = [comb(at, 199) / comb(400, 200) for at in range(400)]
    assert sum(weights) == pytest.approx(1.0)
    assert expected_best(scores, 200) == pytest.approx(200 * 401 / 201 - 1), "the mean of the largest of 200 of 1..400"
