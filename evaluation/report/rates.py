"""Shares of prompts as the results hold them: right by family, won by score, declined; and the best of n answers.

A part of `load`: records, and tolerant reading of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from evaluation.report import files

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOf:
    """The best of n answers of the reference, by the reward model that scores all policies."""

    n: int
    kl_bound: float
    """Its divergence from the reference is at most this."""
    score: float
    bounds: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of prompts with its interval."""

    rate: float
    bounds: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often a policy's answers scored above the reference's to the same prompts; ties count one half."""

    rate: float
    bounds: tuple[float, float] | None
    ties: int | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wins:
    """The same over all prompts, by family of prompts, and by length beside the reference's answer."""

    whole: WinRate
    by_family: Mapping[str, WinRate]
    by_length: Mapping[str, WinRate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many prompts of one family a policy answered right."""

    n: int | None
    correct: int | None


def best_of(row: Mapping[str, Any]) -> BestOf | None:
    """One row of `best_of_n`."""
    n, bound, score = files.whole(row.get("n")), files.number(row.get("kl_bound")), files.number(row.get("score"))
    if n is None or bound is None or score is None:
        return None
    return BestOf(n=n, kl_bound=bound, score=score, bounds=files.bounds(row.get("score_ci95")))


def tallies(row: object) -> Mapping[str, Tally]:
    """One policy's families."""
    cells = {family: files.mapping(cell) for family, cell in files.mapping(row).items()}
    return {
        family: Tally(n=files.whole(cell.get("n")), correct=files.whole(cell.get("correct")))
        for family, cell in cells.items()
    }


def wins(row: object) -> Mapping[str, Wins]:
    """By policy: what one reward model says of its answers."""
    return _known(row, _wins)


def rates(row: object) -> Mapping[str, Rate]:
    """One policy's conduct."""
    return _known(row, _rate)


def _known(row: object, read: Callable[[Mapping[str, Any]], T | None]) -> dict[str, T]:
    found = {name: read(files.mapping(value)) for name, value in files.mapping(row).items()}
    return {name: value for name, value in found.items() if value is not None}


def _rate(row: Mapping[str, Any]) -> Rate | None:
    rate = files.number(row.get("rate"))
    return None if rate is None else Rate(rate=rate, bounds=files.bounds(row.get("ci95")), n=files.whole(row.get("n")))


def _wins(row: Mapping[str, Any]) -> Wins | None:
    whole = _win_rate(row)
    if whole is None:
        return None
    by_family, by_length = (_known(row.get(part), _win_rate) for part in ("by_family", "by_length"))
    return Wins(whole=whole, by_family=by_family, by_length=by_length)


def _win_rate(row: Mapping[str, Any]) -> WinRate | None:
    rate = files.number(row.get("win_rate"))
    if rate is None:
        return None
    return WinRate(
        rate=rate, bounds=files.bounds(row.get("ci95")), ties=files.whole(row.get("ties")), n=files.whole(row.get("n"))
    )
