"""The formats by name: how each is read, what it looks like, what it can be used for.

Between `containers` (files to raw rows) and `read` (raw rows to records); `recognise` chooses among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.readers.comparisons import (
    ANNOTATOR,
    RANKED_FIELDS,
    parse_alpaca_eval,
    parse_ranked,
    parse_tldr,
    parse_ultrafeedback,
    parse_votes,
)
from data_prep.readers.demonstrations import (
    Raw,
    has,
    parse_alpaca,
    parse_messages,
    parse_prompt_completion,
    parse_questions,
    parse_self_instruct,
    parse_sharegpt,
    parse_text,
)
from data_prep.readers.glaive import parse_glaive
from data_prep.readers.pairs import LABELS, PROMPT_FIELDS, parse_hh, parse_kto, parse_preference
from data_prep.readers.turns import Parsed

Purpose = Literal["demonstrations", "pairs", "prompts"]
ALL: tuple[Purpose, ...] = ("demonstrations", "pairs", "prompts")
SINGLE: tuple[Purpose, ...] = ("demonstrations", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write rows."""

    name: str
    parse: Callable[[Raw], tuple[Parsed, ...]]
    fields: str
    """What a row looks like, for messages."""
    matches: Callable[[Raw, Purpose], bool]
    """Whether a row looks like this format, given what it is wanted for."""
    serves: tuple[Purpose, ...] = SINGLE
    last_resort: bool = False
    """Recognised only where nothing else is: its field often stands beside those of other formats."""
    pairs_by: str | None = None
    """Rows with this field, chosen and rejected go by this name too; they are read as `preference`."""

    @property
    def has_pairs(self) -> bool:
        """Whether pairs can be made of it."""
        return "pairs" in self.serves


def _like_alpaca(row: Raw, purpose: Purpose) -> bool:
    answered = "output" in row and not isinstance(row["output"], list)
    return has(row, "instruction") and _is_single(row) and (answered or purpose == "prompts")


def _like_self_instruct(row: Raw, purpose: Purpose) -> bool:
    return has(row, "instruction") and isinstance(row.get("instances"), list)


def _like_messages(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("messages"), list) and not _has_label(row)


def _like_sharegpt(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("conversations"), list) and not has_sides(row) and not _has_label(row)


def _like_prompt_completion(row: Raw, purpose: Purpose) -> bool:
    answered = "completion" in row or "response" in row
    return has(row, "prompt") and _is_single(row) and (answered or purpose == "prompts")


def _like_preference(row: Raw, purpose: Purpose) -> bool:
    return has_sides(row) and not _like_hh(row, purpose)


def _like_hh(row: Raw, purpose: Purpose) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    dialogues = all(isinstance(side, str) and side.lstrip().startswith("Human:") for side in sides)
    return dialogues and not has(row, *PROMPT_FIELDS)


def _like_kto(row: Raw, purpose: Purpose) -> bool:
    answered = has(row, "messages", "conversations", "completion", "response", "output")
    return _has_label(row) and answered and not has_sides(row)


def _like_alpaca_eval(row: Raw, purpose: Purpose) -> bool:
    return has(row, "output_1") and has(row, "output_2") and has(row, "preference", "label")


def _like_votes(row: Raw, purpose: Purpose) -> bool:
    return has(row, "response1") and has(row, "response2") and any(ANNOTATOR.fullmatch(str(name)) for name in row)


def _like_tldr(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("summaries"), list) and isinstance(row.get("info"), Mapping)


def _like_ranked(row: Raw, purpose: Purpose) -> bool:
    lists = any(isinstance(row.get(name), list) for name in RANKED_FIELDS)
    return has(row, "instruction", "prompt") and lists and not _scored(row)


def _like_ultrafeedback(row: Raw, purpose: Purpose) -> bool:
    return has(row, "instruction", "prompt") and _scored(row)


def _like_glaive(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("chat"), str) and row["chat"].lstrip().startswith("USER:")


def _like_text(row: Raw, purpose: Purpose) -> bool:
    return isinstance(row.get("text"), str)


def _like_questions(row: Raw, purpose: Purpose) -> bool:
    turns = row.get("turns")
    return isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns)


def has_sides(row: Raw) -> bool:
    """Whether a row names the better and the worse of two answers."""
    return has(row, "chosen", "chosen_messages") and has(row, "rejected", "rejected_messages")


def _has_label(row: Raw) -> bool:
    label: Any = row.get("label")
    return isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in LABELS)


def _scored(row: Raw) -> bool:
    completions = row.get("completions")
    return isinstance(completions, list) and any(
        isinstance(each, Mapping) and "response" in each for each in completions
    )


def _is_single(row: Raw) -> bool:
    """Whether the row's fields leave one answer, unlabelled, and no instances or comparison."""
    compared = (has_sides, _has_label, _scored, lambda row: _like_alpaca_eval(row, "pairs"))
    lists = any(isinstance(row.get(name), list) for name in (*RANKED_FIELDS, "instances"))
    return not lists and not _like_votes(row, "pairs") and not any(is_compared(row) for is_compared in compared)


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format(
            name="alpaca",
            parse=parse_alpaca,
            fields="instruction, input, output",
            matches=_like_alpaca,
            pairs_by="instruction",
        ),
        Format(
            name="self_instruct",
            parse=parse_self_instruct,
            fields="instruction, instances: [{input, output}]",
            matches=_like_self_instruct,
        ),
        Format(name="messages", parse=parse_messages, fields="messages: [{role, content}]", matches=_like_messages),
        Format(
            name="sharegpt",
            parse=parse_sharegpt,
            fields="conversations: [{from, value}]",
            matches=_like_sharegpt,
            pairs_by="conversations",
        ),
        Format(
            name="glaive", parse=parse_glaive, fields="system, chat: 'USER: ... ASSISTANT: ...'", matches=_like_glaive
        ),
        Format(
            name="prompt_completion",
            parse=parse_prompt_completion,
            fields="prompt, completion or response",
            matches=_like_prompt_completion,
        ),
        Format(
            name="text",
            parse=parse_text,
            fields="text",
            matches=_like_text,
            serves=("demonstrations",),
            last_resort=True,
        ),
        Format(
            name="questions",
            parse=parse_questions,
            fields="turns: [question]",
            matches=_like_questions,
            serves=("prompts",),
        ),
        Format(
            name="preference",
            parse=parse_preference,
            fields="prompt or conversations or instruction, chosen, rejected",
            matches=_like_preference,
            serves=ALL,
        ),
        Format(
            name="hh",
            parse=parse_hh,
            fields="chosen, rejected: whole 'Human: ... Assistant: ...' dialogues",
            matches=_like_hh,
            serves=ALL,
        ),
        Format(
            name="kto",
            parse=parse_kto,
            fields="an answer as in alpaca, messages or prompt_completion, label: true or false",
            matches=_like_kto,
            serves=ALL,
        ),
        Format(
            name="ranked",
            parse=parse_ranked,
            fields="prompt or instruction, output or responses: [answer, best first]",
            matches=_like_ranked,
            serves=ALL,
        ),
        Format(
            name="votes",
            parse=parse_votes,
            fields="instruction, response1, response2, annotator1, ...: 1, 2 or 0",
            matches=_like_votes,
            serves=ALL,
        ),
        Format(
            name="ultrafeedback",
            parse=parse_ultrafeedback,
            fields="instruction, completions: [{response, score}]",
            matches=_like_ultrafeedback,
            serves=ALL,
        ),
        Format(
            name="tldr",
            parse=parse_tldr,
            fields="info: {post}, summaries: [{text}, {text}], choice",
            matches=_like_tldr,
            serves=ALL,
        ),
        Format(
            name="alpaca_eval",
            parse=parse_alpaca_eval,
            fields="instruction or input, output_1, output_2, preference or label: 1 or 2",
            matches=_like_alpaca_eval,
            serves=ALL,
        ),
    )
}
