"""Right answers family by family: whether a policy lost one kind of task while it won in all.

Families are small, and there are many: intervals of their own would call one in twenty lost by chance, and resampling
ten answers that are right or wrong shows little. So each interval is exact, and so much wider that all families of two
policies together hold in 19 cases of 20 (Bonferroni; families share no prompts, so nothing sharper is to be had from
resampling them together). Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, fsum, lgamma, log, log1p
from typing import Any

from evaluation.compare import Values

LEVEL = 0.95
_HALVINGS = 60


def family_differences(
    compared: Sequence[tuple[str, str]], families: Sequence[str | None], right: Values
) -> list[dict[str, Any]]:
    """For each two policies and family the difference in the share answered right, over prompts judged for both.

    Args:
        compared: pairs of policies.
        families: of the prompts; None where a prompt is of none.
        right: by policy 1, 0 or None (not judged) for each prompt.

    Returns:
        Rows of `family`, `from`, `to`, `difference`, `ci95` and `n`, families in alphabetical order.
    """
    rows = []
    for before, after in compared:
        if before not in right or after not in right:
            continue
        groups: dict[str, list[tuple[float, float]]] = {}
        for family, a, b in zip(families, right[before], right[after], strict=True):
            if family is not None and a is not None and b is not None:
                groups.setdefault(family, []).append((a, b))
        for family, each in sorted(groups.items()):
            won, lost = sum(b > a for a, b in each), sum(b < a for a, b in each)
            low, high = paired_share_interval(won, lost, len(each), (1 - LEVEL) / len(groups))
            rows.append({
                "family": family, "from": before, "to": after, "difference": (won - lost) / len(each),
                "ci95": [low, high], "n": len(each),
            })  # fmt: skip
    return rows


def paired_share_interval(won: int, lost: int, n: int, miss: float) -> tuple[float, float]:
    """An interval for the difference of two shares over the same n prompts, that misses it at most so often.

    The difference is m (2 w - 1), where m is the share of prompts that changed and w the share of these that were won:
    both have exact intervals, each of which may miss half as often. It leaves out 0 only where the exact sign test
    (McNemar) does.
    """
    m_low, m_high = clopper_pearson(won + lost, n, miss / 2)
    w_low, w_high = clopper_pearson(won, won + lost, miss / 2)
    corners = [m * (2 * w - 1) for m in (m_low, m_high) for w in (w_low, w_high)]
    return min(corners), max(corners)


def clopper_pearson(k: int, n: int, miss: float) -> tuple[float, float]:
    """The exact interval of a share of which k of n were seen (Clopper & Pearson 1934); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    low = 0.0 if k == 0 else _solved(n, k, miss / 2)
    high = 1.0 if k == n else 1 - _solved(n, n - k, miss / 2)
    return low, high


@cache
def _solved(n: int, k: int, tail: float) -> float:
    """The share of which k or more of n are seen with just this probability; by halving, as it rises with the share."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        if fsum(exp(_ways(n, i) + i * log(p) + (n - i) * log1p(-p)) for i in range(k, n + 1)) < tail:
            low = p
        else:
            high = p
    return low


def _ways(n: int, i: int) -> float:
    """The logarithm of n over i: the number itself can be too large for a float."""
    return lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)
