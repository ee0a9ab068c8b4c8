"""Answers as text: evaluation's greedy and sampled ones, and those of a PPO stage's rollouts. All are untrusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report import files

Prompt = tuple[tuple[str, str], ...]
"""Role and content of each turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One policy's greedy answer to one held-out prompt. `correct` is None where no rule can judge."""

    prompt_id: str
    policy: str
    family: str
    prompt: Prompt
    response: str
    correct: bool | None
    tokens: int | None
    eos: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One policy's sampled answer to one held-out prompt, with what was measured of it; None where it was not."""

    prompt_id: str
    policy: str
    prompt: Prompt
    response: str
    score: float | None
    score_heldout: float | None
    kl: float | None
    """log pi - log ref, in nats: its mean over answers estimates the divergence."""
    tokens: int | None
    eos: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """An answer sampled while PPO trained, with what it scored and its distance from the reference."""

    rollout: int
    prompt: Prompt
    response: str
    score: float | None
    kl: float | None
    tokens: int | None
    eos: bool | None


def answers_in(folder: Path, gaps: list[str], shown: str) -> tuple[Answer, ...]:
    """The answers that the evaluation in `folder` left; what cannot be read is noted in `gaps`."""
    lines = files.read_jsonl(folder / "answers.jsonl", gaps, f"{shown}/answers.jsonl")
    return tuple(_answer(line) for line in lines if line.get("policy") is not None)


def drawn_in(folder: Path, shown: str) -> tuple[Drawn, ...]:
    """The sampled answers that the evaluation in `folder` left; none where nothing was to be measured of them."""
    lines = files.read_jsonl(folder / "sampled.jsonl", [], f"{shown}/sampled.jsonl")
    return tuple(_drawn(line) for line in lines if line.get("policy") is not None)


def rollouts_in(folder: Path, gaps: list[str], shown: str) -> tuple[Rollout, ...]:
    """The samples that the PPO stage in `folder` left, in the order they were drawn."""
    lines = files.read_jsonl(folder / "rollouts.jsonl", gaps, f"{shown}/rollouts.jsonl")
    return tuple(found for line in lines if (found := _rollout(line)))


def _answer(line: Mapping[str, Any]) -> Answer:
    return Answer(
        prompt_id=files.text(line.get("prompt_id")),
        policy=files.text(line.get("policy")),
        family=files.text(line.get("family")),
        prompt=_turns(line.get("prompt")),
        response=files.text(line.get("response")),
        correct=_flag(line.get("correct")),
        tokens=files.whole(line.get("tokens")),
        eos=_flag(line.get("eos")),
    )


def _drawn(line: Mapping[str, Any]) -> Drawn:
    return Drawn(
        prompt_id=files.text(line.get("prompt_id")),
        policy=files.text(line.get("policy")),
        prompt=_turns(line.get("prompt")),
        response=files.text(line.get("response")),
        score=files.number(line.get("score")),
        score_heldout=files.number(line.get("score_heldout")),
        kl=files.number(line.get("kl")),
        tokens=files.whole(line.get("tokens")),
        eos=_flag(line.get("eos")),
    )


def _rollout(line: Mapping[str, Any]) -> Rollout | None:
    number = files.whole(line.get("rollout"))
    if number is None:
        return None
    return Rollout(
        rollout=number,
        prompt=_turns(line.get("prompt")),
        response=files.text(line.get("response")),
        score=files.number(line.get("score")),
        kl=files.number(line.get("kl")),
        tokens=files.whole(line.get("tokens")),
        eos=_flag(line.get("eos")),
    )


def _turns(value: object) -> Prompt:
    if isinstance(value, str):
        return (("user", value),)
    return tuple((files.text(turn.get("role")), files.text(turn.get("content"))) for turn in files.objects(value))


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
