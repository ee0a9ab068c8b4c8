"""`--set a.b.c=VALUE`: changes to the plain data of a recipe, made before anything is validated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.foreign import is_secret
from pipeline.recipe.places import KeyPath, Mark, Places, Problem, dotted, one_line
from pipeline.recipe.source import MAX_DEPTH, Source, parse_source

EXAMPLE = "write it like --set stages.dpo.beta=0.05"
SHOWN = 40


class _NoRoom(Exception):
    """The path of a change leads through something that is not a block or a list with that entry."""


def apply_overrides(source: Source, overrides: Sequence[str]) -> Source:
    """Return the source with the changes made in their order; `source.data` is changed in place.

    Missing blocks on the way are created; a number is an entry of a list, and the number after the last one adds one.

    Raises:
        RecipeError: a change is not of the form `key.path=VALUE`, or there is no room for it; one line for each.
    """
    wrong: list[str] = []
    problems = list(source.problems)
    for override in overrides:
        try:
            problems += _apply(source.data, source.places, override)
        except RecipeError as error:
            wrong.append(one_line(str(error)))
    if wrong:
        raise RecipeError("\n".join(wrong))
    return Source(source.data, source.places, tuple(problems))


def _apply(data: Any, places: Places, override: str) -> list[Problem]:
    """Make one change; returns what is wrong inside its value (duplicate keys and the like)."""
    name, equals, text = override.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals:
        raise RecipeError(f"--set {override}: has no value; {EXAMPLE}")
    if not all(keys) or len(keys) > MAX_DEPTH:
        raise RecipeError(f"--set {name}=...: the part before `=` is not a key path; {EXAMPLE}")
    name = ".".join(keys)
    value = parse_source(text, f"--set {name}=...")
    # The value is shown where that is short and harmless: never a block, never what may be a password.
    short = len(text) <= SHOWN and text.isprintable() and not isinstance(value.data, (dict, list))
    wording = f"--set {name}={text if short and not is_secret(keys[-1]) else '...'}"
    try:
        path, created = _put(data, keys, value.data)
    except _NoRoom as error:
        raise RecipeError(f"{wording}: {error}") from None
    value.places.marks.setdefault((), Mark(1, 1, ""))
    places.change(created, wording)
    places.change(path, wording, value.places)
    return [Problem(path + found.path, found.text) for found in value.problems]


def _put(data: Any, keys: list[str], value: Any) -> tuple[KeyPath, KeyPath]:
    """Set the value; returns its path and the path of the first block that had to be created for it."""
    here = data
    path: KeyPath = ()
    created: KeyPath | None = None
    for depth, key in enumerate(keys):
        step = _step(here, key, path)
        path = (*path, step)
        absent = _absent(here, step)
        created = path if absent and created is None else created
        if depth == len(keys) - 1:
            fresh = value
        elif absent or here[step] is None:
            fresh = [] if keys[depth + 1] == "0" else {}
        else:
            here = here[step]
            continue
        if isinstance(here, list) and absent:
            here.append(fresh)
        else:
            here[step] = fresh
        here = fresh
    return path, created or path


def _absent(here: Any, step: str | int) -> bool:
    """Whether a block lacks the key, or a list the entry."""
    return step not in here if isinstance(here, dict) else step == len(here)


def _step(here: Any, key: str, path: KeyPath) -> str | int:
    """Return the key as the container at `path` takes it."""
    if isinstance(here, dict):
        return key
    where = f"`{dotted(path)}`"
    if not isinstance(here, list):
        raise _NoRoom(f"{where} is {here!r}, not a block with a key '{key}'")
    if not key.isascii() or not key.isdigit() or int(key) > len(here):
        have = f"entries 0 to {len(here) - 1}" if here else "no entries"
        raise _NoRoom(f"{where} is a list with {have} ({len(here)} adds one), '{key}' is none of them")
    return int(key)
