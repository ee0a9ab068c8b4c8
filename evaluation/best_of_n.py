"""Best-of-n: the reference's own answers, n drawn and the best by the reward model kept. What training has to beat.

It costs no training, only n answers instead of one, and moves along the frontier by its n. Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, log
from typing import Any

from evaluation.intervals import bootstrap_mean_ci


def expected_best(scores: Sequence[float], n: int) -> float:
    """Expected score of the best of n answers, from m >= n scored ones: unbiased whatever m is.

    The mean over all subsets of n of their largest score. Of the scores in rising order the i-th (from 1) is the
    largest in C(i-1, n-1) of the C(m, n) subsets; among equal scores it does not matter which counts as the larger.

    Raises:
        ValueError: fewer than n scores, or n below 1.
    """
    m = len(scores)
    if not 1 <= n <= m:
        raise ValueError(f"the best of {n} cannot be estimated from {m} scores")
    # Ratios of whole numbers, exact however large they are.
    return sum(score * (comb(at, n - 1) / comb(m, n)) for at, score in enumerate(sorted(scores)) if at >= n - 1)


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n nats: an upper bound on KL(best-of-n || the policy drawn from).

    Often given as the divergence itself; it is that only where no two answers score alike and each is rare
    (Beirami et al. 2024, arXiv 2401.01879, theorem 3.1). 0 for n = 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return log(n) - (n - 1) / n


def best_of_rows(scores_PM: Sequence[Sequence[float]], ns: Sequence[int]) -> list[dict[str, Any]]:
    """For each n the mean over prompts of the expected best score, with its interval, and the bound on the KL.

    Args:
        scores_PM: M scored answers of each prompt.
        ns: at most M each.
    """
    rows = []
    for n in sorted(set(ns)):
        found = bootstrap_mean_ci(expected_best(scores, n) for scores in scores_PM)
        rows.append({
            "n": n, "kl_bound": kl_bound(n), "score": found.estimate, "score_ci95": found.bounds, "score_n": found.n,
        })  # fmt: skip
    return rows


def best_of_lines(scores_PM: Sequence[Sequence[float]], ns: Sequence[int]) -> list[dict[str, Any]]:
    """The lines of `best_of_n.jsonl`: the same prompt by prompt, with the scores behind it."""
    return [
        {"prompt_id": index, "n": n, "kl": kl_bound(n), "score": expected_best(scores, n), "scores": list(scores)}
        for index, scores in enumerate(scores_PM)
        for n in sorted(set(ns))
    ]
