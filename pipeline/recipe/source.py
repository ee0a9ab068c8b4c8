"""YAML text -> plain data and the line of every key, before anything is known about recipes.

`yaml.safe_load`'s reading of scalars with the float pitfall removed (`1e-4` is a number), and stricter than it on what
never belongs in a recipe: duplicate keys, tags, anchors and aliases, keys that are not text, dates. Used for the file
and for each `--set` value; `overrides` comes next.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.places import KeyPath, Mark, Places, Problem, one_line

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_BITS = 1024
REPOSITORY = Path(__file__).resolve().parents[2]

FLOAT_TAG = "tag:yaml.org,2002:float"
# YAML 1.1 wants a dot in the mantissa and a sign in the exponent; 1e-4, 1.0e4 and 1E5 are text to it.
FLOAT_WITH_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
FLOAT_STARTS = list("-+.0123456789")

_HINTS = {
    "mapping values are not allowed": "quote a value that contains ': '",
    "found character '\\t'": "indent with spaces, not tabs",
    "could not find expected ':'": "every line of a block is `key: value`",
    "expected <block end>": "check the indentation of this line and the ones above",
    "expected a single document": "a recipe is one document: remove the `---` line",
}


@dataclass(frozen=True)
class Source:
    """What a YAML text says: plain data, where each key stands, and what is wrong that does not stop the reading."""

    data: Any
    places: Places
    problems: tuple[Problem, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, anchors, tags and deep nesting while it composes, before they can cost."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node after a look at the event that starts it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refusal("anchors and aliases (`&name`, `*name`) are not allowed; write the value out", event)
        if event.tag is not None:
            raise _refusal(f"tags are not allowed; remove `{_short_tag(event.tag)}`", event)
        if self.depth >= MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(FLOAT_TAG, FLOAT_WITH_EXPONENT, FLOAT_STARTS)


def read_source(path: Path | str, what: str = "a recipe") -> Source:
    """Read a recipe file, or what else is written like one.

    Raises:
        RecipeError: the file cannot be read or is not a YAML mapping; the message says what to type instead.
    """
    name = str(path)
    source = parse_source(_decode(_read_bytes(Path(path), name), name), name)
    if source.data is None:
        has = " has at least `name`, `data` and `stages`" if what == "a recipe" else " is a block of `key: value` lines"
        raise RecipeError(f"{name}: the file is empty; {what}{has}")
    if not isinstance(source.data, dict):
        line = source.places.marks[()].value_line
        raise RecipeError(f"{name}:{line}: {what} is a block of `key: value` lines, found {_kind_of(source.data)}")
    return source


def parse_source(text: str, name: str) -> Source:
    """Parse YAML text; `name` is what messages call it.

    Raises:
        RecipeError: the text is not YAML, or uses what is refused outright.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        text = f"holds a character that YAML does not allow (#x{error.character:04x})"
        raise RecipeError(f"{name}:{line}: {text}") from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_sentence(error, name)) from None
    reader = _Reader(loader, Places(name))
    data = reader.read(node, (), 1) if node is not None else None
    return Source(data, reader.places, tuple(reader.problems))


class _Reader:
    """Turns composed nodes into data; notes marks and problems on its way."""

    def __init__(self, loader: _Loader, places: Places) -> None:
        self.loader = loader
        self.places = places
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath, key_line: int) -> Any:
        """Return the data of a node that stands at `path`."""
        line = node.start_mark.line + 1
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        self.places.marks[path] = Mark(key_line, line, node.value if plain else None)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), item.start_mark.line + 1) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """Read a block; of a duplicate key the first value counts, but the recipe is refused anyway."""
        block: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node, path, line)
            if key is None:
                continue
            if key in block:
                first = self.places.marks[(*path, key)].key_line
                where = f"on line {first}" if first != line else "on the same line"
                self.problems.append(Problem((*path, key), f"this key was already given {where}", line=line))
                continue
            block[key] = self.read(value_node, (*path, key), line)
        return block

    def _key(self, node: yaml.Node, path: KeyPath, line: int) -> str | None:
        """Return the key's text, or None with a problem noted."""
        if not isinstance(node, yaml.ScalarNode):
            self.problems.append(Problem(path, "a key must be text, found a list or block", line=line))
        elif node.tag == "tag:yaml.org,2002:merge":
            self.problems.append(Problem(path, "merge keys (`<<`) are not allowed; write the keys out", line=line))
        elif node.tag != "tag:yaml.org,2002:str":
            text = f"a key must be text; YAML reads `{node.value}` as something else, quote it"
            self.problems.append(Problem(path, text, line=line))
        else:
            return node.value
        return None

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return text, number, truth value or None; no recipe key takes a date, so a date is a slip."""
        if node.tag.endswith(":timestamp"):
            self.problems.append(Problem(path, f"YAML reads `{node.value}` as a date; quote it"))
            return node.value
        try:
            value = self.loader.construct_object(node)
        except (ValueError, yaml.YAMLError):
            self.problems.append(Problem(path, f"cannot be read: `{node.value[:40]}`; quote it if it is text"))
            return None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            self.problems.append(Problem(path, f"is a number of {len(node.value)} digits; no setting is that large"))
            return None
        if isinstance(value, str) and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            self.problems.append(Problem(path, "holds an escaped character that is not text"))
            return ""
        return value


def _refusal(problem: str, event: Any) -> yaml.MarkedYAMLError:
    """Return an error that `_syntax_sentence` places."""
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)


def _short_tag(tag: str) -> str:
    """Write a tag as the user most likely did: `!!python/object`."""
    return tag.replace("tag:yaml.org,2002:", "!!")


def _syntax_sentence(error: yaml.MarkedYAMLError, name: str) -> str:
    """Say where the text stops being YAML and, for the usual slips, what to do."""
    mark = error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    problem = error.problem or error.context or "not valid YAML"
    told = f"{error.context or ''} {problem}"
    hint = next((hint for sign, hint in _HINTS.items() if sign in told), None)
    began = error.context_mark
    since = f" ({error.context}, line {began.line + 1})" if error.context and began and mark is not began else ""
    return one_line(f"{place}: {problem}{since}" + (f"; {hint}" if hint else ""))


def _kind_of(value: Any) -> str:
    """Name a value's shape in a word."""
    return "a list" if isinstance(value, list) else "a single value"


def _decode(raw: bytes, name: str) -> str:
    """Decode UTF-8 (a byte-order mark is tolerated: some editors write one)."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            f"{name}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def _read_bytes(path: Path, name: str) -> bytes:
    """Read a regular file of a sane size, or say what is there instead."""
    if "\0" in name:
        raise RecipeError(f"{name!r}: is not a file name")
    try:
        if path.is_dir():
            inside = _listed(sorted(found.name for found in path.glob("*.yaml")))
            raise RecipeError(f"{name}: is a folder, a recipe is one file" + (f"; in it: {inside}" if inside else ""))
        if not path.exists():
            raise RecipeError(f"{name}: no such file{_instead(path)}")
        if not path.is_file():
            raise RecipeError(f"{name}: is not a regular file")
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{name}: is larger than {MAX_BYTES // 1_000_000} MB; a recipe is one screen of YAML")
    return raw


def _instead(path: Path) -> str:
    """Suggest the shipped recipe of that name, else near names in the same folder."""
    names = [path.name] if path.suffix in {".yaml", ".yml"} else [f"{path.name}.yaml", f"{path.name}.yml"]
    folders = [path.parent]
    if len(path.parts) == 1:
        folders += [Path("recipes"), REPOSITORY / "recipes"]
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return f"; did you mean {folder / name}?"
    for folder in folders:
        present = {found.name for found in folder.glob("*.y*ml")} if folder.is_dir() else set()
        near = {match: None for name in names for match in difflib.get_close_matches(name, present)}
        if near:
            return f"; near names: {_listed([str(folder / match) for match in near])}"
    return "" if path.parent.is_dir() else f"; the folder {path.parent} does not exist"


def _listed(names: list[str], most: int = 8) -> str:
    """Join names, the first few of them."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
