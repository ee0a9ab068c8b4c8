"""A source -> its records, all at once, with every row accounted for: the entry of this package.

`reading` goes through the source. Next come `data_prep.split` and `data_prep.clean`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from data_prep.readers.faults import BadRow
from data_prep.readers.formats import Purpose
from data_prep.readers.reading import Reading, SourceSpec
from data_prep.records import Demonstration, PreferencePair, Prompt

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


@dataclass(frozen=True, kw_only=True)
class ReadResult(Generic[R]):
    """The records of one source and what became of its other rows.

    `rows_read` = `rows_kept` + all of `dropped` + `quarantined`. One row may make several records (ranked answers), and
    several rows one (labelled answers).
    """

    records: list[R]
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    format: str
    why: str
    """What the format was recognised by."""
    examples: list[tuple[int, str]] = field(default_factory=list)
    """The first few rows that were not kept: (row, reason)."""
    quarantined: list[BadRow] = field(default_factory=list)


def read_demonstrations(spec: SourceSpec) -> ReadResult[Demonstration]:
    """Conversations to imitate, or plain text; of a source that compares answers, the prompt with the best one."""
    return cast("ReadResult[Demonstration]", _read(spec, "demonstrations"))


def read_pairs(spec: SourceSpec) -> ReadResult[PreferencePair]:
    """Pairs of answers, from a format that has them."""
    return cast("ReadResult[PreferencePair]", _read(spec, "pairs"))


def read_prompts(spec: SourceSpec) -> ReadResult[Prompt]:
    """Prompts to answer, from a source of any format that has them; its (best) answer becomes the reference."""
    return cast("ReadResult[Prompt]", _read(spec, "prompts"))


def write_quarantine(path: Path, bad: Sequence[BadRow]) -> None:
    """Write rows that were set aside, one a line, with place, reason and content; nothing where there are none."""
    if bad:
        text = "".join(json.dumps(row.as_line(), ensure_ascii=False, default=str) + "\n" for row in bad)
        path.write_text(text, encoding="utf-8")


def _read(spec: SourceSpec, purpose: Purpose) -> ReadResult[Any]:
    reading = Reading(spec, purpose)
    records = list(reading)
    assert reading.form is not None, "a source without rows is refused before"
    return ReadResult(
        records=records,
        rows_read=reading.rows_read,
        rows_kept=reading.rows_kept,
        dropped=dict(reading.dropped),
        format=reading.form.format.name,
        why=reading.form.why,
        examples=reading.examples,
        quarantined=reading.quarantined,
    )
