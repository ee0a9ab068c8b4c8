"""The texts of a record and their words, in any script: what the rules of this package look at.

Chinese, Japanese and Thai are written without spaces: a character is a unit there, and two of them make about a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

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
    """What is trained towards: every answer of a conversation, the chosen one of a pair, none of a prompt."""
    if isinstance(record, PreferencePair):
        return (record.chosen,)
    if isinstance(record, Demonstration):
        return tuple(message.content for message in record.messages if message.role == "assistant")
    return ()


def context(record: Record) -> tuple[Message, ...]:
    """The turns before the last answer."""
    if isinstance(record, PreferencePair):
        return record.prompt
    return record.messages[:-1] if isinstance(record, Demonstration) else record.messages


def all_texts(record: Record) -> tuple[str, ...]:
    """Every text of a record, a pair's rejected answer included."""
    turns = record.prompt if isinstance(record, PreferencePair) else record.messages
    extra = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else ()
    return (*(message.content for message in turns), *extra)


def opening(record: Record) -> str:
    """What `prompt_hash` looks at: the turns before the first answer, as one text."""
    messages = record.prompt if isinstance(record, PreferencePair) else record.messages
    return "\n".join(message.content for message in takewhile(lambda message: message.role != "assistant", messages))


def rewritten(record: R, change: Callable[[str], str]) -> R:
    """The record with every text passed through `change`; the very same object where nothing changed."""
    if isinstance(record, PreferencePair):
        prompt = _turns(record.prompt, change)
        chosen, rejected = change(record.chosen), change(record.rejected)
        if prompt is record.prompt and chosen == record.chosen and rejected == record.rejected:
            return record
        return replace(record, prompt=prompt, chosen=chosen, rejected=rejected)
    messages = _turns(record.messages, change)
    return record if messages is record.messages else replace(record, messages=messages)


def _turns(messages: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    texts = [change(message.content) for message in messages]
    if all(text == message.content for text, message in zip(texts, messages, strict=True)):
        return messages
    return tuple(replace(message, content=text) for text, message in zip(texts, messages, strict=True))


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
