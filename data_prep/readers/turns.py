"""Raw turns -> `Message` tuples in a valid order.

The common ground of all chat formats in `formats`: names of roles, the text of a turn, tool calls, the order of turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_prep.readers.faults import RowFault
from data_prep.readers.files import describe
from data_prep.readers.tool_turns import calls_in_text, calls_of
from data_prep.records import Message, Role, ToolCall

CALL_ROLES = ("function_call", "tool_call", "function-call")
"""Turns of the assistant that hold calls and nothing else, as JSON text."""
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    **dict.fromkeys(CALL_ROLES, "assistant"),
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function-response": "tool",
    "ipython": "tool",
}
MAY_FOLLOW: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
THOUGHTS = ("reasoning", "thinking")
CALLS = ("tool_call", "tool_calls", "function_call")

Turns = tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to the row's prompt, the first preferred."""

    chosen: Message
    rejected: Message
    margin: float | None = None
    label_noise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What every format boils down to: a prompt, the answer to imitate, and pairs where it compares answers."""

    prompt: Turns
    """Ends with a user or tool turn; empty for plain text."""
    answer: Message | None
    """None where the row has a prompt only; may be empty."""
    pairs: tuple[Pair, ...] = ()
    label: bool | None = None
    """Whether the answer is a good one, where the row says just that; it then takes another row to make a pair."""
    is_tie: bool = False
    """Answers were compared and none was found better: there is neither a pair nor one to imitate."""


def answer_turn(text: str, calls: tuple[ToolCall, ...] = ()) -> Message:
    """An answer as the turn it is."""
    return Message(role="assistant", content=text, tool_calls=calls)


def is_empty(message: Message) -> bool:
    """Whether a turn says nothing and calls nothing."""
    return not message.content.strip() and not message.tool_calls


def text_of(value: object, name: str) -> str:
    """The text of a field: a string, or null for none. A list of strings is refused: it may be ranked answers."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"`{name}` is {describe(value)}, expected a string")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise RowFault("invalid_text", f"`{name}` holds half of a surrogate pair, which no encoding can write")
    return value


def message_of(turn: object, name: str) -> Message:
    """One turn, written as {role, content} or as {from, value}; an assistant's may have `tool_calls`."""
    if not isinstance(turn, Mapping):
        raise RowFault("wrong_type", f"`{name}` is {describe(turn)}, expected an object with role and content")
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    calls = calls_of(turn.get("tool_calls"), f"{name}.tool_calls")
    if turn.get("function_call"):  # the API's older spelling
        calls += calls_of([turn["function_call"]], f"{name}.function_call")
    for key in (role_key, text_key):
        if key not in turn and not (key == text_key and calls):
            found = ", ".join(map(str, turn)) or "nothing"
            raise RowFault("missing_field", f"`{name}` has no `{key}` (found: {found})")
    written = turn[role_key]
    role = ROLES.get(written.strip().lower()) if isinstance(written, str) else None
    if role is None:
        raise RowFault("unknown_role", f"`{name}` has the role {written!r:.40}, expected one of {', '.join(ROLES)}")
    text, inside = _content_of(turn.get(text_key), name)
    if _is_call_turn(turn, role_key):
        text, inside = "", (*inside, *calls_in_text(text, name))
    thought = next((text_of(turn[key], key) for key in ("reasoning_content", *THOUGHTS) if turn.get(key)), "")
    call_id = turn.get("tool_call_id")
    return Message(
        role=role,
        content=_thought(thought) + text if role == "assistant" else text,
        tool_calls=(*inside, *calls) if role == "assistant" else (),
        call_id=call_id if role == "tool" and isinstance(call_id, str) else "",
    )


def _is_call_turn(turn: Mapping[str, Any], role_key: str) -> bool:
    return str(turn[role_key]).strip().lower() in CALL_ROLES


def _content_of(value: object, name: str) -> tuple[str, tuple[ToolCall, ...]]:
    """A turn's text, and the calls among its parts.

    A part is {"type": "text", "text" or "value": ...}, or reasoning, or a call. Any other type is a fault, because
    dropping an image and keeping the question about it would train on nonsense.
    """
    if not isinstance(value, list):
        return text_of(value, name), ()
    texts: list[str] = []
    calls: list[ToolCall] = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind in CALLS:
            calls += calls_in_text(_part_text(part, name), name)
        elif kind in THOUGHTS:
            texts.append(_thought(_part_text(part, name)))
        else:
            texts.append(_part_text(part, name))
    return text_of("".join(texts), name), tuple(calls)


def _thought(text: str) -> str:
    """Reasoning as the models that have it write it; their templates take it apart again."""
    return f"<think>\n{text.strip()}\n</think>\n\n" if text.strip() else ""


def _part_text(part: object, name: str) -> str:
    if not isinstance(part, Mapping):
        raise RowFault("wrong_type", f"`{name}` is a list with {describe(part)} in it, expected text parts")
    kind = part.get("type", "text")
    if kind not in ("text", *THOUGHTS, *CALLS):
        raise RowFault("non_text_content", f"`{name}` has a part of type {kind!r:.40}, only text can be used")
    found = [part[key] for key in ("text", "value", kind) if part.get(key) is not None]
    if not found or not isinstance(found[0], str):
        what = describe(found[0] if found else None)
        raise RowFault("wrong_type", f"`{name}` has a {kind} part whose text is {what}, expected a string")
    return found[0]


def messages_of(turns: object, name: str, system: str = "", tools: tuple[str, ...] = ()) -> Turns:
    """A list of turns; `system` and `tools` stand outside of the list. Order is checked later."""
    if not isinstance(turns, list):
        raise RowFault("wrong_type", f"`{name}` is {describe(turns)}, expected a list of turns")
    messages: list[Message] = []
    for at, turn in enumerate(turns):
        message = message_of(turn, f"{name}[{at}]")
        calls_on = messages and messages[-1].role == message.role == "assistant" and message.tool_calls
        if calls_on and _is_call_turn(turn, "role" if "role" in turn else "from"):
            # Several calls, or a sentence and the call that it announces, are one turn written as two.
            before = messages.pop()
            message = replace(before, tool_calls=(*before.tool_calls, *message.tool_calls))
        messages.append(message)
    if system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, Message(role="system", content=system))
    # An empty system turn says nothing, and some templates treat it otherwise than none.
    return with_tools(tuple(m for m in messages if m.role != "system" or m.content.strip()), tools)


def with_tools(messages: Turns, tools: tuple[str, ...]) -> Turns:
    """The turns with the functions that are on offer in them."""
    return (replace(messages[0], tools=tools), *messages[1:]) if messages and tools else messages


def check_roles(messages: Turns) -> None:
    """Raise unless roles follow one another as in a conversation that a system or user turn opens."""
    before: Role | None = None
    for at, message in enumerate(messages, start=1):
        if message.role not in MAY_FOLLOW[before]:
            place = f"after a turn of {before}" if before else "at the start"
            expected = " or ".join(MAY_FOLLOW[before])
            raise RowFault("roles_out_of_order", f"turn {at} is of {message.role} {place}, expected {expected}")
        before = message.role


def check_prompt(messages: Turns) -> None:
    """Raise unless an assistant's answer can follow: roles in order, a user or tool last, no turn of theirs empty."""
    if not messages:
        raise RowFault("empty_prompt", "there is no turn to answer")
    check_roles((*messages, Message(role="assistant", content="")))
    for at, message in enumerate(messages, start=1):
        if message.role in ("user", "assistant") and is_empty(message):
            reason = "empty_prompt" if message.role == "user" else "empty_answer"
            raise RowFault(reason, f"turn {at}, of {message.role}, is empty")


def split_final(messages: Turns) -> tuple[Turns, Message | None]:
    """The prompt and the final answer of a conversation; the answer is None where a user or tool has the last word."""
    check_roles(messages)
    if messages and messages[-1].role == "assistant":
        prompt, answer = messages[:-1], messages[-1]
    else:
        prompt, answer = messages, None
    check_prompt(prompt)
    return prompt, answer


def transcript_of(text: str, name: str) -> Turns:
    """Turns of a dialogue written as one text: Human: and Assistant: at the start of paragraphs."""
    parts = re.split(r"(?:\A\s*|\n\n)(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise RowFault("wrong_type", f"`{name}` is not a dialogue that starts with 'Human:'")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(role="user" if who == "Human" else "assistant", content=said.strip()) for who, said in pairs)
