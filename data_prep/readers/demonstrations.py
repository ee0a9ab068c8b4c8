"""Formats that hold one answer per prompt: alpaca, messages, sharegpt, prompt_completion.

A function per format, from a raw row to `Parsed`; it raises `RowFault` where the row does not fit. The list of all
formats, and how one is recognised, is in `formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.readers.files import describe
from data_prep.readers.turns import Parsed, RowFault, check_prompt, message_of, messages_of, split_final, text_of
from data_prep.records import Message

Raw = Mapping[str, Any]


def field(row: Raw, *names: str) -> Any:
    """The value of the first of these fields that the row has; raises `missing_field` where it has none."""
    for name in names:
        if name in row:
            return row[name]
    wanted = " or ".join(f"`{name}`" for name in names)
    raise RowFault("missing_field", f"there is no field {wanted} (found: {', '.join(map(str, row)) or 'none'})")


def has(row: Raw, *names: str) -> bool:
    """Whether the row has one of these fields with a value in it; tables fill absent fields with null."""
    return any(row.get(name) is not None for name in names)


def parse_alpaca(row: Raw) -> Parsed:
    """instruction, input, output; optional `system` and `history`, a list of [user, assistant] before the instruction.

    The user turn is the instruction, and below an empty line the input where there is one.
    """
    prompt = alpaca_prompt(row)
    return Parsed(prompt=prompt, answer=text_of(row["output"], "output") if "output" in row else None)


def alpaca_prompt(row: Raw) -> tuple[Message, ...]:
    """The turns up to and with the instruction."""
    parts = (text_of(field(row, "instruction"), "instruction"), text_of(row.get("input"), "input"))
    asked = Message(role="user", content="\n\n".join(part for part in parts if part.strip()))
    prompt = (*_system(row), *_history(row.get("history")), asked)
    check_prompt(prompt)
    return prompt


def _history(value: object) -> list[Message]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise RowFault("wrong_type", f"`history` is {describe(value)}, expected a list of [user, assistant] pairs")
    turns: list[Message] = []
    for at, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowFault("wrong_type", f"`history[{at}]` is not a pair of strings, expected [user, assistant]")
        turns.append(Message(role="user", content=text_of(pair[0], f"history[{at}][0]")))
        turns.append(Message(role="assistant", content=text_of(pair[1], f"history[{at}][1]")))
    return turns


def _system(row: Raw) -> list[Message]:
    text = text_of(row.get("system"), "system")
    return [Message(role="system", content=text)] if text.strip() else []


def parse_messages(row: Raw) -> Parsed:
    """`messages`: a list of {role, content} as in the OpenAI API."""
    messages = messages_of(field(row, "messages"), "messages", text_of(row.get("system"), "system"))
    prompt, answer = split_final(messages)
    return Parsed(prompt=prompt, answer=answer)


def parse_sharegpt(row: Raw) -> Parsed:
    """`conversations`: a list of {from, value}; optional `system` beside it."""
    messages = messages_of(field(row, "conversations"), "conversations", text_of(row.get("system"), "system"))
    prompt, answer = split_final(messages)
    return Parsed(prompt=prompt, answer=answer)


def parse_prompt_completion(row: Raw) -> Parsed:
    """`prompt` with `completion` or `response`, each a string or a list of turns; optional `system`."""
    prompt = prompt_of(field(row, "prompt"), "prompt", text_of(row.get("system"), "system"))
    name = "response" if "response" in row and "completion" not in row else "completion"
    if name not in row:
        check_prompt(prompt)
        return Parsed(prompt=prompt, answer=None)
    value = row[name]
    if value is None or isinstance(value, str):
        check_prompt(prompt)
        return Parsed(prompt=prompt, answer=text_of(value, name))
    said = turns_of(value, name)
    prompt, answer = split_final((*prompt, *said))
    return Parsed(prompt=prompt, answer=answer)


def prompt_of(value: object, name: str, system: str = "") -> tuple[Message, ...]:
    """A prompt written as a string or as a list of turns."""
    if isinstance(value, list):
        return messages_of(value, name, system)
    asked = Message(role="user", content=text_of(value, name))
    return (Message(role="system", content=system), asked) if system.strip() else (asked,)


def turns_of(value: object, name: str) -> tuple[Message, ...]:
    """An answer that is not a string: one turn, or a list of turns."""
    return (message_of(value, name),) if isinstance(value, Mapping) else messages_of(value, name)
