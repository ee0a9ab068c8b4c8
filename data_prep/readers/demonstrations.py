"""Formats that hold one answer per prompt: alpaca, self_instruct, messages, sharegpt, prompt_completion, text, turns.

A function per format, from a raw row to `Parsed`; it raises `RowFault` where the row does not fit. The list of all
formats, and how one is recognised, is in `formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.readers.faults import RowFault
from data_prep.readers.files import describe
from data_prep.readers.tool_turns import tools_of
from data_prep.readers.turns import (
    Parsed,
    Turns,
    answer_turn,
    check_prompt,
    message_of,
    messages_of,
    split_final,
    text_of,
    with_tools,
)
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


def parse_alpaca(row: Raw) -> tuple[Parsed, ...]:
    """instruction, input, output; optional `system` and `history`, a list of [user, assistant] before the instruction.

    The user turn is the instruction, and below an empty line the input where there is one.
    """
    prompt = alpaca_prompt(row)
    answer = answer_turn(text_of(row["output"], "output")) if "output" in row else None
    return (Parsed(prompt=prompt, answer=answer),)


def alpaca_prompt(row: Raw) -> Turns:
    """The turns up to and with the instruction."""
    parts = (text_of(field(row, "instruction"), "instruction"), text_of(row.get("input"), "input"))
    asked = Message(role="user", content="\n\n".join(part for part in parts if part.strip()))
    prompt = with_tools((*_system(row), *_history(row.get("history")), asked), row_tools(row))
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


def row_tools(row: Raw) -> tuple[str, ...]:
    """The functions that a row offers beside its turns."""
    name = "tools" if has(row, "tools") else "functions"
    return tools_of(row.get(name), name)


def parse_self_instruct(row: Raw) -> tuple[Parsed, ...]:
    """`instruction` and `instances`: a list of {input, output} for it, each a demonstration."""
    instances = field(row, "instances")
    if not isinstance(instances, list) or not all(isinstance(instance, Mapping) for instance in instances):
        raise RowFault("wrong_type", f"`instances` is {describe(instances)}, expected a list of {{input, output}}")
    if not instances:
        raise RowFault("empty_answer", "`instances` is empty")
    instruction = field(row, "instruction")
    return tuple(parsed for each in instances for parsed in parse_alpaca({"instruction": instruction, **each}))


def parse_messages(row: Raw) -> tuple[Parsed, ...]:
    """`messages`: a list of {role, content} as in the OpenAI API; optional `tools`."""
    return _conversation(row, "messages")


def parse_sharegpt(row: Raw) -> tuple[Parsed, ...]:
    """`conversations`: a list of {from, value}; optional `system` and `tools` beside it."""
    return _conversation(row, "conversations")


def _conversation(row: Raw, name: str) -> tuple[Parsed, ...]:
    messages = messages_of(field(row, name), name, text_of(row.get("system"), "system"), row_tools(row))
    prompt, answer = split_final(messages)
    return (Parsed(prompt=prompt, answer=answer),)


def parse_prompt_completion(row: Raw) -> tuple[Parsed, ...]:
    """`prompt` with `completion` or `response`, each a string or a list of turns; optional `system` and `tools`."""
    prompt = row_prompt(row)
    name = "response" if "response" in row and "completion" not in row else "completion"
    value = row.get(name)
    if value is None or isinstance(value, str):
        check_prompt(prompt)
        answer = answer_turn(text_of(value, name)) if name in row else None
        return (Parsed(prompt=prompt, answer=answer),)
    prompt, final = split_final((*prompt, *turns_of(value, name)))
    return (Parsed(prompt=prompt, answer=final),)


def row_prompt(row: Raw) -> Turns:
    """The field `prompt`: a string or a list of turns, with the row's `system` and `tools`."""
    return prompt_of(field(row, "prompt"), "prompt", text_of(row.get("system"), "system"), row_tools(row))


def prompt_of(value: object, name: str, system: str = "", tools: tuple[str, ...] = ()) -> Turns:
    """A prompt written as a string or as a list of turns."""
    if isinstance(value, list):
        return messages_of(value, name, system, tools)
    asked = Message(role="user", content=text_of(value, name))
    turns = (Message(role="system", content=system), asked) if system.strip() else (asked,)
    return with_tools(turns, tools)


def turns_of(value: object, name: str) -> Turns:
    """An answer that is not a string: one turn, or a list of turns."""
    return (message_of(value, name),) if isinstance(value, Mapping) else messages_of(value, name)


def parse_text(row: Raw) -> tuple[Parsed, ...]:
    """`text`: plain text to go on learning from, trained whole; no prompt, no template."""
    text = text_of(field(row, "text"), "text")
    return (Parsed(prompt=(), answer=answer_turn(text)),)


def parse_questions(row: Raw) -> tuple[Parsed, ...]:
    """`turns`: what a user asks one after the other (MT-Bench); the first is the prompt, `reference[0]` its answer."""
    turns, reference = field(row, "turns"), row.get("reference")
    if not isinstance(turns, list) or not turns:
        raise RowFault("wrong_type", f"`turns` is {describe(turns)}, expected a list of questions")
    prompt = (Message(role="user", content=text_of(turns[0], "turns[0]")),)
    check_prompt(prompt)
    good = reference[0] if isinstance(reference, list) and reference else None
    return (Parsed(prompt=prompt, answer=answer_turn(good) if isinstance(good, str) else None),)
