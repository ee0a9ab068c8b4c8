"""On which held-out rows perplexity and preference accuracy were measured: figures over other rows are taken out.

Prompts are one set for all figures that answers give, so runs that answered others are refused (`evaluation_set`). The
demonstrations behind a perplexity and the pairs behind a preference accuracy are sets of their own, and only these
columns rest on them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.recipes import flat, written
from evaluation.report.files import whole

Rows = tuple[str, ...]
"""What tells each row of a set from others; empty where a run did not leave it."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Columns that rest on one set of held-out rows."""

    columns: str
    """What the names of the columns begin with."""
    count: str
    """The column that holds the number of rows."""
    called: str
    measured_on: str
    data: str
    """The recipe's block that decides which rows there are."""
    rows: Callable[[ComparedRun, str], Rows]
    """Of a run and a policy."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """One policy that has such columns, and the rows behind them."""

    compared: ComparedRun
    n: int | None
    rows: Rows

    def alike(self, other: _Measured) -> bool:
        """Whether both may be on the same rows, as far as runs say."""
        return self.n == other.n and (not self.rows or not other.rows or self.rows == other.rows)


_SETS = (
    _Set(
        "perplexity", "perplexity_n", "Perplexity", "held-out texts", "data.sft.",
        lambda compared, policy: compared.demonstrations,
    ),
    _Set(
        "preference_", "preference_n", "Preference accuracy", "held-out pairs", "data.preference.",
        lambda compared, policy: compared.pairs.get(policy, ()),
    ),
)  # fmt: skip


def on_the_same_rows(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """The runs without the columns that were measured on unlike rows, and what is said of those."""
    kept, notes = list(runs), list[str]()
    for one in _SETS:
        found = list(_measured(runs, one))
        other = next((each for each in found if not all(each.alike(other) for other in found)), None)
        if other is not None:
            first = next(each for each in found if not each.alike(other))
            pair = sorted((first, other), key=lambda each: runs.index(each.compared))
            kept = [_without(compared, one.columns) for compared in kept]
            notes.append(_said(one, *pair))
    return kept, notes


def _measured(runs: Sequence[ComparedRun], one: _Set) -> Iterable[_Measured]:
    for compared in runs:
        for policy, row in compared.run.policies.items():
            if any(value is not None for name, value in row.items() if name.startswith(one.columns)):
                yield _Measured(compared, whole(row.get(one.count)), one.rows(compared, policy))


def _without(compared: ComparedRun, columns: str) -> ComparedRun:
    policies: Mapping[str, Mapping[str, Any]] = {
        policy: {name: value for name, value in row.items() if not name.startswith(columns)}
        for policy, row in compared.run.policies.items()
    }
    return replace(compared, run=replace(compared.run, policies=policies))


def _said(one: _Set, first: _Measured, other: _Measured) -> str:
    counts = f"{_counted(first)}, {_counted(other)}"
    if first.compared is other.compared:
        return f"{one.called} is left out: policies of one run were measured on different {one.measured_on} ({counts})."
    mine, theirs = flat(first.compared.recipe), flat(other.compared.recipe)
    keys = [key for key in mine if key.startswith(one.data) and key in theirs and mine[key] != theirs[key]]
    text = f"{one.called} is left out: it was measured on different {one.measured_on} ({counts}"
    if not keys:
        return f"{text}). Every other figure is over the same prompts."
    folder = shlex.quote(str(other.compared.run.directory))
    changes = " ".join(f"--set {shlex.quote(f'{key}={written(mine[key])}')}" for key in keys[:4])
    command = f"`trivet run {folder}/recipe.yaml --output-dir {folder} {changes}`"
    differing = ", ".join(keys[:4])
    return f"{text}; what differs: {differing}). {command} makes {other.compared.label} alike, and trains it anew."


def _counted(one: _Measured) -> str:
    return f"{one.compared.label}: {'unknown' if one.n is None else one.n}"
