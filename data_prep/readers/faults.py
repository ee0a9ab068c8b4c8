"""What can be wrong with one row, as data: the reason it is counted by, the place, and the row itself.

Raised or handed over by `files`, `turns` and the formats; `read` decides what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError

STRUCTURAL = frozenset(
    {
        "missing_field",
        "wrong_type",
        "unknown_role",
        "unknown_split",
        "roles_out_of_order",
        "no_final_answer",
    }
)
"""Faults that say the row is not of its format. A few are dropped, many mean that the format is wrong."""

UNREADABLE = frozenset({"not_utf8", "broken_json", "not_an_object", "wrong_cell_count"})
"""Faults that keep a row from being read at all."""

NOT_WANTED = frozenset({"labelled_bad", "no_counterpart", "tie", "identical_pair"})
"""Reasons to leave a row out that are no fault of it: it is sound, and of no use for what is asked."""


class RowFault(Exception):
    """A row that cannot become a record: a stable reason to count by, and a sentence about this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row set aside, with what is needed to find, understand and repair it."""

    source: str
    row: int
    """As in `Origin`: for text files other than JSON arrays, the line."""
    column: int | None = None
    """1-based character of that line, where the fault has one."""
    reason: str
    detail: str
    content: Any
    """The row's fields, or its text where that is all there is."""

    def as_line(self) -> dict[str, Any]:
        """What a line of `quarantine.jsonl` says."""
        place = {"source": self.source, "row": self.row, "column": self.column}
        return {**place, "reason": self.reason, "detail": self.detail, "content": self.content}


class UnreadableRowError(DataError):
    """One row of a file cannot be read, though the rows around it can; the message is for stopping there."""

    def __init__(self, sentence: str, bad: BadRow):
        super().__init__(sentence)
        self.bad = bad


OnBad = Callable[[BadRow], None]
"""Takes a row that cannot be read, so that reading goes on behind it."""


def refuse(error: UnreadableRowError, on_bad: OnBad | None) -> None:
    """Stop at an unreadable row, or hand it to whoever collects such rows."""
    if on_bad is None:
        raise error from None
    on_bad(error.bad)
