"""Raw turns -> `Message` tuples in a valid order, and the fault that says why a row cannot be used.

The common ground of all chat formats in `formats`: names of roles, the text of a turn, the order of turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.readers.files import describe
from data_prep.records import Message, Role

STRUCTURAL = frozenset(
    {
        "missing_field",
        "wrong_type",
        "unknown_role",
        "unknown_split",
        "roles_out_of_order",
        "no_final_answer",
    }
)
"""Faults that say the row is not of its format. A few are dropped, many mean that the format is wrong."""

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
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
MAY_FOLLOW: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What every format boils down to. A demonstration is prompt and answer, a pair has `rejected` as well."""

    prompt: tuple[Message, ...]
    """Ends with a user or tool turn."""
    answer: str | None
    """None where the row has a prompt only; may be empty."""
    rejected: str | None = None
    margin: float | None = None


class RowFault(Exception):
    """A row that cannot become a record: a stable reason to count by, and a sentence about this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def content_of(value: object, name: str) -> str:
    """The text of a turn's content: as `text_of`, or a list of text parts, which are joined.

    A part is {"type": "text", "text" or "value": ...}; any other type of part is a fault, because dropping an image
    and keeping the question about it would train on nonsense.
    """
    if isinstance(value, list):
        value = "".join(_part_text(part, name) for part in value)
    return text_of(value, name)


def text_of(value: object, name: str) -> str:
    """The text of a field: a string, or null for none. A list of strings is refused: it may be ranked answers."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"`{name}` is {describe(value)}, expected a string")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise RowFault("invalid_text", f"`{name}` holds half of a surrogate pair, which no encoding can write")
    return value


def _part_text(part: object, name: str) -> str:
    if not isinstance(part, Mapping):
        raise RowFault("wrong_type", f"`{name}` is a list with {describe(part)} in it, expected text parts")
    kind = part.get("type", "text")
    if kind != "text":
        raise RowFault("non_text_content", f"`{name}` has a part of type {kind!r}, only text can be used")
    text = part.get("text") if part.get("text") is not None else part.get("value")
    if not isinstance(text, str):
        raise RowFault("wrong_type", f"`{name}` has a text part whose text is {describe(text)}, expected a string")
    return text


def message_of(turn: object, name: str) -> Message:
    """One turn, written as {role, content} or as {from, value}."""
    if not isinstance(turn, Mapping):
        raise RowFault("wrong_type", f"`{name}` is {describe(turn)}, expected an object with role and content")
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    for key in (role_key, text_key):
        if key not in turn:
            found = ", ".join(map(str, turn)) or "nothing"
            raise RowFault("missing_field", f"`{name}` has no `{key}` (found: {found})")
    written = turn[role_key]
    role = ROLES.get(written.strip().lower()) if isinstance(written, str) else None
    if role is None:
        raise RowFault("unknown_role", f"`{name}` has the role {written!r}, expected one of {', '.join(ROLES)}")
    if turn.get("tool_calls") and not turn[text_key]:
        raise RowFault("non_text_content", f"`{name}` is a structured tool call, only text can be used")
    return Message(role=role, content=content_of(turn[text_key], name))


def messages_of(turns: object, name: str, system: str = "") -> tuple[Message, ...]:
    """A list of turns; `system` is a system text that stands outside of the list. Order is checked later."""
    if not isinstance(turns, list):
        raise RowFault("wrong_type", f"`{name}` is {describe(turns)}, expected a list of turns")
    messages = [message_of(turn, f"{name}[{at}]") for at, turn in enumerate(turns)]
    if system.strip() and not (messages and messages[0].role == "system"):
        messages.insert(0, Message(role="system", content=system))
    # An empty system turn says nothing, and some templates treat it otherwise than none.
    return tuple(m for m in messages if m.role != "system" or m.content.strip())


def check_roles(messages: tuple[Message, ...]) -> None:
    """Raise unless roles follow one another as in a conversation that a system or user turn opens."""
    before: Role | None = None
    for at, message in enumerate(messages, start=1):
        if message.role not in MAY_FOLLOW[before]:
            place = f"after a turn of {before}" if before else "at the start"
            expected = " or ".join(MAY_FOLLOW[before])
            raise RowFault("roles_out_of_order", f"turn {at} is of {message.role} {place}, expected {expected}")
        before = message.role


def check_prompt(messages: tuple[Message, ...]) -> None:
    """Raise unless an assistant's answer can follow: roles in order, a user or tool last, no turn of theirs empty."""
    if not messages:
        raise RowFault("empty_prompt", "there is no turn to answer")
    check_roles((*messages, Message(role="assistant", content="")))
    for at, message in enumerate(messages, start=1):
        if message.role in ("user", "assistant") and not message.content.strip():
            reason = "empty_prompt" if message.role == "user" else "empty_answer"
            raise RowFault(reason, f"turn {at}, of {message.role}, is empty")


def split_final(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
    """The prompt and the final answer of a conversation; the answer is None where a user or tool has the last word."""
    check_roles(messages)
    if messages and messages[-1].role == "assistant":
        prompt, answer = messages[:-1], messages[-1].content
    else:
        prompt, answer = messages, None
    check_prompt(prompt)
    return prompt, answer


def transcript_of(text: str, name: str) -> tuple[Message, ...]:
    """Turns of a dialogue written as one text: Human: and Assistant: at the start of paragraphs."""
    parts = re.split(r"(?:\A\s*|\n\n)(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise RowFault("wrong_type", f"`{name}` is not a dialogue that starts with 'Human:'")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(role="user" if who == "Human" else "assistant", content=said.strip()) for who, said in pairs)
