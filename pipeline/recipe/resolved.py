"""A recipe written back as YAML, every default spelt out."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.recipe.schema import Recipe
from pipeline.recipe.source import FLOAT_STARTS, FLOAT_TAG, FLOAT_WITH_EXPONENT


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows which texts the recipe's reader takes for numbers, so that it quotes them."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time: the reader refuses aliases."""
        return True


_Dumper.add_implicit_resolver(FLOAT_TAG, FLOAT_WITH_EXPONENT, FLOAT_STARTS)


def to_yaml(recipe: Recipe) -> str:
    """Return the resolved recipe; loading it again gives an equal one."""
    return dump(recipe.model_dump(mode="python", by_alias=True))


def dump(data: Any) -> str:
    """Write plain data as YAML that the recipe's reader reads back unchanged."""
    return yaml.dump(_plain(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which is how YAML writes both."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
