"""A recipe file, with the command line's changes, as one validated and frozen object.

`source` reads, `overrides` changes, `schema` validates, `explain` words what is wrong, `checks` relates fields to one
another. Everything that is wrong is collected and raised at once, in the order of its lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe.checks import check_recipe
from pipeline.recipe.explain import explain
from pipeline.recipe.overrides import apply_overrides
from pipeline.recipe.places import KeyPath, Places, Problem
from pipeline.recipe.resolved import to_yaml
from pipeline.recipe.schema import Recipe
from pipeline.recipe.source import Source, parse_source, read_source
from pipeline.recipe.stage_settings import STAGE_KINDS
from pipeline.recipe.vocabulary import admits_none, is_block, keys_of, members, nearest


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from.

    Attributes:
        recipe: the settings, defaults filled in.
        path: the file as named.
        overrides: the command line's changes, in order.
    """

    recipe: Recipe
    path: Path
    overrides: tuple[str, ...] = ()
    places: Places = field(default_factory=lambda: Places(""), repr=False, compare=False)

    @property
    def output_dir(self) -> Path:
        """The run directory: what the recipe says, else `runs/<name>`."""
        return Path(self.recipe.output_dir or f"runs/{self.recipe.name}").expanduser()

    def resolved_yaml(self) -> str:
        """Return the recipe with every default written out; loading that text gives an equal recipe."""
        return to_yaml(self.recipe)

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Raise for problems found later (batches, trainer arguments), placed at the lines they come from."""
        self.places.refuse(problems)


def load_recipe(path: Path | str, overrides: Sequence[str] = (), *, output_dir: str | None = None) -> LoadedRecipe:
    """Read, change, validate and check a recipe. Imports no machine-learning library.

    Types are strict: a number in quotes is text, a truth value is no number, and `no` or `off` is a truth value.

    Args:
        path: the YAML file.
        overrides: `--set` changes, each `a.b.c=VALUE` with VALUE in YAML.
        output_dir: replaces the key of that name.

    Raises:
        RecipeError: something is wrong; one line per finding with its place, key, and what to write instead.
    """
    return _load(read_source(path), Path(path), overrides, output_dir)


def loads_recipe(text: str, name: str = "<recipe>", overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe from text; `name` stands for the file in messages."""
    source = parse_source(text, name)
    if not isinstance(source.data, dict):
        raise RecipeError(f"{name}: a recipe is a block of `key: value` lines")
    return _load(source, Path(name), overrides, None)


def _load(source: Source, path: Path, overrides: Sequence[str], output_dir: str | None) -> LoadedRecipe:
    source = apply_overrides(source, overrides)
    data, places = source.data, source.places
    if output_dir is not None:
        data["output_dir"] = output_dir
        places.change(("output_dir",), f"--output-dir {output_dir}")
    problems = [*source.problems, *_fill_blocks(Recipe, data, (), places), *_fill_kinds(data)]
    recipe = None
    try:
        # Strict JSON mode is the one that takes no text or truth value for a number and yet a list for a tuple.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        known = [problem.path for problem in problems]
        # A block that lacks only what was refused in it has no second problem.
        problems += [
            found for found in explain(error.errors(include_url=False), data, places)
            if not any(path[: len(found.path)] == found.path for path in known)
        ]  # fmt: skip
    if recipe is not None and not problems:
        problems += [*check_recipe(recipe), *_upwards(recipe, places)]
    places.refuse(problems)
    assert recipe is not None
    return LoadedRecipe(recipe, path, tuple(overrides), places)


def _upwards(recipe: Recipe, places: Places) -> list[Problem]:
    """Refuse a way up and out of here in the file; on the command line it is the person's own."""
    if ".." in Path(recipe.output_dir or "").parts and ("output_dir",) not in places.changes:
        text = f"{recipe.output_dir} leads out of the folder you are in; write --output-dir {recipe.output_dir}"
        return [Problem(("output_dir",), f"{text} if that is meant")]
    return []


def _fill_blocks(block: type[BaseModel], data: Any, path: KeyPath, places: Places) -> list[Problem]:
    """Take a block left empty for one with all defaults, where it cannot mean anything else."""
    problems: list[Problem] = []
    for name, described in keys_of(block).items():
        inner, here = members(described.annotation), (*path, name)
        if not isinstance(data, dict) or name not in data or len(inner) != 1 or not is_block(inner[0]):
            continue
        if data[name] is None and not admits_none(described.annotation):
            data[name] = {}
        elif data[name] is None and places.text(here) == "":
            required = any(field.is_required() for field in inner[0].model_fields.values())
            write = "write its keys, " if required else "write {} for all defaults, "
            problems.append(Problem(here, f"is empty; {write}or null (or no key at all) to go without"))
        problems += _fill_blocks(inner[0], data[name], here, places)
    return problems


def _fill_kinds(data: Any) -> list[Problem]:
    """Give each stage block its kind; blocks whose kind cannot be told are reported and taken out."""
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return []
    problems: list[Problem] = []
    for name in list(stages):
        block = {} if stages[name] is None else stages[name]
        stages[name] = block
        if not isinstance(block, dict):
            continue
        if "kind" not in block and name in STAGE_KINDS:
            block["kind"] = name
        problem = _kind_problem(name, block.get("kind"), "kind" in block)
        if problem:
            problems.append(problem)
            del stages[name]
    return problems


def _kind_problem(name: str, kind: Any, written: bool) -> Problem | None:
    """Say what is wrong with a stage's kind."""
    if isinstance(kind, str) and kind in STAGE_KINDS:
        return None
    kinds = ", ".join(STAGE_KINDS)
    claimed = str(kind if written else name)
    near = nearest(claimed, list(STAGE_KINDS))
    if written:
        meant = f"; did you mean '{near}'?" if near else ""
        return Problem(("stages", name, "kind"), f"there is no stage kind {kind!r}; the kinds are {kinds}{meant}")
    meant = f"did you mean '{near}'? Otherwise write" if near else "write"
    return Problem(("stages", name), f"is not named after a stage kind ({kinds}); {meant} `kind:` in it", at_key=True)
