"""The recipe's keys as data, read off the schema: which key belongs where, and what a wrong one was meant to be."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.recipe.foreign import DECIDED, NO_SECRETS, is_secret, meant_key, stage_word
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import STAGE_KINDS

ENTRY = "[]"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the schema: `data.sft.sources[].path`, `stages.dpo.beta`."""

    block: str
    name: str
    field: FieldInfo

    @property
    def path(self) -> str:
        """The key's full path."""
        return f"{self.block}.{self.name}" if self.block else self.name


def keys_of(block: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a block's fields by the names a recipe writes."""
    return {field.alias or name: field for name, field in block.model_fields.items()}


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of a type: unions are opened, None and the limits in `Annotated` dropped."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [each for member in get_args(annotation) for each in members(member)]
    return [] if annotation in (None, type(None)) else [annotation]


def admits_none(annotation: Any) -> bool:
    """Whether null is a value of the type."""
    return type(None) in get_args(annotation)


def is_block(annotation: Any) -> bool:
    """Whether a type is one of the schema's blocks."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@cache
def schema_keys() -> tuple[Key, ...]:
    """Return every key of the schema, parents before children."""
    return tuple(_walk(Recipe, ""))


def _walk(block: type[BaseModel], at: str) -> Iterator[Key]:
    for name, field in keys_of(block).items():
        key = Key(at, name, field)
        yield key
        for below, inner in _blocks_in(field.annotation, key.path):
            yield from _walk(inner, below)


def _blocks_in(annotation: Any, at: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the blocks that a type holds, with the path of each."""
    for member in members(annotation):
        arguments = get_args(member)
        if is_block(member):
            yield at, member
        elif get_origin(member) is tuple:
            yield from _blocks_in(arguments[0], at + ENTRY)
        elif get_origin(member) is dict and any(is_block(each) for each in members(arguments[1])):
            yield from ((f"{at}.{kind}", model) for kind, model in STAGE_KINDS.items())


def unknown_key(name: str, valid: list[str], kind: str | None = None) -> str:
    """Say what is wrong with a key that its block does not have, and what was probably meant.

    Args:
        name: the key as written.
        valid: the keys of its block.
        kind: the stage's kind, where the block is a stage's.
    """
    near = nearest(name, valid)
    close = difflib.SequenceMatcher(None, name, near).ratio() >= 0.85 if near else False
    if is_secret(name) and not close:
        return NO_SECRETS
    # What a word means in just such a stage says more than where else there is a key of that name.
    own, reason = stage_word(name, kind)
    meant = own or meant_key(name)
    if not (own or reason or meant in valid or close) and (elsewhere := _homes(name)):
        return f"unknown key here; it belongs to {elsewhere}"
    if not own and (reason := reason or DECIDED.get(name)):
        return f"unknown key; {reason}"
    if meant:
        return f"unknown key, did you mean {_quoted(meant, valid)}?"
    if near:
        return f"unknown key, did you mean '{near}'?"
    return _far(name, valid)


def _far(name: str, valid: list[str]) -> str:
    """Say what a key like none of its block's was probably meant to be."""
    own, reason = stage_word(name, "ppo")
    if own or reason:
        return f"unknown key here; in a ppo stage: {reason or f'`{own}`'}"
    far = nearest(name, sorted({key.name for key in schema_keys()}), 0.8)
    if far:
        return f"unknown key here; did you mean '{far}', which belongs to {_homes(far)}?"
    return f"unknown key; the keys here are {', '.join(valid)}"


def nearest(name: str, candidates: list[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate that a slip of the finger most likely turned into `name`."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    wanted = name.lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, lowered, n=1, cutoff=cutoff)
    return lowered[near[0]] if near else None


def _quoted(own: str, valid: list[str]) -> str:
    """Quote a key; one that is not of this block gets its home added."""
    home = _homes(own) if own not in valid and "." not in own else ""
    return f"'{own}'" + (f" of {home}" if home else "")


def article(kind: str) -> str:
    """Put the article before a stage's kind: an sft, a dpo."""
    return f"{'an' if kind.startswith('sft') else 'a'} {kind}"


def _homes(name: str) -> str:
    """Say in words which blocks have a key of that name; empty where none has."""
    blocks = [key.block for key in schema_keys() if key.name == name]
    kinds = [block.removeprefix("stages.") for block in blocks if block.count(".") == 1 and block.startswith("stages.")]
    homes = [_block(block) for block in blocks if block.removeprefix("stages.") not in kinds]
    if len(kinds) == len(STAGE_KINDS):
        homes.append("a stage's block")
    elif kinds:
        homes.append(f"{article(' or '.join(kinds))} stage")
    return " or ".join(homes)


def _block(path: str) -> str:
    """Name a block that is not a stage's: by its path, one inside a stage by that stage's kind."""
    if not path.startswith("stages."):
        return f"`{path}`" if path else "the top level"
    kind, _, inner = path.removeprefix("stages.").partition(".")
    return f"`{inner}` of {article(kind)} stage"
