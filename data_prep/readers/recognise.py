"""Which format a source is written in: the one that the recipe names, or the one that its first row shows."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from data_prep.readers.containers import RawRow
from data_prep.readers.demonstrations import Raw, has
from data_prep.readers.formats import FORMATS, Format, Purpose, has_sides
from pipeline.errors import DataError, RecipeError

NOT_SERVED: dict[Purpose, str] = {
    "demonstrations": "no answers to imitate",
    "pairs": "no pairs",
    "prompts": "no prompts",
}


class Recognised(NamedTuple):
    """The format of a source and what it was recognised by."""

    format: Format
    why: str


def resolve_format(name: str, first: RawRow, purpose: Purpose) -> Recognised:
    """The format that a recipe names, or for `auto` the one that the first row of the source shows."""
    if name == "auto":
        return _recognise(first, purpose)
    if name not in FORMATS:
        close = difflib.get_close_matches(name, [*FORMATS, "auto"], n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"{first.source}: unknown format {name!r}{hint}; known are auto, {', '.join(FORMATS)}")
    form = FORMATS[name]
    if form.pairs_by is not None and has(first.fields, form.pairs_by) and has_sides(first.fields):
        pairs = FORMATS["preference"]
        return Recognised(pairs, f"named {name} in the recipe, and the first row has chosen and rejected")
    if purpose not in form.serves:
        raise DataError(f"{first.source}: format {name!r} has {NOT_SERVED[purpose]}; {_which(purpose)}")
    return Recognised(form, "named in the recipe")


def _recognise(first: RawRow, purpose: Purpose) -> Recognised:
    row = first.fields
    # A null is usually a field that a table gives to every row; only where nothing fits it may be a missing value.
    with_nulls = {key: "" if value is None else value for key, value in row.items()}
    fitting = _fitting(row, purpose) or _fitting(with_nulls, purpose)
    usable = [form for form in fitting if purpose in form.serves]
    keys = ", ".join(map(str, row)) or "no fields"
    if len(usable) == 1:
        return Recognised(usable[0], f"the first row has the fields {keys}")
    names = " or ".join(form.name for form in usable or fitting)
    if usable:
        raise DataError(f"{first.source}: the fields of row {first.row} ({keys}) fit {names}; say which with `format:`")
    if fitting:
        raise DataError(
            f"{first.source}: the rows look like {names}, which has {NOT_SERVED[purpose]}; {_which(purpose)}"
        )
    raise DataError(
        f"{first.source}: row {first.row} has the fields {keys}, which fit no known format; say which they are with "
        f"`map:` ({{instruction: {_some_field(row)}, ...}}), or rename them to one of {_known(purpose)}"
    )


def _fitting(row: Raw, purpose: Purpose) -> list[Format]:
    found = [form for form in FORMATS.values() if form.matches(row, purpose)]
    return [form for form in found if not form.last_resort] or found


def _some_field(row: Raw) -> str:
    return next((str(key) for key, value in row.items() if isinstance(value, str)), "question")


def _which(purpose: Purpose) -> str:
    what = {"demonstrations": "formats with answers", "pairs": "formats with pairs", "prompts": "formats with prompts"}
    return f"{what[purpose]}: {_known(purpose)}"


def _known(purpose: Purpose) -> str:
    return "; ".join(f"{form.name} ({form.fields})" for form in FORMATS.values() if purpose in form.serves)
