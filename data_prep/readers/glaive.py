"""The glaive format: a conversation with function calls, written as one text, and the functions in its system text.

As published by glaiveai on the hub: `system` describes the functions as JSON, `chat` has the turns behind USER:,
ASSISTANT: and FUNCTION RESPONSE:, calls behind <functioncall> with their arguments in single quotes.
"""

from __future__ import annotations

import json
import re

from data_prep.readers.demonstrations import Raw, field
from data_prep.readers.faults import RowFault
from data_prep.readers.tool_turns import calls_of, tools_of
from data_prep.readers.turns import Parsed, split_final, text_of, with_tools
from data_prep.records import Message, Role, ToolCall

SPEAKERS: dict[str, Role] = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
TURN = re.compile(r"(?:\A|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
CALL = "<functioncall>"
END = "<|endoftext|>"


def parse_glaive(row: Raw) -> tuple[Parsed, ...]:
    """`system` and `chat`, each one text."""
    parts = TURN.split(text_of(field(row, "chat"), "chat"))
    if parts[0].strip() or len(parts) < 3:
        raise RowFault("wrong_type", "`chat` is not a dialogue that starts with 'USER:'")
    turns = [_turn(SPEAKERS[who], said) for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    system, tools = _system(text_of(row.get("system"), "system").strip().removeprefix("SYSTEM:").strip())
    head = [Message(role="system", content=system)] if system else []
    prompt, answer = split_final(with_tools((*head, *turns), tools))
    return (Parsed(prompt=prompt, answer=answer),)


def _turn(role: Role, text: str) -> Message:
    text = text.replace(END, "").strip()
    if role != "assistant" or CALL not in text:
        return Message(role=role, content=text)
    said, _, call = text.partition(CALL)
    return Message(role="assistant", content=said.strip(), tool_calls=(_call(call.strip()),))


def _call(text: str) -> ToolCall:
    """{"name": "f", "arguments": '{"a": 1}'}: JSON but for the single quotes around the arguments."""
    quoted = re.fullmatch(r"(\{.*?\"arguments\":\s*)'(.*)'\s*\}", text, flags=re.DOTALL)
    if quoted:
        # An apostrophe inside was escaped for the single quotes, and JSON knows no such escape.
        arguments = quoted[2].replace("\\'", "'")
        text = f"{quoted[1]}{json.dumps(arguments, ensure_ascii=False)}}}"
    try:
        return calls_of([json.loads(text)], "chat <functioncall>")[0]
    except ValueError:
        raise RowFault("bad_tool_call", f"`chat` has a call that is not JSON: {text:.60}") from None


def _system(text: str) -> tuple[str, tuple[str, ...]]:
    """The system text without the functions in it, and the functions."""
    start = text.find("{")
    if start < 0:
        return text, ()
    decoder, at, found = json.JSONDecoder(), start, []
    while at < len(text) and text[at] == "{":
        try:
            function, at = decoder.raw_decode(text, at)
        except ValueError:
            raise RowFault("bad_tools", "`system` has a function description that is not JSON") from None
        found.append(function)
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1
    rest = text[:start].rstrip(" -\n") + text[at:]
    sentence = rest.partition(" with access to the following functions")[0]
    return sentence + "." if sentence != rest else rest.strip(), tools_of(found, "system")
