"""The formats by name, and how `auto` tells them apart by the fields of the first row.

Between `containers` (files to raw rows) and `read` (raw rows to records).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data_prep.readers.containers import RawRow
from data_prep.readers.demonstrations import (
    Raw,
    has,
    parse_alpaca,
    parse_messages,
    parse_prompt_completion,
    parse_sharegpt,
)
from data_prep.readers.pairs import PROMPT_FIELDS, parse_hh, parse_preference
from data_prep.readers.turns import Parsed
from pipeline.errors import DataError, RecipeError

Purpose = Literal["demonstrations", "pairs", "prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write rows."""

    name: str
    parse: Callable[[Raw], Parsed]
    fields: str
    """What a row looks like, for messages."""
    matches: Callable[[Raw, Purpose], bool]
    """Whether a row looks like this format, given what it is wanted for."""
    has_pairs: bool = False


class Recognised(NamedTuple):
    """The format of a source and what it was recognised by."""

    format: Format
    why: str


def _like_alpaca(row: Raw, purpose: Purpose) -> bool:
    return has(row, "instruction") and ("output" in row or (purpose == "prompts" and not _has_sides(row)))


def _like_messages(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("messages"), list)


def _like_sharegpt(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("conversations"), list) and not _has_sides(row)


def _like_prompt_completion(row: Raw, purpose: Purpose) -> bool:
    return has(row, "prompt") and (
        "completion" in row or "response" in row or (purpose == "prompts" and not _has_sides(row))
    )


def _like_preference(row: Raw, purpose: Purpose) -> bool:
    return _has_sides(row) and not _like_hh(row, purpose)


def _like_hh(row: Raw, purpose: Purpose) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    dialogues = all(isinstance(side, str) and side.lstrip().startswith("Human:") for side in sides)
    return dialogues and not has(row, *PROMPT_FIELDS)


def _has_sides(row: Raw) -> bool:
    return has(row, "chosen", "chosen_messages") and has(row, "rejected", "rejected_messages")


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format(
            name="alpaca",
            parse=parse_alpaca,
            fields="instruction, input, output",
            matches=_like_alpaca,
        ),
        Format(
            name="messages",
            parse=parse_messages,
            fields="messages: [{role, content}]",
            matches=_like_messages,
        ),
        Format(
            name="sharegpt",
            parse=parse_sharegpt,
            fields="conversations: [{from, value}]",
            matches=_like_sharegpt,
        ),
        Format(
            name="prompt_completion",
            parse=parse_prompt_completion,
            fields="prompt, completion or response",
            matches=_like_prompt_completion,
        ),
        Format(
            name="preference",
            parse=parse_preference,
            fields="prompt or conversations or instruction, chosen, rejected",
            matches=_like_preference,
            has_pairs=True,
        ),
        Format(
            name="hh",
            parse=parse_hh,
            fields="chosen, rejected: whole 'Human: ... Assistant: ...' dialogues",
            matches=_like_hh,
            has_pairs=True,
        ),
    )
}


def resolve_format(name: str, first: RawRow, purpose: Purpose) -> Recognised:
    """The format that a recipe names, or for `auto` the one that the first row of the source shows."""
    if name == "auto":
        return _recognise(first, purpose)
    if name not in FORMATS:
        close = difflib.get_close_matches(name, [*FORMATS, "auto"], n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"{first.source}: unknown format {name!r}{hint}; known are auto, {', '.join(FORMATS)}")
    form = FORMATS[name]
    if purpose == "pairs" and not form.has_pairs:
        raise DataError(f"{first.source}: format {name!r} has no pairs; formats with pairs: {_known(purpose)}")
    return Recognised(form, "named in the recipe")


def _recognise(first: RawRow, purpose: Purpose) -> Recognised:
    row = first.fields
    if isinstance(row.get("label"), bool) and not _has_sides(row):
        raise DataError(
            f"{first.source}: the rows have a boolean `label`, as in binary feedback, so some of the answers are bad "
            "ones; keep the good rows only, or use them all by naming the format"
        )
    # A null is usually a field that a table gives to every row; only where nothing fits it may be a missing value.
    with_nulls = {key: "" if value is None else value for key, value in row.items()}
    fitting = _fitting(row, purpose) or _fitting(with_nulls, purpose)
    usable = [form for form in fitting if form.has_pairs or purpose != "pairs"]
    keys = ", ".join(map(str, row)) or "no fields"
    if len(usable) == 1:
        return Recognised(usable[0], f"the first row has the fields {keys}")
    names = " or ".join(form.name for form in usable or fitting)
    if usable:
        raise DataError(f"{first.source}: the fields of row {first.row} ({keys}) fit {names}; say which with `format:`")
    if fitting:
        raise DataError(
            f"{first.source}: the rows look like {names}, which has no pairs; formats with pairs: {_known(purpose)}"
        )
    raise DataError(
        f"{first.source}: row {first.row} has the fields {keys}, which fit no known format; rename the fields to one "
        f"of {_known(purpose)}"
    )


def _fitting(row: Raw, purpose: Purpose) -> list[Format]:
    return [form for form in FORMATS.values() if form.matches(row, purpose)]


def _known(purpose: Purpose) -> str:
    listed = [form for form in FORMATS.values() if form.has_pairs or purpose != "pairs"]
    return "; ".join(f"{form.name} ({form.fields})" for form in listed)
