"""All paired differences of a run as tables: one row per measure, or family, one column per two policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from evaluation.report.load import Comparison, FamilyComparison, Run
from evaluation.report.measures import Measure, alike, known_order, measure_named, shown
from evaluation.report.words import tone_of, unit_of

Pair = tuple[str, str]
"""What a policy is held against, and the policy."""
Row = TypeVar("Row", Comparison, FamilyComparison)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One cell as it is written, with what it shows."""

    value: str
    bounds: tuple[str, str] | None
    n: int | None
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceTable:
    """Rows of label, unit and one cell per pair, None where the pair was not compared in it."""

    pairs: tuple[Pair, ...]
    rows: tuple[tuple[str, str, tuple[Difference | None, ...]], ...]
    n: int
    """Comparisons in all."""


def difference_table(run: Run) -> DifferenceTable | None:
    """Every comparison of the run; None without any."""
    metrics = known_order(row.metric for row in run.comparisons)
    rows = [(measure_named(name).label, unit_of(measure_named(name)).strip(), name) for name in metrics]
    by = {(row.metric, row.before, row.after): _cell(row) for row in run.comparisons}
    return _table(run.comparisons, rows, by)


def family_differences(run: Run) -> DifferenceTable | None:
    """Right answers family by family; None where none were compared."""
    rows = [(family, "points", family) for family in dict.fromkeys(row.family for row in run.family_comparisons)]
    by = {(row.family, row.before, row.after): family_cell(row) for row in run.family_comparisons}
    return _table(run.family_comparisons, rows, by)


def pairs_of(rows: Iterable[Row]) -> list[Pair]:
    """The pairs, in the order in which they were first compared."""
    return list(dict.fromkeys((row.before, row.after) for row in rows))


def starts(run: Run) -> dict[str, str]:
    """What each policy started from: whatever it was held against first."""
    found: dict[str, str] = {}
    for row in run.comparisons:
        found.setdefault(row.after, row.before)
    return found


def family_cell(row: FamilyComparison) -> Difference:
    """A difference in right answers among one family's prompts."""
    tone = "unsure" if row.bounds is None else ("none", "better", "worse")[shown(row.bounds, row.n)]
    return _written(measure_named("rule_accuracy"), row, tone)


def _cell(row: Comparison) -> Difference:
    return _written(measure_named(row.metric), row, tone_of(row))


def _written(measure: Measure, row: Comparison | FamilyComparison, tone: str) -> Difference:
    size, *around = alike(measure, [row.difference, *(row.bounds or ())])
    return Difference(
        value=size if row.difference <= 0 else f"+{size}",
        bounds=(around[0], around[1]) if around else None,
        n=row.n,
        tone=tone,
    )


def _table(
    compared: Sequence[Row], rows: Sequence[tuple[str, str, str]], by: Mapping[tuple[str, str, str], Difference]
) -> DifferenceTable | None:
    if not rows:
        return None
    pairs: tuple[Pair, ...] = tuple(pairs_of(compared))
    cells = tuple(
        (label, unit, tuple(by.get((key, before, after)) for before, after in pairs)) for label, unit, key in rows
    )
    return DifferenceTable(pairs=pairs, rows=cells, n=len(compared))
