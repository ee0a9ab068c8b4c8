"""`--array-over key=v1,v2`: the combinations of several keys' values, each as the `--set` changes that make it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.source import parse_source

MOST = 1000
"""Elements of an array: Slurm's own default limit is 1001."""


def changes_of(asked: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination, the last key's values changing fastest.

    Args:
        asked: `key=v1,v2,...` for each key; values in YAML.

    Raises:
        RecipeError: no values, a key twice, or too many combinations.
    """
    keys = [text.partition("=")[0].strip() for text in asked]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"--array-over {key}: is given twice; write all its values behind one `=`")
    choices = [[f"{key}={_written(value)}" for value in _values(text)] for key, text in zip(keys, asked, strict=True)]
    found = list(product(*choices))
    if len(found) > MOST:
        raise RecipeError(f"--array-over: {len(found)} combinations, at most {MOST} fit in a job array; leave some out")
    return found


def _values(text: str) -> list[Any]:
    key, equals, values = text.partition("=")
    source = parse_source(f"[{values}]", f"--array-over {key}=...")
    found = source.data
    if not equals or not found or not isinstance(found, list) or not key.strip():
        raise RecipeError(f"--array-over {text}: expected values, such as stages.dpo.beta=0.05,0.1")
    source.places.refuse(source.problems)
    return found


def _written(value: Any) -> str:
    """A value as `--set` reads it: JSON is YAML."""
    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)
