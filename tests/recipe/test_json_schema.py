"""The schema for editors says what the loader does, and the documentation says what the schema does."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest
from pydantic_core import PydanticUndefined

from pipeline.recipe import STAGE_KINDS, loads_recipe, recipe_json_schema
from pipeline.recipe.explain import PATTERNS, describe
from pipeline.recipe.json_schema import STAGE_NAME
from pipeline.recipe.settings import StageName
from pipeline.recipe.source import REPOSITORY
from pipeline.recipe.vocabulary import Key, is_block, members, schema_keys

SCHEMA = recipe_json_schema()
KEYS = schema_keys()


def default_of(key: Key):
    return key.field.get_default(call_default_factory=True, validated_data={})


def definition(key: Key) -> dict:
    """Return the JSON Schema of a key, by walking the schema as an editor does."""
    node = SCHEMA
    for step in re.findall(r"[^.\[\]]+|\[\]", key.path):
        while "$ref" in node or "anyOf" in node:
            options = node.get("anyOf", [node])
            node = next((each for each in options if "$ref" in each or "items" in each or "properties" in each), node)
            if "$ref" not in node:
                break
            node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
        node = node["items"] if step == "[]" else node["properties"][step]
    return node


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_is_described(key):
    blocks = [member for member in members(key.field.annotation) if is_block(member)]
    text = key.field.description or (blocks[0].__doc__ if blocks else "")
    assert text and len(text) > 4 and text.rstrip().endswith("."), key.path


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_every_key_is_in_the_schema_with_its_default(key):
    found = definition(key)
    assert "title" not in found
    default = default_of(key)
    if default is PydanticUndefined:
        assert "default" not in found
    else:
        plain = default.model_dump(mode="json", by_alias=True) if is_block(type(default)) else default
        assert found["default"] == json.loads(json.dumps(plain))
    if key.field.description:
        assert found["description"] == key.field.description


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.path)
def test_what_every_key_expects_can_be_said_in_words(key):
    words = describe(key.field.annotation, tuple(key.field.metadata))
    assert words
    assert "matches" not in words


def test_patterns_have_words_and_the_stage_name_is_one_of_them():
    assert STAGE_NAME in PATTERNS
    assert get_args(StageName)[1].metadata[0].pattern == STAGE_NAME
    assert STAGE_NAME in json.dumps(SCHEMA).replace("\\\\", "\\")


def test_defaults_survive_being_written_out_and_read_back():
    """A key that admits null defaults to null, and a number's default has the type that reading gives it."""
    for key in KEYS:
        if type(None) in getattr(key.field.annotation, "__args__", ()):
            assert default_of(key) is None, key.path
        if float in members(key.field.annotation) and default_of(key) is not None:
            assert type(default_of(key)) in (float, type(PydanticUndefined)), (
                f"{key.path}: write the default as a float"
            )


def test_stage_blocks_need_a_kind_only_under_another_name():
    stages = SCHEMA["properties"]["stages"]
    assert set(stages["properties"]) == set(STAGE_KINDS)
    for kind, block in STAGE_KINDS.items():
        assert {"$ref": f"#/$defs/{block.__name__}"} in stages["properties"][kind]["anyOf"]
        assert {"type": "null"} in stages["properties"][kind]["anyOf"]
        assert "kind" not in SCHEMA["$defs"][block.__name__].get("required", [])
        assert SCHEMA["$defs"][block.__name__]["properties"]["kind"]["const"] == kind
    assert stages["additionalProperties"]["required"] == ["kind"]
    assert len(stages["additionalProperties"]["oneOf"]) == len(STAGE_KINDS)


def test_unknown_keys_are_marked_everywhere_and_the_schema_is_json():
    assert SCHEMA["required"] == ["name", "data", "stages"]
    assert all(block["additionalProperties"] is False for block in [SCHEMA, *SCHEMA["$defs"].values()])
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def documented() -> list[tuple[str, str]]:
    """Return key and default of each row `| `key` | ... |` in the pages of docs/ whose header has a Default column."""
    rows = []
    for page in sorted((REPOSITORY / "docs").rglob("*recipe*.md")):
        column = None
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            titles = [cell.lower() for cell in cells]
            if "key" in titles and "default" in titles:
                column = titles.index("default")
            elif not line.strip().startswith("|"):
                column = None
            elif column is not None and re.fullmatch(r"`[\w.\[\]]+`", cells[0]):
                rows.append((cells[0].strip("`"), cells[column].strip("`")))
    return rows


def test_documented_defaults_are_the_schemas():
    rows = documented()
    if not rows:
        pytest.skip("no table of keys in docs/ yet")
    keys = {key.path: key for key in KEYS}
    for path, written in rows:
        assert path in keys, path
        default = default_of(keys[path])
        if default is PydanticUndefined:
            assert written in ("", "-", "required"), path
        elif not is_block(type(default)):
            texts = {json.dumps(default), str(default), "" if default is None else json.dumps(default)}
            numbers = {f"{default:g}", f"{default:.1e}"} if isinstance(default, float) else set()
            assert written in texts | numbers, (path, written)


def test_every_key_is_documented_once():
    paths = [path for path, _ in documented()]
    assert len(paths) == len(set(paths))
    assert set(paths) == {key.path for key in KEYS}


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_documented_examples_load(example):
    """Those of a whole `stages` block as they are, those of one stage behind the stages it needs."""
    head = "name: d\ndata: {sft: {sources: [{path: a}]}, preference: {sources: [{path: p}]}}\n"
    stages = example if example.startswith("stages:") else f"stages:\n  sft:\n  reward:\n{example}"
    assert loads_recipe(head + stages).recipe.stages
