"""Functions on offer and calls of them, in the spellings of OpenAI, ShareGPT and LLaMA-Factory -> `ToolCall` and JSON.

Part of `turns`. Arguments and descriptions become JSON text, so that records stay hashable and no table can mix the
fields of one call into another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.readers.faults import RowFault
from data_prep.readers.files import describe
from data_prep.records import ToolCall


def calls_of(value: object, name: str) -> tuple[ToolCall, ...]:
    """Calls as the OpenAI API has them: [{id, type, function: {name, arguments}}], or each without its wrapping."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RowFault("bad_tool_call", f"`{name}` is {describe(value)}, expected a list of calls")
    return tuple(_call(call, f"{name}[{at}]") for at, call in enumerate(value))


def calls_in_text(text: str, name: str) -> tuple[ToolCall, ...]:
    """Calls as a turn of their own has them: JSON text of one call {name, arguments}, or of a list of calls."""
    value = _json(text, name, "a call {name, arguments}")
    return calls_of(value if isinstance(value, list) else [value], name)


def tools_of(value: object, name: str = "tools") -> tuple[str, ...]:
    """Descriptions of functions, each as JSON text {"type": "function", "function": {...}}; a bare one is wrapped.

    Args:
        value: a list of them, or its JSON text; null and empty for none.
        name: of the field, for messages.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        value = _json(value, name, "a list of functions", "bad_tools")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise RowFault("bad_tools", f"`{name}` is {describe(value)}, expected a list of functions")
    return tuple(_tool(tool, f"{name}[{at}]") for at, tool in enumerate(value))


def _tool(tool: object, name: str) -> str:
    if isinstance(tool, str):
        tool = _json(tool, name, "a function", "bad_tools")
    described = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(described, Mapping) or not isinstance(described.get("name"), str):
        raise RowFault("bad_tools", f"`{name}` has no `name`, expected {{name, description, parameters}}")
    assert isinstance(tool, Mapping)
    return to_json(tool if "function" in tool else {"type": "function", "function": tool})


def _call(call: object, name: str) -> ToolCall:
    if isinstance(call, str):
        call = _json(call, name, "a call")
    if not isinstance(call, Mapping):
        raise RowFault("bad_tool_call", f"`{name}` is {describe(call)}, expected {{name, arguments}}")
    inner = call.get("function", call)
    called = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(called, str) or not called:
        raise RowFault("bad_tool_call", f"`{name}` names no function, expected {{name, arguments}}")
    given = inner.get("id") or call.get("id")
    return ToolCall(
        name=called,
        arguments=_arguments(inner.get("arguments", inner.get("parameters")), f"{name}.arguments"),
        id=given if isinstance(given, str) else "",
    )


def _arguments(value: object, name: str) -> str:
    if value is None or value == "":
        return "{}"
    if isinstance(value, str):
        value = _json(value, name, "an object")
    if not isinstance(value, Mapping):
        raise RowFault("bad_tool_call", f"`{name}` is {describe(value)}, expected an object")
    return to_json(value)


def _json(text: str, name: str, expected: str, reason: str = "bad_tool_call") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowFault(reason, f"`{name}` is text that is not JSON, expected {expected}") from None


def to_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON text in the order of the value's keys; other scripts stay readable."""
    return json.dumps(value, ensure_ascii=False)
