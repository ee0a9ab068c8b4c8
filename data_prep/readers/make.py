"""Parsed rows -> records: what of a row answers, compares or asks, and where it came from.

Called by `read` for every row; a `RowFault` says why a row makes no record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_prep.readers.containers import RawRow
from data_prep.readers.faults import RowFault
from data_prep.readers.formats import Purpose
from data_prep.readers.turns import Pair, Parsed, Turns, is_empty, text_of
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt, Split

NOT_TEXT = ("image", "images", "video", "videos", "audio", "audios")
"""Columns in which rows about pictures and sounds have them, beside turns that read like any others."""
Made = Demonstration | PreferencePair | Prompt

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("eval", "evaluation", "test", "valid", "validation", "val", "dev"), "eval"),
    **dict.fromkeys(("valid1", "valid2"), "eval"),
}
"""What a row's own `split` field may say. Everything that is not for training is held out."""


class Labelled(NamedTuple):
    """A good or bad answer that waits for its counterpart."""

    prompt: Turns
    answer: Message
    is_good: bool
    origin: Origin


def make_records(raw: RawRow, rows: Sequence[Parsed], purpose: Purpose, labelled: list[Labelled]) -> list[Made] | None:
    """The records of one row; None where its answers were put among the labelled ones.

    Raises:
        RowFault: the row makes none, or one of its parts is at fault.
    """
    _refuse_not_text(raw.fields)
    origin = _origin(raw)
    if purpose == "demonstrations":
        return [_demonstration(raw, parsed, origin) for parsed in rows]
    if purpose == "prompts":
        return [_prompt(raw, parsed, origin) for parsed in rows]
    if all(parsed.label is None for parsed in rows):
        return [pair for parsed in rows for pair in _pairs(raw, parsed, origin)]
    for parsed in rows:
        answer = _required(parsed.answer, raw.fields)
        _refuse_empty(answer, "answer")
        labelled.append(Labelled(parsed.prompt, answer, bool(parsed.label), origin))
    return None


def _refuse_not_text(fields: Mapping[str, Any]) -> None:
    for name in NOT_TEXT:
        if fields.get(name) not in (None, "", [], {}):
            raise RowFault("non_text_content", f"the row is about what its `{name}` holds, only text can be used")


def pair_labelled(labelled: Sequence[Labelled]) -> tuple[list[PreferencePair], list[Origin]]:
    """All pairs of a good and a bad answer to one prompt, and the rows that found no counterpart."""
    by_prompt: dict[Turns, list[Labelled]] = {}
    for each in labelled:
        by_prompt.setdefault(each.prompt, []).append(each)
    pairs: list[PreferencePair] = []
    alone: list[Origin] = []
    for prompt, answers in by_prompt.items():
        good = [each for each in answers if each.is_good]
        bad = [each for each in answers if not each.is_good]
        said = [(one, other) for one in good for other in bad if not _same(one.answer, other.answer)]
        group = _digest(prompt) if len(said) > 1 else None
        pairs += [
            _record(one.origin, prompt, Pair(chosen=one.answer, rejected=other.answer), group=group)
            for one, other in said
        ]
        used = {id(each) for both in said for each in both}
        alone += [each.origin for each in answers if id(each) not in used]
    return pairs, alone


def _digest(prompt: Turns) -> str:
    return hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]


def _demonstration(raw: RawRow, parsed: Parsed, origin: Origin) -> Demonstration:
    if parsed.label is False:
        raise RowFault("labelled_bad", "the row calls its answer a bad one")
    if parsed.is_tie:
        raise RowFault("tie", "no answer of the row is better than another")
    answer = _required(parsed.answer, raw.fields)
    _refuse_empty(answer, "answer")
    return Demonstration(messages=(*parsed.prompt, answer), origin=origin)


def _pairs(raw: RawRow, parsed: Parsed, origin: Origin) -> list[PreferencePair]:
    """The pairs of a row; one that is of no use counts only where the row has no other."""
    made: list[PreferencePair] = []
    faults: list[RowFault] = []
    own, fault = raw.fields.get("group"), raw.fields.get("fault")
    group = own if isinstance(own, str) and own else f"{raw.source}:{raw.row}" if len(parsed.pairs) > 1 else None
    for pair in parsed.pairs:
        try:
            _refuse_empty(pair.chosen, "chosen")
            _refuse_empty(pair.rejected, "rejected")
            if _same(pair.chosen, pair.rejected):
                raise RowFault("identical_pair", "chosen equals rejected")
            said = fault if isinstance(fault, str) else None
            made.append(_record(origin, parsed.prompt, pair, group=group, fault=said))
        except RowFault as found:
            faults.append(found)
    if not made:
        raise faults[0] if faults else RowFault("tie", "no answer of the row is better than another")
    return made


def _record(
    origin: Origin, prompt: Turns, pair: Pair, *, group: str | None, fault: str | None = None
) -> PreferencePair:
    return PreferencePair(
        prompt=prompt,
        chosen=pair.chosen.content,
        rejected=pair.rejected.content,
        origin=origin,
        margin=pair.margin,
        fault=fault,
        label_noise=pair.label_noise,
        group=group,
        chosen_calls=pair.chosen.tool_calls,
        rejected_calls=pair.rejected.tool_calls,
    )


def _prompt(raw: RawRow, parsed: Parsed, origin: Origin) -> Prompt:
    good = "" if parsed.answer is None or parsed.label is False else parsed.answer.content
    answer = text_of(raw.fields.get("reference"), "reference") if _has_text_reference(raw) else good
    return Prompt(
        messages=parsed.prompt,
        origin=origin,
        check=_check(raw.fields.get("check")),
        reference=answer or good if (answer or good).strip() else None,
    )


def _has_text_reference(raw: RawRow) -> bool:
    """A list under that name is the `questions` format's, which has read it."""
    return raw.fields.get("reference") is not None and not isinstance(raw.fields["reference"], list)


def _same(one: Message, other: Message) -> bool:
    return one.content.split() == other.content.split() and one.tool_calls == other.tool_calls


def _required(answer: Message | None, fields: Mapping[str, Any]) -> Message:
    if answer is not None:
        return answer
    if "messages" in fields or "conversations" in fields or "chat" in fields:
        raise RowFault("no_final_answer", "the conversation does not end with a turn of the assistant")
    found = ", ".join(map(str, fields))
    raise RowFault("missing_field", f"there is no field with an answer (found: {found})")


def _refuse_empty(answer: Message, name: str) -> None:
    if is_empty(answer):
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
