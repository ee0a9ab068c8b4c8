"""Keys over values, `key=v1,v2`: every combination as the `--set` changes that make it, and the run directory of each.

One way for `trivet sweep --over` and `trivet submit --array-over`. Layer 5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe import load_recipe
from pipeline.recipe.source import parse_source

MOST = 1000
"""Combinations; Slurm's own default limit of an array is 1001."""


def changes_of(asked: Sequence[str], flag: str) -> list[tuple[str, ...]]:
    """Every combination, the last key's values changing fastest.

    Args:
        asked: `key=v1,v2,...` for each key; values in YAML.
        flag: the option that they stand behind, for what is said of mistakes.

    Raises:
        RecipeError: no values, a key or a value twice, or too many combinations.
    """
    keys = [text.partition("=")[0].strip() for text in asked]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"{flag} {key}: is given twice; write all its values behind one `=`")
    choices = [
        [f"{key}={_written(value)}" for value in _values(text, flag)] for key, text in zip(keys, asked, strict=True)
    ]
    for change in (change for each in choices for change in each if each.count(change) > 1):
        raise RecipeError(f"{flag}: {change} is given twice; write each value once")
    found = list(product(*choices))
    if len(found) > MOST:
        fit = "fit in a job array" if flag == "--array-over" else "are run"
        raise RecipeError(f"{flag}: {len(found)} combinations, at most {MOST} {fit}; leave some out")
    return found


def stem_of(recipe: str, overrides: Sequence[str], changes: Sequence[tuple[str, ...]], output_dir: str | None) -> Path:
    """What the run directories of all combinations begin with: that of the first, had it been run alone.

    Raises:
        RecipeError: that one is no valid recipe.
    """
    return load_recipe(Path(recipe), [*overrides, *changes[0]], output_dir=output_dir).output_dir


def run_dir_of(stem: Path, index: int) -> str:
    """The run directory of one combination."""
    return f"{stem}-{index}"


def _values(text: str, flag: str) -> list[Any]:
    key, equals, values = text.partition("=")
    source = parse_source(f"[{values}]", f"{flag} {key}=...")
    found = source.data
    if not equals or not found or not isinstance(found, list) or not key.strip():
        raise RecipeError(f"{flag} {text}: expected values, such as stages.dpo.beta=0.05,0.1")
    source.places.refuse(source.problems)
    return found


def _written(value: Any) -> str:
    """A value as `--set` reads it: JSON is YAML."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)
