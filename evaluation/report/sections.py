"""What each section of the page shows: records in, rows of text out. One function per section, one template each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.report.answers import Answer, Prompt
from evaluation.report.load import Run
from evaluation.report.measures import Cell, Measure, cell, measured
from evaluation.report.provenance import DataSet
from evaluation.report.rates import Tally

SAMPLE_PROMPTS = 12
RESPONSE_CHARACTERS = 1500
"""A longer response is cut on the page; `answers.jsonl` has all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTable:
    """Policies side by side: one row per measure, one column per policy, as that fits a narrow screen best."""

    policies: tuple[str, ...]
    rows: tuple[tuple[Measure, tuple[Cell, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTable:
    """Right answers per family of prompts (rows) and policy (columns)."""

    policies: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tally | None, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """A data set and the stages that used it in exactly this form."""

    data: DataSet
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """One policy's answer, cut to a readable length."""

    answer: Answer
    shown: str
    hidden: int
    """Characters that were cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One held-out prompt with every policy's answer to it."""

    prompt_id: str
    family: str
    prompt: Prompt
    answers: tuple[SampleAnswer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """What an artefact was made from. Each parent: role, stage, key, and whether this run holds that very artefact."""

    stage: str
    key: str
    base: str
    parents: tuple[tuple[str, str, str, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a stage was run: seed, processes, precision, code, libraries."""

    stage: str
    facts: tuple[tuple[str, str], ...]


def policy_table(run: Run) -> PolicyTable | None:
    """The measures at least one policy has a value for."""
    measures = measured(run.policies.values())
    if not measures:
        return None
    rows = tuple((m, tuple(cell(row, m) for row in run.policies.values())) for m in measures)
    return PolicyTable(policies=tuple(run.policies), rows=rows)


def family_table(run: Run) -> FamilyTable | None:
    """Right answers by family, in the order in which the families were first written."""
    families = list(dict.fromkeys(family for row in run.families.values() for family in row))
    if not families:
        return None
    rows = tuple((family, tuple(row.get(family) for row in run.families.values())) for family in families)
    return FamilyTable(policies=tuple(run.families), rows=rows)


def data_uses(run: Run) -> list[DataUse]:
    """Every data set once, with the stages that used it; two stages that used it differently give two entries."""
    uses: list[tuple[DataSet, list[str]]] = []
    for stage in run.stages:
        for data in stage.provenance.data if stage.provenance else ():
            same = next((stages for known, stages in uses if known == data), None)
            if same is None:
                uses.append((data, [stage.name]))
            else:
                same.append(stage.name)
    return [DataUse(data=data, stages=tuple(stages)) for data, stages in uses]


def samples(run: Run, limit: int = SAMPLE_PROMPTS) -> list[Sample]:
    """The first prompts of every family in turn. Chosen by position, never by how the answers turned out."""
    by_prompt: dict[str, dict[str, Answer]] = {}
    for answer in run.answers:
        by_prompt.setdefault(answer.prompt_id, {})[answer.policy] = answer
    by_family: dict[str, list[str]] = {}
    for prompt_id, answers in by_prompt.items():
        by_family.setdefault(next(iter(answers.values())).family, []).append(prompt_id)
    chosen = set(_in_turn(list(by_family.values()))[:limit])
    order = list(run.policies) + list(dict.fromkeys(answer.policy for answer in run.answers))
    policies = list(dict.fromkeys(order))
    ids = [prompt_id for family in by_family.values() for prompt_id in family if prompt_id in chosen]
    return [_sample(prompt_id, by_prompt[prompt_id], policies) for prompt_id in ids]


def _in_turn(groups: list[list[str]]) -> list[str]:
    """First of each group, then second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def _sample(prompt_id: str, answers: Mapping[str, Answer], policies: list[str]) -> Sample:
    first = next(iter(answers.values()))
    return Sample(
        prompt_id=prompt_id,
        family=first.family,
        prompt=first.prompt,
        answers=tuple(_sample_answer(answers[policy]) for policy in policies if policy in answers),
    )


def _sample_answer(answer: Answer) -> SampleAnswer:
    hidden = max(0, len(answer.response) - RESPONSE_CHARACTERS)
    return SampleAnswer(answer=answer, shown=answer.response[:RESPONSE_CHARACTERS], hidden=hidden)


def lineage(run: Run) -> list[Ancestry]:
    """Each sealed artefact with the artefacts that it was made from."""
    keys = {stage.name: stage.key for stage in run.stages}
    rows = []
    for stage in run.stages:
        if stage.provenance is None:
            continue
        parents = tuple((p.role, p.stage, p.key, keys.get(p.stage) == p.key) for p in stage.provenance.parents)
        rows.append(Ancestry(stage=stage.name, key=stage.key, base=stage.provenance.base, parents=parents))
    return rows


def surroundings(run: Run) -> list[Surroundings]:
    """Where each sealed artefact was made. A reused one may come from another machine or an older commit."""
    rows = []
    for stage in run.stages:
        made = stage.provenance
        if made is None:
            continue
        facts = [
            ("created", made.created),
            ("seed", "" if made.seed is None else str(made.seed)),
            ("processes", "" if made.world_size is None else str(made.world_size)),
            ("precision", made.precision),
            ("device", made.device),
            ("code", f"{made.commit}{' with uncommitted changes' if made.dirty else ''}" if made.commit else ""),
            ("libraries", ", ".join(f"{name} {version}" for name, version in made.libraries.items())),
        ]
        rows.append(Surroundings(stage=stage.name, facts=tuple((name, fact) for name, fact in facts if fact)))
    return rows
