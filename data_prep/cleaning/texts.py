"""The texts of a record and their words, in any script: what the rules of this package look at.

Chinese, Japanese and Thai are written without spaces: a character is a unit there, and two of them make about a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeVar

from data_prep.records import Demonstration, Message, PreferencePair, Prompt, Record

R = TypeVar("R", Demonstration, PreferencePair, Prompt)

DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Scripts without spaces between words, as the inside of a character class: Han, kana, Thai, Lao, Burmese, Khmer."""
MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff\u0f00-\u0fff"
"""Vowel signs and other marks that are parts of words, which the regular expressions' own class of letters lacks."""
_DENSE_LETTER = re.compile(f"[{DENSE}]")
_SPACED_UNIT = re.compile(f"[\\w{MARKS}]+")
_UNIT = re.compile(f"[{DENSE}]|[^\\W_{DENSE}]+")
_FENCE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


def answers(record: Record) -> tuple[str, ...]:
    """What is trained towards: every answer of a conversation, the chosen one of a pair, none of a prompt.

    An answer that calls functions without a word is none: what rules ask of text, nobody asks of a call.
    """
    turns: Sequence[Message] = ()
    if isinstance(record, PreferencePair):
        turns = (record.chosen_turn,)
    elif isinstance(record, Demonstration):
        turns = [message for message in record.messages if message.role == "assistant"]
    return tuple(turn.content for turn in turns if turn.content.strip() or not turn.tool_calls)


def context(record: Record) -> tuple[Message, ...]:
    """The turns before the last answer."""
    if isinstance(record, PreferencePair):
        return record.prompt
    return record.messages[:-1] if isinstance(record, Demonstration) else record.messages


def all_texts(record: Record) -> tuple[str, ...]:
    """Every text of a record, a pair's rejected answer included."""
    if isinstance(record, PreferencePair):
        return tuple(map(turn_text, (*record.prompt, record.chosen_turn, record.rejected_turn)))
    return tuple(map(turn_text, record.messages))


def turn_text(message: Message) -> str:
    """All that a turn says: its text, and what it calls with which arguments."""
    if not message.tool_calls:
        return message.content
    calls = (f"{call.name} {call.arguments}" for call in message.tool_calls)
    return "\n".join(part for part in (message.content, *calls) if part)


def opening(record: Record) -> str:
    """What `prompt_hash` looks at: the turns before the first answer, as one text; of plain text, all of it."""
    messages = record.prompt if isinstance(record, PreferencePair) else record.messages
    before = list(takewhile(lambda message: message.role != "assistant", messages)) or messages
    return "\n".join(message.content for message in before)


def rewritten(record: R, change: Callable[[str], str]) -> R:
    """The record with every text passed through `change`; the very same object where nothing changed.

    Of the arguments of calls every value is a text, so that they stay the JSON that they are. What functions are on
    offer is left as it is.
    """
    if isinstance(record, PreferencePair):
        prompt = _turns(record.prompt, change)
        chosen, rejected = _turn(record.chosen_turn, change), _turn(record.rejected_turn, change)
        if prompt is record.prompt and chosen == record.chosen_turn and rejected == record.rejected_turn:
            return record
        return replace(
            record,
            prompt=prompt,
            chosen=chosen.content,
            rejected=rejected.content,
            chosen_calls=chosen.tool_calls,
            rejected_calls=rejected.tool_calls,
        )
    messages = _turns(record.messages, change)
    return record if messages is record.messages else replace(record, messages=messages)


def _turns(messages: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    changed = tuple(_turn(message, change) for message in messages)
    return messages if changed == messages else changed


def _turn(message: Message, change: Callable[[str], str]) -> Message:
    calls = tuple(replace(call, arguments=_in_json(call.arguments, change)) for call in message.tool_calls)
    return replace(message, content=change(message.content), tool_calls=calls)


def _in_json(text: str, change: Callable[[str], str]) -> str:
    """JSON with every value passed through `change`; the text itself where that changes nothing."""
    try:
        value = json.loads(text)
    except ValueError:
        return change(text)
    changed = _leaves(value, change)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _leaves(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_leaves(each, change) for each in value]
    if isinstance(value, str):
        return change(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A card number may be written as a number; what stands in its place is a text.
        written = json.dumps(value)
        changed = change(written)
        return value if changed == written else changed
    return value


def units(text: str) -> list[str]:
    """Words, and single characters of scripts without spaces, casefolded."""
    folded = text.casefold()
    return (_UNIT if _DENSE_LETTER.search(folded) else _SPACED_UNIT).findall(folded)


def is_dense(text: str) -> bool:
    """Whether most of a text's units are characters of a script without spaces."""
    dense = len(_DENSE_LETTER.findall(text))
    return dense > 0 and 2 * dense > len(_UNIT.findall(text))


def word_count(text: str) -> int:
    """Words; two characters of a script without spaces count as one."""
    dense = len(_DENSE_LETTER.findall(text))
    return len(_UNIT.findall(text)) - dense + (dense + 1) // 2 if dense else len(_SPACED_UNIT.findall(text))


def without_code(text: str) -> str:
    """The text less its fenced and inline code."""
    return _FENCE.sub(" ", text) if "`" in text else text


def ngrams(items: Sequence[str], length: int) -> list[str]:
    """All runs of `length` items, in order, each joined by a blank."""
    return [" ".join(items[at : at + length]) for at in range(len(items) - length + 1)]
