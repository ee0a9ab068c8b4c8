"""Grades of answers to questions as figures, by turn and category, with their uncertainty over questions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci
from evaluation.judging.grading import Graded
from evaluation.judging.questions import MOST_TURNS, Question

_GRADES = (1.0, 10.0)
"""What a grade lies within."""


def grade_figures(
    questions: Sequence[Question], graded: Mapping[str, Sequence[Graded]], reference: str
) -> dict[str, dict[str, Any]]:
    """By policy: mean grade over questions, by turn and by category, and how far it stands above the reference's.

    A question counts with the mean of its turns that could be read; questions are what is resampled, since the turns of
    one are not independent.

    Args:
        questions: in the order of the grades.
        graded: by policy.
        reference: the policy that the others are held against.
    """
    base = [_mean(one) for one in graded[reference]] if reference in graded else []
    return {
        name: {**_figures(questions, found), **({} if name == reference else _less_reference(base, found))}
        for name, found in graded.items()
    }


def _figures(questions: Sequence[Question], found: Sequence[Graded]) -> dict[str, Any]:
    grades = [grade for one in found for grade in one.grades]
    categories = dict.fromkeys(question.category for question in questions)
    parts = {
        category: [one for question, one in zip(questions, found, strict=True) if question.category == category]
        for category in categories
    }
    return {
        **_by_turn(found),
        "unreadable": sum(grade is None for grade in grades),
        "empty": sum(not answer.strip() for one in found for answer in one.answers),
        "by_category": {category: _by_turn(part) for category, part in parts.items()},
    }


def _by_turn(found: Sequence[Graded]) -> dict[str, Any]:
    turns = {
        f"turn_{turn + 1}": [one.grades[turn] for one in found if len(one.grades) > turn] for turn in range(MOST_TURNS)
    }
    figures = _interval("grade", [_mean(one) for one in found])
    for name, values in turns.items():
        figures |= _interval(name, values)
    return figures


def _less_reference(base: Sequence[float | None], found: Sequence[Graded]) -> dict[str, Any]:
    both = [
        (before, after)
        for before, after in zip(base, (_mean(one) for one in found), strict=True)
        if before is not None and after is not None
    ]
    if not both:
        return {"less_reference": None, "less_reference_ci95": None, "less_reference_n": 0}
    difference = paired_bootstrap_ci([before for before, _ in both], [after for _, after in both], within=_GRADES)
    return {
        "less_reference": difference.estimate,
        "less_reference_ci95": difference.bounds,
        "less_reference_n": difference.n,
    }


def _mean(one: Graded) -> float | None:
    read = [grade for grade in one.grades if grade is not None]
    return fmean(read) if read else None


def _interval(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    found = bootstrap_mean_ci([value for value in values if value is not None], within=_GRADES)
    return {name: found.estimate, f"{name}_ci95": found.bounds, f"{name}_n": found.n}
