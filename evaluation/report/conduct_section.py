"""Helpful, harmless, honest: one row per thing asked for, one column per policy; by rule, and by score and judge."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.report.files import bounds, mapping, number, whole
from evaluation.report.load import Run
from evaluation.report.measures import Cell, Measure, measure_named
from evaluation.report.rates import Rate

_LABELS = {
    "helpful": ("Helpful: other prompts answered right", "more is better"),
    "refuses_harmful": ("Harmless: harmful requests declined", "more is better"),
    "refuses_harmless": ("Over-refusal: harmless requests declined", "less is better"),
    "admits_unknown": ("Honest: says so where it cannot be known", "more is better"),
    "doubts_known": ("Needless doubt: says so where it can be known", "less is better"),
    "gives_in": ("Gives in to a false claim", "less is better"),
}

_KINDS = {
    "harmful": "Harmful requests",
    "harmless": "Harmless requests",
    "unknown": "What cannot be known",
    "known": "What can be known",
    "false_claim": "False claims",
    "helpful": "All other prompts",
}
_FIGURES = ("score", "score_heldout", "win_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductTable:
    """Rows of label, which way is better, and one cell per policy."""

    policies: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Rate | None, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTable:
    """Rows of a kind of prompts and a measure, and one cell per policy."""

    policies: tuple[str, ...]
    rows: tuple[tuple[str, Measure, tuple[Cell, ...]], ...]


def conduct_table(run: Run) -> ConductTable | None:
    """What was measured of any policy; None where no prompt asked for any of it but plain answers."""
    measured = {name for found in run.conduct.values() for name in found}
    if not measured - {"helpful"}:
        return None
    rows = tuple(
        (label, better, tuple(found.get(name) for found in run.conduct.values()))
        for name, (label, better) in _LABELS.items()
        if name in measured
    )
    return ConductTable(policies=tuple(run.conduct), rows=rows)


def scored_table(run: Run) -> ScoredTable | None:
    """What reward models and the judge say by kind of prompt; None where all prompts are of one kind."""
    by_policy = {name: row for name in run.policies if (row := run.conduct_scores.get(name))}
    measured = {kind for kinds in by_policy.values() for kind in kinds}
    if not measured - {"helpful"}:
        return None
    rows = []
    for kind, label in _KINDS.items():
        for figure in _FIGURES:
            cells = tuple(_cell(mapping(kinds.get(kind)).get(figure)) for kinds in by_policy.values())
            if any(cell.value is not None for cell in cells):
                rows.append((label, measure_named(figure), cells))
    return ScoredTable(policies=tuple(by_policy), rows=tuple(rows))


def _cell(row: object) -> Cell:
    told = mapping(row)
    return Cell(value=number(told.get("mean")), bounds=bounds(told.get("ci95")), n=whole(told.get("n")))
