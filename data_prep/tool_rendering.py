"""Function calls on their way into a chat template: as its own structures, or as text where it knows none.

Part of `chat`. A template knows tools if, tried on a small conversation, it writes down the function on offer, the
call, its argument and the result. Most templates do not, and would pass over calls in silence; for them this is written
(after Hermes, which Qwen and others follow):

    system      the system text, then the functions between <tools> and </tools>, one JSON a line
    assistant   its text, then each call as JSON {"name", "arguments"} between <tool_call> and </tool_call>
    tool        a turn of the user, each result between <tool_response> and </tool_response>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from data_prep.records import Message, ToolCall

SYSTEM = (
    "You may call one or more functions to assist with the user query. The functions are described within "
    "<tools></tools>:\n<tools>\n{tools}\n</tools>\n\nFor each call, write a JSON object with the function's name and "
    'arguments within <tool_call></tool_call>:\n<tool_call>\n{{"name": NAME, "arguments": ARGUMENTS}}\n</tool_call>'
)


class Rendered(NamedTuple):
    """What a template is given."""

    turns: list[dict[str, Any]]
    tools: list[Any] | None


_PROBE = (
    Message(role="user", content="a", tools=('{"type": "function", "function": {"name": "offered", "description": '
            '"d", "parameters": {"type": "object", "properties": {"p": {"type": "string", "description": "e"}}}}}',)),
    Message(role="assistant", content="", tool_calls=(ToolCall(name="called", arguments='{"p": "argued"}'),)),
    Message(role="tool", content="resulted"),
    Message(role="assistant", content="b"),
)  # fmt: skip


def uses_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation offers functions or calls any."""
    return any(message.tools or message.tool_calls for message in messages)


def knows_tools(render: Callable[[Rendered], str]) -> bool:
    """Whether a template writes down all that a conversation with functions holds.

    Args:
        render: gives the template's text; may raise `ValueError` where the template refuses.
    """
    try:
        text = render(native(_PROBE))
    except ValueError:
        return False
    return all(word in text for word in ("offered", "called", "argued", "resulted"))


def simple(messages: Sequence[Message]) -> Rendered:
    """Turns without functions."""
    return Rendered([{"role": message.role, "content": message.content} for message in messages], None)


def native(messages: Sequence[Message]) -> Rendered:
    """Turns as in the OpenAI API, arguments as objects; every call gets an id of nine letters, as Mistral's want."""
    turns: list[dict[str, Any]] = []
    waiting: list[tuple[ToolCall, str]] = []
    number = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            waiting = []
            for call in message.tool_calls:
                number += 1
                waiting.append((call, f"call{number:05d}"))
            turn["tool_calls"] = [_function(call, given) for call, given in waiting]
        if message.role == "tool" and waiting:
            asked = next((each for each in waiting if message.call_id and each[0].id == message.call_id), waiting[0])
            waiting = [each for each in waiting if each is not asked]
            turn |= {"tool_call_id": asked[1], "name": asked[0].name}
        turns.append(turn)
    tools = [json.loads(tool) for message in messages for tool in message.tools]
    return Rendered(turns, tools or None)


def as_text(messages: Sequence[Message]) -> Rendered:
    """Turns for a template that knows no functions; results that follow one another are one turn."""
    turns: list[dict[str, Any]] = []
    offered = [tool for message in messages for tool in message.tools]
    if offered:
        system = messages[0].content + "\n\n" if messages[0].role == "system" else ""
        turns.append({"role": "system", "content": system + SYSTEM.format(tools="\n".join(offered))})
    before = ""
    for at, message in enumerate(messages):
        if message.role == "system" and offered and at == 0:
            continue
        text = _with_calls(message)
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if before == "tool":
                turns[-1]["content"] += "\n" + text
                continue
        turns.append({"role": "user" if message.role == "tool" else message.role, "content": text})
        before = message.role
    return Rendered(turns, None)


def _with_calls(message: Message) -> str:
    calls = (f"<tool_call>\n{_call_json(call)}\n</tool_call>" for call in message.tool_calls)
    return "\n".join(part for part in (message.content, *calls) if part)


def _call_json(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": json.loads(call.arguments)}, ensure_ascii=False)


def _function(call: ToolCall, given: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": given, "type": "function", "function": function}
