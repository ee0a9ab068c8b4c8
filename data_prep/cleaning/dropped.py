"""The account of what cleaning took out: a row, the rule that dropped it, and by what measure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.records import Record

DROPPED_ROWS = "dropped.jsonl"
"""In an artefact: a line for every row that cleaning or tokenising took out of training."""
_CONFIDENTIAL = ("personal_data", "secrets")
"""What these rules drop is not written out again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a record is dropped."""

    rule: str
    """Name of the rule: the key of the recipe's `clean` block, or the reason under which the row is counted."""
    score: float | None = None
    """What was measured, where the rule has a threshold or a degree."""
    detail: str = ""
    """What was found, in a few words."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that was dropped."""

    record: Record
    finding: Finding

    def line(self) -> dict[str, Any]:
        """What `dropped.jsonl` says of it: enough to find the row in its file, or to put it back."""
        finding, origin = self.finding, self.record.origin
        line: dict[str, Any] = {"rule": finding.rule, "score": finding.score, "detail": finding.detail}
        line |= {"source": origin.source, "row": origin.row}
        if finding.rule in _CONFIDENTIAL:
            return line | {"detail": "left out here, see the source"}
        content = asdict(self.record)
        del content["origin"]
        return line | {"record": _without_blanks(content)}


def _without_blanks(content: dict[str, Any]) -> dict[str, Any]:
    """Less what a record lacks: no margin, no rule, no functions. Texts stay, empty ones too."""
    found = {name: value for name, value in content.items() if value is not None and value != ()}
    for turns in ("messages", "prompt"):
        if turns in found:
            found[turns] = [
                {key: value for key, value in turn.items() if key in ("role", "content") or value}
                for turn in found[turns]
            ]
    return found


def write_dropped(folder: Path, dropped: Iterable[Dropped]) -> int:
    """Write `dropped.jsonl` into a folder, unless nothing was dropped; returns the number of lines."""
    lines = [json.dumps(each.line(), ensure_ascii=False) + "\n" for each in dropped]
    if lines:
        (folder / DROPPED_ROWS).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def missing(before: Sequence[Record], after: Sequence[Record], finding: Finding) -> list[Dropped]:
    """The records that are no longer there, all dropped for one reason."""
    kept = set(map(id, after))
    return [Dropped(record, finding) for record in before if id(record) not in kept]
