"""A source -> records, with every row accounted for: the entry of this package.

`containers` finds the rows, `formats` takes each apart, this module makes records of them and decides what a bad row
means. Next come `data_prep.split` and `data_prep.clean`.

A row without an answer is normal and is dropped; so are the other faults of content. A row that is not of its format
(`turns.STRUCTURAL`) is dropped too while such rows are rare; when it is the first row, or more than one row in a
hundred, the format is wrong rather than the row, and reading stops. Every drop is counted by its reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data_prep.readers.containers import RawRow, read_raw
from data_prep.readers.formats import Purpose, Recognised, resolve_format
from data_prep.readers.turns import STRUCTURAL, Parsed, RowFault, text_of
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt, Split
from pipeline.errors import DataError
from pipeline.stopping import stop_if_asked

R = TypeVar("R", Demonstration, PreferencePair, Prompt)

STRUCTURAL_LIMIT = 0.01
IDENTICAL_LIMIT = 0.2
EXAMPLES = 3
SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "test": "eval",
    "valid": "eval",
    "validation": "eval",
    "val": "eval",
    "dev": "eval",
}
"""What a row's own `split` field may say. Everything that is not for training is held out."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One entry of a recipe's `sources`, as far as reading goes."""

    path: str
    format: str = "auto"
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    split: str = "train"
    """Split of a hub data set to read."""


@dataclass(frozen=True, kw_only=True)
class ReadResult(Generic[R]):
    """The records of one source and what became of its other rows: `rows_read` = records + all drops."""

    records: list[R]
    rows_read: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    format: str
    why: str
    """What the format was recognised by."""
    examples: list[tuple[int, str]] = field(default_factory=list)
    """The first few dropped rows: (row, reason)."""


def read_demonstrations(spec: SourceSpec) -> ReadResult[Demonstration]:
    """Conversations to imitate; of a preference source, the prompt with the chosen answer."""
    return _read(spec, "demonstrations", _demonstration)


def read_pairs(spec: SourceSpec) -> ReadResult[PreferencePair]:
    """Pairs of answers, from a format that has them."""
    return _read(spec, "pairs", _pair)


def read_prompts(spec: SourceSpec) -> ReadResult[Prompt]:
    """Prompts to answer, from a source of any format; its (chosen) answer becomes the reference."""
    return _read(spec, "prompts", _prompt)


def _read(spec: SourceSpec, purpose: Purpose, build: Callable[[RawRow, Parsed], R]) -> ReadResult[R]:
    records: list[R] = []
    dropped: Counter[str] = Counter()
    examples: list[tuple[int, str]] = []
    first_structural: tuple[RawRow, RowFault] | None = None
    form: Recognised | None = None
    for raw in read_raw(spec.path, revision=spec.revision, split=spec.split):
        stop_if_asked("reading rows")
        is_first = form is None
        form = form or resolve_format(spec.format, raw, purpose)
        try:
            records.append(build(raw, form.format.parse(raw.fields)))
        except RowFault as fault:
            dropped[fault.reason] += 1
            if len(examples) < EXAMPLES:
                examples.append((raw.row, fault.reason))
            if fault.reason in STRUCTURAL:
                first_structural = first_structural or (raw, fault)
                if is_first:
                    raise _misfit(raw, fault, form, "the very first row") from None
    assert form is not None, "a source without rows is refused by read_raw"
    result = ReadResult(
        records=records,
        rows_read=len(records) + dropped.total(),
        dropped=dict(dropped),
        format=form.format.name,
        why=form.why,
        examples=examples,
    )
    if first_structural:
        _check_structural(result, *first_structural, form)
    _check_identical(spec, result)
    _check_not_empty(spec, result)
    return result


def _check_structural(result: ReadResult[Any], raw: RawRow, fault: RowFault, form: Recognised) -> None:
    count = sum(result.dropped.get(reason, 0) for reason in STRUCTURAL)
    if count > STRUCTURAL_LIMIT * result.rows_read:
        raise _misfit(raw, fault, form, f"the first of {count} such rows in {result.rows_read}")


def _misfit(raw: RawRow, fault: RowFault, form: Recognised, which: str) -> DataError:
    return DataError(
        f"{raw.source}: row {raw.row} ({which}): {fault.detail}; expected format {form.format.name} "
        f"({form.format.fields}), so correct these rows or write another format"
    )


def _check_identical(spec: SourceSpec, result: ReadResult[Any]) -> None:
    identical = result.dropped.get("identical_pair", 0)
    pairs = len(result.records) + identical
    if identical > IDENTICAL_LIMIT * pairs:
        raise DataError(
            f"{spec.path}: in {identical} of {pairs} pairs chosen equals rejected; at most {IDENTICAL_LIMIT:.0%} may, "
            "so check how the pairs were made"
        )


def _check_not_empty(spec: SourceSpec, result: ReadResult[Any]) -> None:
    if result.records:
        return
    counts = sorted(result.dropped.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{reason} {count}" for reason, count in counts)
    raise DataError(
        f"{spec.path}: none of {result.rows_read} rows is left, most were dropped as {counts[0][0]} ({listed}); "
        f"check the file, or the format (read as {result.format})"
    )


def _demonstration(raw: RawRow, parsed: Parsed) -> Demonstration:
    answer = _required(parsed.answer, raw.fields)
    _refuse_empty(answer, "answer")
    messages = (*parsed.prompt, Message(role="assistant", content=answer))
    return Demonstration(messages=messages, origin=_origin(raw))


def _pair(raw: RawRow, parsed: Parsed) -> PreferencePair:
    chosen, rejected = _required(parsed.answer, raw.fields), _required(parsed.rejected, raw.fields)
    _refuse_empty(chosen, "chosen")
    _refuse_empty(rejected, "rejected")
    if chosen.split() == rejected.split():
        raise RowFault("identical_pair", "chosen equals rejected")
    fault = raw.fields.get("fault")
    return PreferencePair(
        prompt=parsed.prompt,
        chosen=chosen,
        rejected=rejected,
        origin=_origin(raw),
        margin=parsed.margin,
        fault=fault if isinstance(fault, str) else None,
    )


def _prompt(raw: RawRow, parsed: Parsed) -> Prompt:
    answer = text_of(raw.fields.get("reference"), "reference") or parsed.answer or ""
    return Prompt(
        messages=parsed.prompt,
        origin=_origin(raw),
        check=_check(raw.fields.get("check")),
        reference=answer if answer.strip() else None,
    )


def _required(answer: str | None, fields: Mapping[str, Any]) -> str:
    if answer is not None:
        return answer
    if "messages" in fields or "conversations" in fields:
        raise RowFault("no_final_answer", "the conversation does not end with a turn of the assistant")
    found = ", ".join(map(str, fields))
    raise RowFault("missing_field", f"there is no field with an answer (found: {found})")


def _refuse_empty(answer: str, name: str) -> None:
    if not answer.strip():
        raise RowFault("empty_answer", f"the {name} is empty")


def _origin(raw: RawRow) -> Origin:
    written, family = raw.fields.get("split"), raw.fields.get("family")
    split = None
    if written is not None and written != "":
        split = SPLITS.get(written.strip().lower()) if isinstance(written, str) else None
        if split is None:
            raise RowFault("unknown_split", f"`split` is {written!r:.40}, expected one of {', '.join(SPLITS)}")
    return Origin(
        source=raw.source,
        row=raw.row,
        split=split,
        family=family if isinstance(family, str) and family else None,
    )


def _check(value: object) -> Mapping[str, Any] | None:
    """The rule of a row; where the container has no nested fields (CSV) it is JSON in a string."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowFault("wrong_type", "`check` is a string that is not JSON, expected an object") from None
    if not isinstance(value, dict):
        raise RowFault("wrong_type", f"`check` is {value!r:.40}, expected an object")
    # Tables give every row the union of all keys, with null for those it lacks.
    return {key: item for key, item in value.items() if item is not None}
