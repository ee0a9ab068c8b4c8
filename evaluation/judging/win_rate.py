"""Win rates from pairwise verdicts, with their uncertainty and the biases of whoever judged. Pure functions.

A is the policy held against, B the one in question; a value is B's share of a pair: 1 it wins, 0 it loses, 0.5 a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evaluation.intervals import SHARE, bootstrap_mean_ci

P = TypeVar("P")
"""What tells one prompt from another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One pair, judged with A shown first and with B shown first."""

    a_first: float | None
    """B's share where A was shown first; None where the reply could not be read."""
    b_first: float | None
    """B's share where B was shown first."""
    a_length: int
    """Characters of A's answer."""
    b_length: int

    @property
    def value(self) -> float | None:
        """Mean of both orders: orders that contradict each other are a tie. None unless both could be read."""
        return None if self.a_first is None or self.b_first is None else (self.a_first + self.b_first) / 2

    @property
    def between(self) -> tuple[float, float] | None:
        """B's share if the order that is worse for B is right, and if the other one is."""
        if self.a_first is None or self.b_first is None:
            return None
        return min(self.a_first, self.b_first), max(self.a_first, self.b_first)


def judged_figures(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All figures of pairs judged in both orders; None each where nothing could be read.

    A judge that goes by place contradicts itself, and contradictions count one half: they draw `win_rate` towards one
    half. `win_rate_agreed` is not drawn, if pairs on which the judge goes by place are like the others; whatever they
    are like, the win rate on these prompts lies from `win_rate_least` to `win_rate_most`, where each contradiction is
    decided against B or for it (bounds without assumptions: Manski 1990, Nonparametric Bounds on Treatment Effects).
    """
    read = [verdict for verdict in verdicts if verdict.value is not None]
    agreed = [v.value for v in read if v.value is not None and v.a_first == v.b_first]
    first = [share for v in read if (share := _first_share(v)) is not None]
    between = [ends for v in read if (ends := v.between) is not None]
    return {
        **win_figures([(v.value, v.a_length, v.b_length) for v in read if v.value is not None]),
        "unreadable": len(verdicts) - len(read),
        "orders_agree": len(agreed) / len(read) if read else None,
        **_interval("win_rate_agreed", agreed),
        **_interval("first_wins", first),
        "win_rate_least": sum(low for low, _ in between) / len(between) if between else None,
        "win_rate_most": sum(high for _, high in between) / len(between) if between else None,
    }


def win_figures(pairs: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    """Win rate with ties as one half, and how often the longer answer won.

    Args:
        pairs: per prompt B's share and the lengths of A's and B's answer. Several judgements of one prompt are
            averaged before.
    """
    longer = [
        value if b_length > a_length else 1 - value
        for value, a_length, b_length in pairs
        if a_length != b_length and value != 0.5
    ]
    values = [value for value, _, _ in pairs]
    return {
        **_interval("win_rate", values),
        "ties": sum(value == 0.5 for value in values) / len(values) if values else None,
        **_interval("longer_wins", longer),
    }


def by_prompt(values: Iterable[tuple[P, float]]) -> Mapping[P, float]:
    """Mean of all values of each prompt, prompts in the order they first came."""
    found: dict[P, list[float]] = {}
    for prompt, value in values:
        found.setdefault(prompt, []).append(value)
    return {prompt: sum(all_) / len(all_) for prompt, all_ in found.items()}


def _first_share(verdict: Verdict) -> float | None:
    """How often the answer shown first won, of the orders that were decided; one half is a judge without bias."""
    won = []
    if verdict.a_first is not None and verdict.a_first != 0.5:
        won.append(1 - verdict.a_first)
    if verdict.b_first is not None and verdict.b_first != 0.5:
        won.append(verdict.b_first)
    return sum(won) / len(won) if won else None


def _interval(name: str, values: Sequence[float]) -> dict[str, Any]:
    found = bootstrap_mean_ci(values, within=SHARE)
    return {name: found.estimate, f"{name}_ci95": found.bounds, f"{name}_n": found.n}
