"""What each section of the page shows: records in, rows of text out. One function per section, one template each."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from evaluation.report.lineage_graph import lineage_graph
from evaluation.report.load import Run
from evaluation.report.measures import Cell, Measure, cell, measured
from evaluation.report.provenance import DataSet
from evaluation.report.rates import Tally
from evaluation.report.reproduction import Reproduction, reproduction


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
class Ancestry:
    """What an artefact was made from. Each parent: role, stage, key, and whether this run holds that very artefact."""

    stage: str
    key: str
    base: str
    parents: tuple[tuple[str, str, str, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What all artefacts were made from, drawn and as a list."""

    graph: Markup
    made: tuple[Ancestry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a stage was run: seed, processes, precision, code, libraries."""

    stage: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """How the run is made again, and where each of its stages was made."""

    again: Reproduction | None
    places: tuple[Surroundings, ...]


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


def lineage(run: Run) -> Lineage:
    """Each sealed artefact with the artefacts that it was made from."""
    keys = {stage.name: stage.key for stage in run.stages}
    rows = []
    for stage in run.stages:
        if stage.provenance is None:
            continue
        parents = tuple((p.role, p.stage, p.key, keys.get(p.stage) == p.key) for p in stage.provenance.parents)
        rows.append(Ancestry(stage=stage.name, key=stage.key, base=stage.provenance.base, parents=parents))
    return Lineage(graph=lineage_graph(run.stages), made=tuple(rows))


def surroundings(run: Run) -> Environment:
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
    return Environment(again=reproduction(run), places=tuple(rows))
