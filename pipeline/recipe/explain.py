"""pydantic's findings in the words of a recipe: which key, what was found, what was expected, what to write."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from pipeline.recipe.places import KeyPath, Places, Problem
from pipeline.recipe.schema import LAYERS, Recipe
from pipeline.recipe.vocabulary import is_block, keys_of, members, nearest, unknown_key

PATTERNS = {
    r"^[a-z][a-z0-9_]{0,39}$": "a stage's name (a small letter, then small letters, digits and _, at most 40)",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$": "a name of letters, digits, '.', '_' and '-' (at most 80, first no sign)",
    LAYERS: "`all`, `top-N` (such as top-10)",
    r"^[A-Za-z0-9][A-Za-z0-9._,:@+/-]*$": "a word of letters, digits and . _ , : @ + / -",
    r"^([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}$": "a time limit such as 90 (minutes), 12:00:00 or 2-00 (days-hours)",
    r"^[^\x00-\x1f\x7f]+$": "one line of text",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a variable's name (letters, digits and _)",
    r"^--[a-z][a-z-]*(=[A-Za-z0-9._,:@+/&|()\[\]*-]+)?$": "an sbatch option such as --constraint=a100, without spaces",
    r"^https?://": "an address that begins with http:// or https://",
}
_YAML_TRUTH = {"y", "yes", "n", "no", "on", "off", "true", "false"}


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where an error's location leads: the path in the recipe, the type expected there, the keys of its block."""

    path: KeyPath
    expected: Any
    siblings: tuple[str, ...] = ()


def explain(errors: Iterable[ErrorDetails], data: Any, places: Places, schema: Any = Recipe) -> list[Problem]:
    """Turn pydantic's errors into problems, one a key; `schema` is the block that was validated.

    A union reports an error for each alternative: an error inside an alternative explains more than one at the value
    itself, so the latter is dropped when there is one of the former.
    """
    found: dict[KeyPath, Problem] = {}
    for error in errors:
        spot = _follow(error["loc"], schema)
        found.setdefault(spot.path, _problem(error, spot, data, places))
    return [
        problem for path, problem in found.items()
        if problem.at_key or not any(other != path and other[: len(path)] == path for other in found)
    ]  # fmt: skip


def _follow(loc: tuple[str | int, ...], schema: Any) -> _Spot:
    """Walk the schema along an error's location, leaving out the labels that unions put into it."""
    path: KeyPath = ()
    expected: Any = schema
    whole: Any = schema
    siblings: tuple[str, ...] = ()
    container: Any = None
    for step in loc:
        options = members(expected)
        if step == "[key]":
            whole = get_args(container)[0] if get_origin(container) is dict else str
        elif len(options) > 1:
            expected = _alternative(options, str(step))
        else:
            container = options[0] if options else None
            expected, siblings = _below(container, step)
            whole, path = expected, (*path, step)
    return _Spot(path, whole, siblings)


def _below(container: Any, step: str | int) -> tuple[Any, tuple[str, ...]]:
    """Return the type expected at a key or entry of a container, and the keys beside it."""
    if is_block(container):
        fields = keys_of(container)
        field = fields.get(str(step))
        expected = Annotated[field.annotation, *field.metadata] if field and field.metadata else None
        return expected or (field.annotation if field else None), tuple(fields)
    arguments = get_args(container)
    if get_origin(container) is dict:
        return arguments[1], ()
    return (arguments[0] if get_origin(container) is tuple else None), ()


def _alternative(options: list[Any], label: str) -> Any:
    """Return the member of a union that pydantic names by its class, by its kind, or by its spelling."""
    for option in options:
        if is_block(option):
            kind = option.model_fields.get("kind")
            if label in (option.__name__, kind.default if kind else None):
                return option
        elif label.partition("[")[0] in (getattr(get_origin(option), "__name__", ""), str(option)):
            return option
    return next((option for option in options if get_origin(option) is Literal), None)


def _problem(error: ErrorDetails, spot: _Spot, data: Any, places: Places) -> Problem:
    """Word one error."""
    last = str(spot.path[-1]) if spot.path else ""
    if error["type"] == "extra_forbidden":
        kind = value_at(data, (*spot.path[:2], "kind")) if spot.path[0] == "stages" and len(spot.path) == 3 else None
        return Problem(spot.path, unknown_key(last, list(spot.siblings), kind), at_key=True)
    expected = describe(spot.expected)
    if error["type"] == "missing":
        return Problem(spot.path, f"is missing; expected {expected}", at_key=True)
    if "[key]" in error["loc"]:
        return Problem(spot.path, f"expected {expected}, found '{last}'", at_key=True)
    if expected == "":
        return Problem(spot.path, error["msg"])
    value = value_at(data, spot.path)
    text = places.text(spot.path)
    return Problem(spot.path, f"expected {expected}, found {found(value, text)}{_advice(spot.expected, value, text)}")


def value_at(data: Any, path: KeyPath) -> Any:
    """Return the value at a path, None where there is none."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def describe(annotation: Any, limits: tuple[Any, ...] = ()) -> str:
    """Say in plain words what a type admits; empty where it admits anything."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return describe(inner, (*more, *limits))
    if get_origin(annotation) in (Union, types.UnionType):
        words = [describe(member, limits) for member in get_args(annotation) if member is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if get_origin(annotation) is Literal:
        return _choice([str(value) for value in get_args(annotation)])
    if get_origin(annotation) is tuple:
        least = _limit(limits, "min_length")
        return "a list" + (" of texts" if get_args(annotation)[0] is str else "") + (
            " with at least one entry" if least else "")  # fmt: skip
    if is_block(annotation) or get_origin(annotation) is dict:
        return "a block of keys" + (" with at least one" if _limit(limits, "min_length") else "")
    if annotation is bool:
        return "true or false"
    if annotation is str:
        pattern = _limit(limits, "pattern")
        return PATTERNS.get(pattern, f"text that matches {pattern}") if pattern else "text"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(limits)
    return ""


def _choice(values: list[str]) -> str:
    return f"`{values[0]}`" if len(values) == 1 else f"one of {', '.join(values)}"


def _limit(limits: Iterable[Any], name: str) -> Any:
    """Find a limit by name among constraint objects and whole field descriptions."""
    for limit in limits:
        value = getattr(limit, name, None)
        if value is None and getattr(limit, "metadata", None):
            value = _limit(limit.metadata, name)
        if value is not None:
            return value
    return None


def _range(limits: tuple[Any, ...]) -> str:
    low, above = _limit(limits, "ge"), _limit(limits, "gt")
    high, below = _limit(limits, "le"), _limit(limits, "lt")
    upper = f"below {_figure(below)}" if below is not None else f"at most {_figure(high)}" if high is not None else ""
    if low is not None:
        return f" from {_figure(low)} to {upper.removeprefix('at most ')}" if upper else f" of {_figure(low)} or more"
    if above is not None:
        return f" above {_figure(above)}" + (f" and {upper}" if upper else "")
    return ""


def _figure(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def found(value: Any, text: str | None = None) -> str:
    """Name a value as the user sees it; `text` is the scalar as written, if known."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return text if text else str(value).lower()
    if isinstance(value, dict):
        return "a block of keys" if value else "an empty block"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return text if text else str(value)


def _advice(annotation: Any, value: Any, text: str | None) -> str:
    """Say what to write instead, where that can be told."""
    kinds = members(annotation)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(value, bool) and text and text.lower() in _YAML_TRUTH - {"true", "false"}:
        reads = f"; YAML reads {text} as {str(value).lower()}"
    else:
        reads = ""
    if choices and (value is None or value is False) and "none" in choices:
        return f"{reads}; did you mean 'none'?"
    if choices and isinstance(value, str):
        near = nearest(value, choices)
        return f"; did you mean '{near}'?" if near else ""
    if str in kinds and isinstance(value, (bool, int, float)):
        return f"{reads}; quote it if it is text: '{text or found(value)}'"
    numbers = {int, float} & set(kinds)
    if numbers and isinstance(value, str) and _is_number(value):
        return "; remove the quotes" if text is None else ""
    if int in kinds and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    entries = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
    if entries and isinstance(value, str):
        return f"; write a list: [{_entry(entries[0], value)}]"
    if entries and isinstance(value, dict):
        return "; write the block as an entry of a list: [{...}]"
    if kinds and is_block(kinds[0]) and isinstance(value, str) and _entry(kinds[0], value) != value:
        return f"; write {_entry(kinds[0], value)}"
    return reads


def _entry(annotation: Any, value: str) -> str:
    """Write a text as an entry of a list: where that is a block, with the one key in it that must be there."""
    fields = keys_of(annotation) if is_block(annotation) else {}
    required = [name for name, field in fields.items() if field.is_required() and members(field.annotation) == [str]]
    return f"{{{required[0]}: {value}}}" if len(required) == 1 else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
