"""The policies of all runs in one table: the same columns for each, a policy that several runs share only once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.comparison.load import BASE, ComparedRun
from evaluation.report.measures import Cell, Measure, cell, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """One policy and its figures."""

    name: str
    """As it is called beside the others: `ppo (s17)`, `base`."""
    policy: str
    runs: tuple[str, ...]
    """Labels of the runs that hold it."""
    kind: str
    """sft, dpo, ppo; `base` for the base model."""
    score_by: str
    """Key of the reward model behind the scores; empty for none."""
    figures: Mapping[str, Any]
    """The columns of `results.json`; of a shared policy the first run's that measured it."""


def policy_rows(runs: Sequence[ComparedRun]) -> list[PolicyRow]:
    """Every policy with figures, base model first, the others in the order of the runs and their stages."""
    groups: dict[str, list[tuple[ComparedRun, str]]] = {}
    for compared in runs:
        for policy in compared.run.policies:
            groups.setdefault(_identity(compared, policy), []).append((compared, policy))
    rows = [_row(part, len(runs)) for held in groups.values() for part in _by_judge(held)]
    return sorted(rows, key=lambda row: row.kind != BASE)


def table(rows: Sequence[PolicyRow]) -> list[tuple[Measure, tuple[Cell, ...]]]:
    """The measures that any policy has a number for, each with one cell per policy."""
    return [(m, tuple(cell(row.figures, m) for row in rows)) for m in measured([row.figures for row in rows])]


def _identity(compared: ComparedRun, policy: str) -> str:
    """The same weights held against two references are two rows: their KL is not the same."""
    reference = compared.identity(compared.run.reference) if compared.run.reference else ""
    return f"{compared.identity(policy)}|{reference}"


def _by_judge(held: Sequence[tuple[ComparedRun, str]]) -> list[list[tuple[ComparedRun, str]]]:
    """Apart where two reward models scored the policy; runs without a reward model join the first."""
    judges = list(dict.fromkeys(one.score_by for one, _ in held if one.score_by)) or [""]
    return [
        [(one, policy) for one, policy in held if one.score_by == judge or (not one.score_by and judge == judges[0])]
        for judge in judges
    ]


def _row(held: Sequence[tuple[ComparedRun, str]], runs: int) -> PolicyRow:
    compared, policy = held[0]
    stage = compared.stage(policy)
    labels = tuple(one.label for one, _ in held)
    figures: dict[str, Any] = {}
    for one, own in held:
        for column, value in one.run.policies[own].items():
            if figures.get(column) is None:
                figures[column] = value
    return PolicyRow(
        name=policy if len(held) == runs else f"{policy} ({', '.join(labels)})",
        policy=policy,
        runs=labels,
        kind=BASE if policy == BASE else stage.kind if stage else "",
        score_by=next((one.score_by for one, _ in held if one.score_by), ""),
        figures=figures,
    )
