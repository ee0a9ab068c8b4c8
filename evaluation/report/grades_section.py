"""Grades of answers to the recipe's questions: over all, by turn and by category, one column per policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.files import bounds, mapping, number, whole
from evaluation.report.load import Run

_ROWS = {"grade": "both turns", "turn_1": "first turn", "turn_2": "second turn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A mean grade with its interval and the number of questions."""

    mean: float
    bounds: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradeTable:
    """Rows of label and one cell per policy; None where nothing was graded."""

    policies: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Grade | None, ...]], ...]
    less_reference: tuple[Grade | None, ...]
    by_category: tuple[tuple[str, tuple[Grade | None, ...]], ...]
    unread: tuple[int, ...]
    empty: tuple[int, ...]


def grade_table(run: Run) -> GradeTable | None:
    """What the judge gave; None where it was asked nothing of the kind."""
    if not run.graded:
        return None
    found = list(run.graded.values())
    rows = [(label, tuple(_grade(one, name) for one in found)) for name, label in _ROWS.items()]
    parts = [mapping(one.get("by_category")) for one in found]
    categories = dict.fromkeys(category for part in parts for category in part)
    return GradeTable(
        policies=tuple(run.graded),
        rows=tuple((label, cells) for label, cells in rows if any(cells)),
        less_reference=tuple(_grade(one, "less_reference") for one in found),
        by_category=tuple(
            (category, tuple(_grade(mapping(part.get(category)), "grade") for part in parts)) for category in categories
        ),
        unread=tuple(whole(one.get("unreadable")) or 0 for one in found),
        empty=tuple(whole(one.get("empty")) or 0 for one in found),
    )


def _grade(row: Mapping[str, Any], name: str) -> Grade | None:
    mean = number(row.get(name))
    return (
        None
        if mean is None
        else Grade(mean=mean, bounds=bounds(row.get(f"{name}_ci95")), n=whole(row.get(f"{name}_n")))
    )
