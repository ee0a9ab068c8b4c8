"""Where each value of a recipe was written, and the problems that point there.

`source` notes the lines, `overrides` the command line's changes; every message of the loader is a `Problem` whose place
is looked up here at the very end, so that no check has to know where its value came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import RecipeError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Lines (from 1) of a key and of its value, and the value's text as written where it is a plain scalar."""

    key_line: int
    value_line: int
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: which key, what about it, and whether to point at the key or at its value."""

    path: KeyPath
    text: str
    at_key: bool = False
    line: int | None = None


@dataclass
class Places:
    """The marks of a file, and on top of them what the command line changed.

    Attributes:
        file: the recipe as the user named it.
        marks: what the file says, by key path; the empty path is the file's top.
        changes: the command line's wording of a change, by the key path that it set.
    """

    file: str
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    changes: dict[KeyPath, str] = field(default_factory=dict)

    def change(self, path: KeyPath, wording: str, value: Places | None = None) -> None:
        """Note that the command line set `path`: whatever was known at or below it no longer holds.

        Args:
            path: the key that was set.
            wording: the option as messages show it.
            value: the marks inside the new value, kept for the texts as they were written.
        """
        self.marks = {old: mark for old, mark in self.marks.items() if old[: len(path)] != path}
        self.changes = {old: known for old, known in self.changes.items() if old[: len(path)] != path}
        self.changes[path] = wording
        if value is not None:
            self.marks |= {path + below: mark for below, mark in value.marks.items()}

    def find(self, path: KeyPath, *, at_key: bool = False) -> str:
        """Return `file:line`, or the command-line option, that wrote `path` or the block in which it is absent."""
        return self._find(path, at_key)[1]

    def text(self, path: KeyPath) -> str | None:
        """Return the plain scalar exactly as it stands there, if it was written as one."""
        mark = self.marks.get(path)
        return mark.text if mark else None

    def _find(self, path: KeyPath, at_key: bool) -> tuple[tuple[int, int], str]:
        """Return a sort key (file before command line, each in its order) and the place's wording."""
        ends = range(len(path), -1, -1)
        for end in ends:
            if wording := self.changes.get(path[:end]):
                return (1, list(self.changes).index(path[:end])), wording
        for end in ends:
            if mark := self.marks.get(path[:end]):
                line = mark.key_line if at_key or end < len(path) else mark.value_line
                return (0, line), f"{self.file}:{line}"
        return (0, 0), self.file

    def sentence(self, problem: Problem) -> str:
        """Return `place: dotted.path: text`."""
        return self._placed(problem)[1]

    def _placed(self, problem: Problem) -> tuple[tuple[int, int], str]:
        """Return the sort key and the sentence of a problem."""
        if problem.line is not None:
            order, place = (0, problem.line), f"{self.file}:{problem.line}"
        else:
            order, place = self._find(problem.path, problem.at_key)
        path = dotted(problem.path)
        parts = (place, "" if place.startswith(f"--set {path}=") else path, problem.text)
        return order, one_line(": ".join(part for part in parts if part))

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raise one error that lists all problems, one a line, in the order of their places; none: do nothing."""
        placed = sorted((self._placed(problem) for problem in problems), key=lambda found: found[0])
        if placed:
            raise RecipeError("\n".join(dict.fromkeys(sentence for _, sentence in placed)))


def dotted(path: KeyPath) -> str:
    """Write a key path as `--set` takes it: `data.sft.sources.0.limit`; absurdly long keys are cut."""
    return ".".join(str(step) if len(str(step)) <= 60 else f"{str(step)[:57]}..." for step in path)


def one_line(text: str) -> str:
    """Escape what would break a message's line: keys and values may hold any character."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
