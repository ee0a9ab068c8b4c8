"""The account of what cleaning took out: a row, the rule that dropped it, and by what measure."""

from __future__ import annotations

import json
from collections import Counter
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


def tell_dropped(report: dict[str, Any], dropped: Iterable[Dropped]) -> None:
    """Complete a data report with what `dropped.jsonl` holds, by rule and source: `report["cleaning"]["dropped"]`."""
    counts = by_rule_and_source(dropped, [source["path"] for source in report["sources"]])
    if counts:
        report.setdefault("cleaning", {})["dropped"] = counts


def by_rule_and_source(dropped: Iterable[Dropped], paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows by rule and source, both the most frequent first.

    Args:
        dropped: rows that were taken out of training.
        paths: of the recipe's sources; rows of a file in a folder count for the folder.
    """
    rules: dict[str, Counter[str]] = {}
    for each in dropped:
        rules.setdefault(each.finding.rule, Counter())[_home(each.record.origin.source, paths)] += 1
    by_size = sorted(rules.items(), key=lambda item: (-item[1].total(), item[0]))
    return {rule: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) for rule, counts in by_size}


def _home(source: str, paths: Sequence[str]) -> str:
    """The recipe's own name of the source that a file belongs to."""
    above = [path for path in paths if source == path or source.startswith(path.rstrip("/") + "/")]
    return max(above, key=len, default=source)


def missing(before: Sequence[Record], after: Sequence[Record], finding: Finding) -> list[Dropped]:
    """The records that are no longer there, all dropped for one reason."""
    kept = set(map(id, after))
    return [Dropped(record, finding) for record in before if id(record) not in kept]
