"""What a family offers: templates that draw tasks. A task is a question with its right answer, its rule and its faults.

Families make tasks, `faults` adds the faults any task can have, `assemble` turns tasks into rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

Language = Literal["en", "zh"]
Turn = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One question, answered right, with the wrong answers that belong to it."""

    prompt: str
    answer: str
    check: Mapping[str, Any]
    faults: Mapping[str, Sequence[str]]
    """Fault name to wrong answers, any of which may become the rejected side."""
    key: str
    """What the question is about. All tasks of a family with one key fall into one split, however they are phrased."""
    history: tuple[Turn, ...] = ()
    context: str = ""
    """The material the instruction works on, where there is any: the `input` of an Alpaca row."""

    @property
    def text(self) -> str:
        """The user's turn as the model sees it."""
        return f"{self.prompt}\n\n{self.context}" if self.context else self.prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A kind of question. Held-out templates give eval rows only, so that eval also measures unseen kinds."""

    id: str
    language: Language
    draw: Callable[[Random], Task]
    rows: int
    """Rows wanted in each of the two files."""
    held_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A group of templates that ask for the same skill."""

    name: str
    templates: tuple[Template, ...]
    over_refused: Mapping[str, str] = field(default_factory=dict)
    """By language: what an over-refusal of such a task says it cannot do; empty where refusing is right."""


def numeral(value: float) -> str:
    """A number as people write it: no trailing zeros, commas from 10,000 on."""
    text = f"{value:,.2f}".rstrip("0").rstrip(".")
    return text if abs(value) >= 10_000 else text.replace(",", "")


def bare(text: str) -> str:
    """A text without its final punctuation, to be built into a sentence."""
    return text.rstrip(".!?\u3002\uff01\uff1f")


def near(rng: Random, value: float) -> float:
    """A wrong number that could be taken for the right one: same size, same decimals."""
    steps = [1, 2, 3, 10] if value == int(value) else [0.1, 0.5, 1, 2]
    wrong = [value + sign * step for step in steps for sign in (1, -1)]
    return round(rng.choice([w for w in wrong if w > 0]), 2)
