"""The same prompts answered greedily by every policy: chosen by position, never by how the answers turned out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.rows import PolicyRow
from evaluation.report.answers import Answer, Prompt

MOST_PROMPTS = 8
RESPONSE_CHARACTERS = 1000
"""A longer answer is cut on the page; `answers.jsonl` of its run has all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One policy's answer."""

    name: str
    answer: Answer
    shown: str
    hidden: int
    """Characters that were cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt with all answers to it."""

    prompt: Prompt
    family: str
    answers: tuple[Given, ...]


def samples(runs: Sequence[ComparedRun], rows: Sequence[PolicyRow], most: int = MOST_PROMPTS) -> list[Sample]:
    """The first prompts of every family in turn, each with one answer of every policy that answered it."""
    by_run = {
        compared.label: {(answer.prompt, answer.policy): answer for answer in compared.run.answers} for compared in runs
    }
    first = next((compared.run.answers for compared in runs if compared.run.answers), ())
    families: dict[str, list[Prompt]] = {}
    for answer in first:
        known = families.setdefault(answer.family, [])
        if answer.prompt not in known:
            known.append(answer.prompt)
    longest = max(map(len, families.values()), default=0)
    in_turn = [(family, known[at]) for at in range(longest) for family, known in families.items() if at < len(known)]
    found = [
        Sample(
            prompt=prompt,
            family=family,
            answers=tuple(
                _given(row.name, given[0])
                for row in rows
                if (
                    given := [
                        by_run[run][prompt, row.policy] for run in row.runs if (prompt, row.policy) in by_run[run]
                    ]
                )
            ),
        )
        for family, prompt in in_turn[:most]
    ]
    return [sample for sample in found if sample.answers]


def _given(name: str, answer: Answer) -> Given:
    hidden = max(0, len(answer.response) - RESPONSE_CHARACTERS)
    return Given(name=name, answer=answer, shown=answer.response[:RESPONSE_CHARACTERS], hidden=hidden)
