"""Answers to read: for some held-out prompts every policy's greedy answer, and its sampled one with what it scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from evaluation.report.answers import Answer, Drawn, Prompt
from evaluation.report.load import Run
from evaluation.report.measures import figures, measure_named

SAMPLE_PROMPTS = 12
RESPONSE_CHARACTERS = 1500
"""A longer response is cut on the page; `answers.jsonl` and `sampled.jsonl` have all of it."""
T = TypeVar("T")
Shown = TypeVar("Shown")
Given = TypeVar("Given", Answer, Drawn)
Key = tuple[str, Prompt]
"""A prompt's id and text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """One policy's greedy answer, cut to a readable length."""

    answer: Answer
    shown: str
    hidden: int
    """Characters that were cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAnswer:
    """One policy's sampled answer, cut likewise, and in words what was measured of it."""

    drawn: Drawn
    told: str
    shown: str
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One held-out prompt with every policy's answers to it."""

    prompt_id: str
    family: str
    prompt: Prompt
    answers: tuple[SampleAnswer, ...]
    drawn: tuple[DrawnAnswer, ...]


def samples(run: Run, limit: int = SAMPLE_PROMPTS) -> list[Sample]:
    """The first prompts of every family in turn. Chosen by position, never by how the answers turned out."""
    greedy, drawn = _by_prompt(run.answers), _by_prompt(run.drawn)
    # Where nothing was answered greedily, the sampled answers are still there to read.
    by_family: dict[str, list[Key]] = {}
    for key, given in (greedy or drawn).items():
        by_family.setdefault(getattr(next(iter(given.values())), "family", ""), []).append(key)
    chosen = set(_in_turn(list(by_family.values()))[:limit])
    answered = [*(one.policy for one in run.answers), *(one.policy for one in run.drawn)]
    policies = list(dict.fromkeys([*run.policies, *answered]))
    return [
        Sample(
            prompt_id=key[0],
            family=family,
            prompt=key[1],
            answers=_each(_greedy, greedy.get(key, {}), policies),
            drawn=_each(partial(_sampled, run.reference), drawn.get(key, {}), policies),
        )
        for family, keys in by_family.items()
        for key in keys
        if key in chosen
    ]


def _by_prompt(answers: tuple[Given, ...]) -> dict[Key, dict[str, Given]]:
    """Answers by prompt and policy, prompts in the order of the file."""
    found: dict[Key, dict[str, Given]] = {}
    for one in answers:
        found.setdefault((one.prompt_id, one.prompt), {})[one.policy] = one
    return found


def _in_turn(groups: list[list[Key]]) -> list[Key]:
    """First of each group, then second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def _each(show: Callable[[T], Shown], given: Mapping[str, T], policies: list[str]) -> tuple[Shown, ...]:
    return tuple(show(given[policy]) for policy in policies if policy in given)


def _greedy(answer: Answer) -> SampleAnswer:
    hidden = max(0, len(answer.response) - RESPONSE_CHARACTERS)
    return SampleAnswer(answer=answer, shown=answer.response[:RESPONSE_CHARACTERS], hidden=hidden)


def _sampled(reference: str, drawn: Drawn) -> DrawnAnswer:
    """With its figures: `score 0.41, held-out score -0.20, 3.1 nats from sft`."""
    scores = ((measure_named(name), getattr(drawn, name)) for name in ("score", "score_heldout"))
    told = [f"{measure.short} {figures(measure, value)[0]}" for measure, value in scores if value is not None]
    if drawn.kl is not None and drawn.policy != reference:
        told.append(f"{drawn.kl:.1f} nats from {reference or 'the reference'}")
    hidden = max(0, len(drawn.response) - RESPONSE_CHARACTERS)
    return DrawnAnswer(drawn=drawn, told=", ".join(told), shown=drawn.response[:RESPONSE_CHARACTERS], hidden=hidden)
