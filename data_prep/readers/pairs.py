"""Formats that name the better of two answers: preference in its several spellings, Anthropic's hh, and kto's labels.

A function per format, from a raw row to `Parsed` with its pair; it raises `RowFault` where the row does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from data_prep.readers.demonstrations import (
    Raw,
    alpaca_prompt,
    field,
    has,
    parse_alpaca,
    parse_messages,
    parse_prompt_completion,
    parse_sharegpt,
    row_prompt,
    row_tools,
    turns_of,
)
from data_prep.readers.faults import RowFault
from data_prep.readers.files import describe
from data_prep.readers.turns import (
    Pair,
    Parsed,
    Turns,
    answer_turn,
    check_prompt,
    messages_of,
    split_final,
    text_of,
    transcript_of,
    with_tools,
)
from data_prep.records import Message

PROMPT_FIELDS = ("prompt", "instruction", "conversations")
LABELS = {"true": True, "false": False}


def parse_preference(row: Raw) -> tuple[Parsed, ...]:
    """`chosen` and `rejected`, and a prompt before them.

    The prompt is `prompt` (a string or a list of turns), `instruction` with `input` as in alpaca, or `conversations`
    as in sharegpt. Without any of them chosen and rejected are whole conversations, and what comes before their last
    turns is the prompt. An answer is a string, one turn, or a list of turns that may begin with the prompt again.
    """
    prompt = _written_prompt(row)
    chosen = _side(field(row, "chosen", "chosen_messages"), "chosen", prompt)
    rejected = _side(field(row, "rejected", "rejected_messages"), "rejected", prompt)
    return _pair(chosen, rejected, row)


def parse_hh(row: Raw) -> tuple[Parsed, ...]:
    """`chosen` and `rejected` as whole dialogues in one text, alike up to the last answer."""
    chosen = transcript_of(text_of(field(row, "chosen"), "chosen"), "chosen")
    rejected = transcript_of(text_of(field(row, "rejected"), "rejected"), "rejected")
    # First, because a side that went astray in the middle usually has its roles out of order as well.
    if chosen[:-1] != rejected[:-1]:
        raise RowFault("prompts_differ", "chosen and rejected differ before their last turns")
    return _pair(_final(chosen, "chosen"), _final(rejected, "rejected"), row)


def parse_kto(row: Raw) -> tuple[Parsed, ...]:
    """`label`: whether the answer of the row, written as in any format of one answer, is a good one."""
    written = field(row, "label")
    label = LABELS.get(written.strip().lower()) if isinstance(written, str) else written
    if not isinstance(label, bool):
        raise RowFault("wrong_type", f"`label` is {written!r:.40}, expected true or false")
    if has(row, "messages"):
        parsed = parse_messages(row)
    elif has(row, "conversations"):
        parsed = parse_sharegpt(row)
    else:
        parsed = parse_prompt_completion(row) if has(row, "prompt") else parse_alpaca(row)
    return tuple(replace(each, label=label) for each in parsed)


def margin_of(row: Raw) -> float | None:
    """`margin`, or the difference of `score_chosen` and `score_rejected`, where the row has them."""
    if has(row, "margin") and row["margin"] != "":
        return number_of(row["margin"], "margin")
    if has(row, "score_chosen") and has(row, "score_rejected"):
        return number_of(row["score_chosen"], "score_chosen") - number_of(row["score_rejected"], "score_rejected")
    return None


def number_of(value: object, name: str) -> float:
    """A finite number, which may be written as text."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowFault("wrong_type", f"`{name}` is {value!r:.40}, expected a finite number")
    return number


def _written_prompt(row: Raw) -> Turns | None:
    """The prompt as the row writes it apart from the answers, or None."""
    if has(row, "prompt"):
        prompt = row_prompt(row)
    elif has(row, "conversations"):
        system = text_of(row.get("system"), "system")
        prompt = messages_of(row["conversations"], "conversations", system, row_tools(row))
    elif has(row, "instruction"):
        prompt = alpaca_prompt(row)
    else:
        return None
    check_prompt(prompt)
    return prompt


def _side(value: object, name: str, prompt: Turns | None) -> tuple[Turns, Message]:
    """The whole prompt of one side and its answer."""
    if value is None or isinstance(value, str):
        if prompt is None:
            wanted = ", ".join(f"`{key}`" for key in PROMPT_FIELDS)
            raise RowFault("missing_field", f"`{name}` is a plain answer and there is no prompt (one of {wanted})")
        return prompt, answer_turn(text_of(value, name))
    if not isinstance(value, list | Mapping):
        raise RowFault("wrong_type", f"`{name}` is {describe(value)}, expected a string, a turn or a list of turns")
    turns = turns_of(value, name)
    if prompt is not None and (not turns or turns[0].role == "assistant"):
        turns = (*prompt, *turns)  # the answer alone, or a continuation of several turns
    elif prompt is not None:
        turns = _merged(prompt, turns, name)
    return _final(turns, name)


def _merged(prompt: Turns, turns: Turns, name: str) -> Turns:
    """Turns that begin with the prompt again; a system turn may stand in either of the two."""
    asked = _bare(prompt)
    said = _bare(turns)
    repeats = said[: len(asked)] == asked
    # A prompt that is one string can be the last question of a longer conversation.
    repeats |= len(asked) == 1 and asked[0] in said[:-1]
    if not repeats:
        raise RowFault("prompts_differ", f"the turns of `{name}` do not begin with the prompt")
    system = tuple(replace(m, tools=()) for m in (*turns, *prompt) if m.role == "system")[:1]
    return with_tools((*system, *said), prompt[0].tools)


def _bare(turns: Turns) -> Turns:
    """The turns without what may stand in one of two copies only."""
    return tuple(replace(m, tools=()) for m in turns if m.role != "system")


def _final(turns: Turns, name: str) -> tuple[Turns, Message]:
    prompt, answer = split_final(turns)
    if answer is None:
        raise RowFault("no_final_answer", f"`{name}` does not end with a turn of the assistant")
    return prompt, answer


def _pair(chosen: tuple[Turns, Message], rejected: tuple[Turns, Message], row: Raw) -> tuple[Parsed, ...]:
    if chosen[0] != rejected[0]:
        raise RowFault("prompts_differ", "chosen and rejected answer different prompts")
    noise = number_of(row["label_noise"], "label_noise") if has(row, "label_noise") else None
    pair = Pair(chosen=chosen[1], rejected=rejected[1], margin=margin_of(row), label_noise=noise)
    return (Parsed(prompt=chosen[0], answer=chosen[1], pairs=(pair,)),)
