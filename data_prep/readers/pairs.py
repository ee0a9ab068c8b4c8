"""Formats that hold two answers per prompt: preference in its several spellings, and Anthropic's hh.

A function per format, from a raw row to `Parsed` with `rejected` set; it raises `RowFault` where the row does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from data_prep.readers.demonstrations import Raw, alpaca_prompt, field, has, prompt_of, turns_of
from data_prep.readers.files import describe
from data_prep.readers.turns import (
    Parsed,
    RowFault,
    check_prompt,
    messages_of,
    split_final,
    text_of,
    transcript_of,
)
from data_prep.records import Message

Turns = tuple[Message, ...]
PROMPT_FIELDS = ("prompt", "instruction", "conversations")


def parse_preference(row: Raw) -> Parsed:
    """`chosen` and `rejected`, and a prompt before them.

    The prompt is `prompt` (a string or a list of turns), `instruction` with `input` as in alpaca, or `conversations`
    as in sharegpt. Without any of them chosen and rejected are whole conversations, and what comes before their last
    turns is the prompt. An answer is a string, one turn, or a list of turns that may begin with the prompt again.
    """
    prompt = _written_prompt(row)
    chosen = _side(field(row, "chosen", "chosen_messages"), "chosen", prompt)
    rejected = _side(field(row, "rejected", "rejected_messages"), "rejected", prompt)
    return _pair(chosen, rejected, margin_of(row))


def parse_hh(row: Raw) -> Parsed:
    """`chosen` and `rejected` as whole dialogues in one text, alike up to the last answer."""
    chosen = transcript_of(text_of(field(row, "chosen"), "chosen"), "chosen")
    rejected = transcript_of(text_of(field(row, "rejected"), "rejected"), "rejected")
    # First, because a side that went astray in the middle usually has its roles out of order as well.
    if chosen[:-1] != rejected[:-1]:
        raise RowFault("prompts_differ", "chosen and rejected differ before their last turns")
    return _pair(_final(chosen, "chosen"), _final(rejected, "rejected"), margin_of(row))


def margin_of(row: Raw) -> float | None:
    """`margin`, or the difference of `score_chosen` and `score_rejected`, where the row has them."""
    if has(row, "margin") and row["margin"] != "":
        return _number(row["margin"], "margin")
    if has(row, "score_chosen") and has(row, "score_rejected"):
        return _number(row["score_chosen"], "score_chosen") - _number(row["score_rejected"], "score_rejected")
    return None


def _number(value: object, name: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowFault("wrong_type", f"`{name}` is {value!r:.40}, expected a finite number")
    return number


def _written_prompt(row: Raw) -> Turns | None:
    """The prompt as the row writes it apart from the answers, or None."""
    system = text_of(row.get("system"), "system")
    if has(row, "prompt"):
        prompt = prompt_of(row["prompt"], "prompt", system)
    elif has(row, "conversations"):
        prompt = messages_of(row["conversations"], "conversations", system)
    elif has(row, "instruction"):
        prompt = alpaca_prompt(row)
    else:
        return None
    check_prompt(prompt)
    return prompt


def _side(value: object, name: str, prompt: Turns | None) -> tuple[Turns, str]:
    """The whole prompt of one side and its answer."""
    if value is None or isinstance(value, str):
        if prompt is None:
            wanted = ", ".join(f"`{key}`" for key in PROMPT_FIELDS)
            raise RowFault("missing_field", f"`{name}` is a plain answer and there is no prompt (one of {wanted})")
        return prompt, text_of(value, name)
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
    asked = _without_system(prompt)
    said = _without_system(turns)
    repeats = said[: len(asked)] == asked
    # A prompt that is one string can be the last question of a longer conversation.
    repeats |= len(asked) == 1 and asked[0] in said[:-1]
    if not repeats:
        raise RowFault("prompts_differ", f"the turns of `{name}` do not begin with the prompt")
    system = tuple(m for m in (*turns, *prompt) if m.role == "system")[:1]
    return (*system, *said)


def _without_system(turns: Turns) -> Turns:
    return tuple(m for m in turns if m.role != "system")


def _final(turns: Turns, name: str) -> tuple[Turns, str]:
    prompt, answer = split_final(turns)
    if answer is None:
        raise RowFault("no_final_answer", f"`{name}` does not end with a turn of the assistant")
    return prompt, answer


def _pair(chosen: tuple[Turns, str], rejected: tuple[Turns, str], margin: float | None) -> Parsed:
    if chosen[0] != rejected[0]:
        raise RowFault("prompts_differ", "chosen and rejected answer different prompts")
    return Parsed(prompt=chosen[0], answer=chosen[1], rejected=rejected[1], margin=margin)
