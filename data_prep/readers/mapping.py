"""Fields of other names: a source's `map:`, from the names that formats know to those that its rows have.

Applied to every raw row before its format looks at it; the row keeps its other fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.readers.comparisons import ANNOTATOR
from data_prep.readers.containers import RawRow
from data_prep.readers.faults import RowFault
from pipeline.errors import DataError, RecipeError

FIELDS = (
    "instruction", "input", "output", "system", "history", "tools", "functions", "instances", "messages",
    "conversations", "chat", "prompt", "completion", "response", "text", "turns", "chosen", "rejected", "margin",
    "score_chosen", "score_rejected", "label", "label_noise", "responses", "answers", "completions", "response1",
    "response2", "info", "summaries", "choice", "output_1", "output_2",
    "preference", "reference", "check", "split", "family", "fault", "group",
)  # fmt: skip
"""What a source may map: the fields that some format, or every format, looks at."""

_ABSENT = object()


def renamed(raw: RawRow, fields: Mapping[str, str]) -> RawRow:
    """The row with the mapped fields under their new names; `a.b` and `a.0.b` reach into objects and lists.

    A field that is mapped goes by its new name alone; of a nested one the outer field stays.

    Raises:
        RowFault: the row lacks a mapped field.
    """
    if not fields:
        return raw
    taken = {path for path in fields.values() if path in raw.fields}
    row = {key: value for key, value in raw.fields.items() if key not in taken}
    for name, path in fields.items():
        value = _follow(raw.fields, path)
        if value is _ABSENT:
            raise RowFault("missing_field", f"there is no field `{path}` to map {name} from; {found_in(raw, path)}")
        row[name] = value
    return raw._replace(fields=row)


def check_mapping(source: str, first: RawRow, fields: Mapping[str, str]) -> None:
    """Refuse a mapping that names what no format looks at, or what the first row does not have.

    Raises:
        RecipeError: no format has such a field.
        DataError: the row has no such field; the message names those it has and the nearest one.
    """
    for name, path in fields.items():
        if name not in FIELDS and not ANNOTATOR.fullmatch(name):
            raise RecipeError(f"{source}: {_unknown_target(name)}")
        if _follow(first.fields, path) is _ABSENT:
            raise DataError(
                f"{source}: row {first.row} has no field `{path}` to map {name} from; {found_in(first, path)}"
            )


def _unknown_target(name: str) -> str:
    """What is wrong with the left side of a mapping."""
    near = difflib.get_close_matches(name, FIELDS, n=1)
    meant = f", did you mean {near[0]!r}?" if near else ""
    return f"`map` cannot fill {name!r}, no format has such a field{meant or '; known are ' + ', '.join(FIELDS)}"


def found_in(raw: RawRow, path: str) -> str:
    """The row's own fields, and the one nearest to a path."""
    names = list(_paths(raw.fields))
    near = difflib.get_close_matches(path, names, n=1, cutoff=0.5)
    nested = [name for name in names if name.endswith(f".{path}")]
    meant = (nested or near)[:1]
    hint = f"did you mean {meant[0]!r}? " if meant else ""
    return f"{hint}it has {', '.join(map(str, raw.fields)) or 'none'}"


def _paths(fields: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[str]:
    for key, value in fields.items():
        yield f"{before}{key}"
        if isinstance(value, Mapping) and depth < 2:
            yield from _paths(value, f"{before}{key}.", depth + 1)


def _follow(value: Any, path: str) -> Any:
    """The value at a dotted path; a field whose own name has dots in it comes first."""
    if isinstance(value, Mapping) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping) and head in value:
        inner = value[head]
    elif isinstance(value, list) and head.isdigit() and int(head) < len(value):
        inner = value[int(head)]
    else:
        return _ABSENT
    return _follow(inner, rest) if rest else inner
