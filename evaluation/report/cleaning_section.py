"""What cleaning did to a data set: rows taken out by rule and source, texts changed, evaluation sets kept apart.

From `cleaning` in a stage's data report. Part of the data section; what a report lacks is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.reasons import drop_told
from evaluation.report.files import mapping, text, whole
from evaluation.report.measures import count


@dataclass(frozen=True, slots=True)
class TakenOut:
    """Training rows of one source that one rule took out."""

    rule: str
    told: str
    source: str
    rows: int


@dataclass(frozen=True, slots=True)
class KeptApart:
    """An evaluation set that training rows were compared with."""

    name: str
    texts: str
    rows_dropped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningFigures:
    """All that a data report says of cleaning."""

    taken_out: tuple[TakenOut, ...]
    facts: tuple[tuple[str, str], ...]
    kept_apart: tuple[KeptApart, ...]


def cleaning_of(report: Mapping[str, Any]) -> CleaningFigures:
    """What is to be shown of a data report's `cleaning`."""
    found = mapping(report.get("cleaning"))
    decontamination = mapping(found.get("decontamination"))
    return CleaningFigures(
        taken_out=tuple(_taken_out(mapping(found.get("dropped")))),
        facts=tuple(_facts(found, decontamination)),
        kept_apart=tuple(_kept_apart(mapping(decontamination.get("sets")))),
    )


def _taken_out(dropped: Mapping[str, Any]) -> Iterator[TakenOut]:
    for rule, by_source in dropped.items():
        for source, value in mapping(by_source).items():
            if rows := whole(value):
                yield TakenOut(rule, drop_told(rule), source, rows)


def _facts(found: Mapping[str, Any], decontamination: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    changed = {name: rows for name, value in mapping(found.get("changed")).items() if (rows := whole(value))}
    if repaired := changed.pop("repaired", 0):
        yield "rows with broken characters put right", count(repaired)
    if changed:
        masks = (
            f"{name.removeprefix('masked_').replace('_', ' ')} {count(masked)}" for name, masked in changed.items()
        )
        yield "masked", ", ".join(masks)
    if conflicts := whole(found.get("label_conflicts")):
        yield "pairs that another one contradicts", f"{count(conflicts)}, still trained on (label_conflicts: keep)"
    absent = decontamination.get("not_on_this_machine")
    if isinstance(absent, list) and absent:
        yield "evaluation sets not on this machine", ", ".join(map(text, absent))


def _kept_apart(sets: Mapping[str, Any]) -> Iterator[KeptApart]:
    for name, value in sets.items():
        row = mapping(value)
        yield KeptApart(name, count(whole(row.get("texts"))), count(whole(row.get("rows_dropped"))))
