"""JSON Schema of a recipe, for editors: completion, descriptions, defaults and warnings while one types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import STAGE_KINDS
from pipeline.recipe.vocabulary import is_block, keys_of, members, schema_keys

STAGE_NAME = r"^[a-z][a-z0-9_]{0,39}$"


def recipe_json_schema() -> dict[str, Any]:
    """Return the schema. It admits what the loader admits: a stage named after its kind need not write the kind."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Trivet recipe"
    schema["properties"]["stages"] = _stages(schema["properties"]["stages"])
    for title, block in _blocks().items():
        _tidy(schema["$defs"][title]["properties"], block)
    _tidy(schema["properties"], Recipe)
    return schema


def _stages(stages: dict[str, Any]) -> dict[str, Any]:
    """Offer the kinds as names; under any other name a block must say its kind."""
    blocks = {kind: {"$ref": f"#/$defs/{block.__name__}"} for kind, block in STAGE_KINDS.items()}
    return {
        "type": "object",
        "description": stages["description"],
        "minProperties": 1,
        "propertyNames": {"pattern": STAGE_NAME},
        "properties": {kind: {"anyOf": [block, {"type": "null"}]} for kind, block in blocks.items()},
        "additionalProperties": {"type": "object", "required": ["kind"], "oneOf": list(blocks.values())},
    }


def _blocks() -> dict[str, Any]:
    """Return the schema's blocks by the name that pydantic gives their definition."""
    found: dict[str, Any] = {block.__name__: block for block in STAGE_KINDS.values()}
    for key in schema_keys():
        for member in members(key.field.annotation):
            for inner in (member, *getattr(member, "__args__", ())):
                if is_block(inner):
                    found[inner.__name__] = inner
    return found


def _tidy(properties: dict[str, Any], block: Any) -> None:
    """Drop the titles made up from names, and add the defaults of whole blocks, which pydantic leaves out."""
    for name, field in keys_of(block).items():
        properties[name].pop("title", None)
        if field.default_factory is not None:
            default = field.get_default(call_default_factory=True, validated_data={})
            plain = default.model_dump(mode="json", by_alias=True) if isinstance(default, BaseModel) else default
            properties[name]["default"] = plain
