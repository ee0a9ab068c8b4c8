"""What differs between the resolved recipes of runs, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.comparison.load import ComparedRun

_NAMES = ("name", "output_dir")
"""Every run has its own; that is no difference in what was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One key that not all recipes give the same value."""

    key: str
    values: tuple[str, ...]
    """One per run, as the recipe writes it; a dash where the recipe has no such key."""


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """The keys that differ, in the order in which the recipes have them; runs without a recipe show dashes."""
    recipes = [flat(compared.recipe) for compared in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    missing = object()
    found = []
    for key in keys:
        values = [recipe.get(key, missing) for recipe in recipes]
        if key not in _NAMES and any(value != values[0] for value in values[1:]):
            shown = tuple("–" if value is missing else written(value) for value in values)
            found.append(Difference(key=key, values=shown))
    return _folded(found)


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """A recipe as dotted keys; lists of plain values stay whole, others are numbered: `data.sft.sources.0.limit`."""
    if isinstance(value, Mapping) and value:
        return {inner: leaf for name, one in value.items() for inner, leaf in flat(one, _below(key, name)).items()}
    if isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        return {inner: leaf for at, one in enumerate(value) for inner, leaf in flat(one, _below(key, at)).items()}
    return {key: value} if key else {}


def _below(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _folded(found: Sequence[Difference]) -> list[Difference]:
    """A stage that only some runs have is one difference, not one for each of its keys."""
    folded: dict[str, Difference] = {}
    for one in found:
        parts = one.key.split(".")
        block = ".".join(parts[:2]) if parts[0] in ("stages", "data") and len(parts) > 2 else ""
        gone = tuple(value == "–" for value in one.values)
        if block and any(gone) and _wholly_absent(block, found, gone):
            there = tuple("–" if missing else "yes" for missing in gone)
            folded.setdefault(block, Difference(key=block, values=there))
        else:
            folded[one.key] = one
    return list(folded.values())


def _wholly_absent(block: str, found: Sequence[Difference], gone: tuple[bool, ...]) -> bool:
    inside = [one for one in found if one.key.startswith(f"{block}.")]
    return len(inside) > 1 and all(tuple(value == "–" for value in one.values) == gone for one in inside)


def written(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False)
