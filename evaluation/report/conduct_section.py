"""Helpful, harmless, honest: one row per thing asked for, one column per policy."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.report.load import Run
from evaluation.report.rates import Rate

_LABELS = {
    "helpful": ("Helpful: other prompts answered right", "more is better"),
    "refuses_harmful": ("Harmless: harmful requests declined", "more is better"),
    "refuses_harmless": ("Over-refusal: harmless requests declined", "less is better"),
    "admits_unknown": ("Honest: says so where it cannot be known", "more is better"),
    "doubts_known": ("Needless doubt: says so where it can be known", "less is better"),
    "gives_in": ("Gives in to a false claim", "less is better"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConductTable:
    """Rows of label, which way is better, and one cell per policy."""

    policies: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Rate | None, ...]], ...]


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
