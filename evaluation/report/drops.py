"""Rows that are not trained on, by reason: what was left out on purpose, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.reasons import drop_told, is_on_purpose
from evaluation.report.files import mapping, objects, whole


@dataclass(frozen=True, slots=True)
class Drop:
    """Rows that fell out for one reason."""

    reason: str
    rows: int
    told: str
    on_purpose: bool
    """The recipe chose so; otherwise the rows could not be used."""
    set_aside: bool = False
    """Whether `quarantine.jsonl` has them."""


def drops_of(report: Mapping[str, Any]) -> list[Drop]:
    """All rows of a data report that fell out, in reading and after, those that could not be used first."""
    counts: Counter[str] = Counter()
    for part in (*objects(report.get("sources")), report):
        for reason, value in mapping(part.get("dropped")).items():
            counts[reason] += whole(value) or 0
    found = [Drop(reason, rows, drop_told(reason), is_on_purpose(reason)) for reason, rows in counts.items() if rows]
    aside: Counter[str] = Counter()
    for source in objects(report.get("sources")):
        for reason, value in mapping(source.get("quarantined")).items():
            aside[reason] += whole(value) or 0
    found += [
        Drop(reason, rows, f"{drop_told(reason)} (set aside)", on_purpose=False, set_aside=True)
        for reason, rows in aside.items()
        if rows
    ]
    return sorted(found, key=lambda drop: (drop.on_purpose, -drop.rows, drop.reason))
