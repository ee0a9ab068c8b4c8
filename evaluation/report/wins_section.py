"""How often each policy's answers score above the reference's, by every reward model of the run, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.report.load import Run
from evaluation.report.rates import WinRate, Wins

_HEADS = {"score": "by {run.score_by}", "score_heldout": "by {run.score_heldout_by}"}
_LENGTHS = {
    "longer": "answers longer than the reference's",
    "equal": "answers as long",
    "shorter": "answers shorter than the reference's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WinTable:
    """One row for each label, one cell for each column; a cell is None where there were no such prompts."""

    title: str
    head: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[WinRate | None, ...]], ...]


def win_tables(run: Run) -> list[WinTable]:
    """Over all prompts first, then by length and by family; none where no reward model scored the policies."""
    columns = {
        (figure, policy): found for figure, by_policy in run.score_wins.items() for policy, found in by_policy.items()
    }
    if not columns:
        return []
    names = tuple(f"{policy} {_HEADS.get(figure, figure).format(run=run)}" for figure, policy in columns)
    given = list(columns.values())
    whole = WinTable(title="", head="Prompts", columns=names, rows=(("all", tuple(one.whole for one in given)),))
    parts = [
        _table("By length", "Prompts with", names, given, "by_length", _LENGTHS),
        _table("By family", "Family", names, given, "by_family", {}),
    ]
    return [whole, *(part for part in parts if part.rows)]


def _table(
    title: str, head: str, names: tuple[str, ...], given: list[Wins], part: str, told: Mapping[str, str]
) -> WinTable:
    found = [getattr(one, part) for one in given]
    labels = dict.fromkeys(label for one in found for label in one)
    ordered = [*(label for label in told if label in labels), *(label for label in labels if label not in told)]
    rows = tuple((told.get(label, label), tuple(one.get(label) for one in found)) for label in ordered)
    return WinTable(title=title, head=head, columns=names, rows=rows)
