"""What answers look like, apart from whether they are right: how varied, how repetitive, how often they decline.

Pure functions of token ids and texts. A policy that has begun to exploit its reward model often shows here first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.stances import refuses

NGRAM = 4
"""As in PPO's `response/repeat_ngram`."""
Ids = Sequence[int]


def distinct(answers: Sequence[Ids], n: int) -> float | None:
    """Different n-grams of tokens among all n-grams of all answers (distinct-n, Li et al. 2016, arXiv 1510.03055).

    Falls as answers get longer or more numerous, so only policies that answered the same prompts compare. None where no
    answer has n tokens.
    """
    grams = [gram for ids in answers for gram in _grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(answers: Sequence[Ids]) -> float | None:
    """Share of an answer's token 4-grams that occurred in it before, mean over answers; 0 for a short one."""
    if not answers:
        return None
    shares = []
    for ids in answers:
        grams = list(_grams(ids, NGRAM))
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares)


def refusal_rate(texts: Sequence[str]) -> float | None:
    """Share of answers that decline the request, by the phrases people use for it (English and Chinese)."""
    return sum(map(refuses, texts)) / len(texts) if texts else None


def entropy(logps: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Nats per token that a policy is undecided, from its own samples at temperature 1: -log pi(y|x) over all tokens.

    Args:
        logps: log pi(y|x) of each of the policy's own answers.
        tokens: how many tokens each has.
    """
    return -sum(logps) / sum(tokens) if sum(tokens) else None


def sampled_row(answers: Sequence[Ids]) -> dict[str, Any]:
    """The columns that sampled answers give."""
    return {
        "distinct_1": distinct(answers, 1),
        "distinct_2": distinct(answers, 2),
        "repetition": repetition(answers),
    }


def _grams(ids: Ids, n: int) -> Iterator[tuple[int, ...]]:
    return (tuple(ids[at : at + n]) for at in range(len(ids) - n + 1))
