"""People's votes: a JSONL of `{prompt, answer_a, answer_b, choice, who, when}`, turned into the figures of a judge.

Which policies stood behind the two answers is found by their texts among a run's answers; a vote on answers that
several policies gave counts for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.judging.win_rate import by_prompt, win_figures
from pipeline.errors import DataError

CHOICES: Mapping[str, float] = {"a": 0.0, "b": 1.0, "tie": 0.5}
"""Share of answer_b in what was chosen."""
_FIELDS = ("prompt", "answer_a", "answer_b", "choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's choice between two answers."""

    prompt: str
    answer_a: str
    answer_b: str
    choice: str
    who: str
    when: datetime | None
    """None where the line does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VotedPair:
    """What the votes say of two policies; the figures are those of B against A."""

    a: str
    b: str
    votes: int
    voters: int
    figures: Mapping[str, Any]


def read_votes(path: Path) -> list[Vote]:
    """Read a file of votes. Who votes twice on the same two answers counts with the later vote.

    Later is what `when` says; of votes that do not both say it, or were cast at one time, the one further down.

    Raises:
        DataError: no such file, or a line that is no vote; the sentence names it.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of votes")
    found: dict[tuple[str, ...], Vote] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            vote = _vote(line, f"{path}:{number}")
            # The same two answers the other way round are the same question.
            key = (vote.prompt, *sorted((vote.answer_a, vote.answer_b)), vote.who or f"line {number}")
            before = found.pop(key, None)
            found[key] = vote if before is None or not _earlier(vote, before) else before
    return list(found.values())


def voted_pairs(
    votes: Sequence[Vote], answers: Mapping[str, Mapping[str, Sequence[str]]]
) -> tuple[list[VotedPair], int]:
    """Figures for every two policies that were voted on, over prompts, voters of one prompt averaged.

    Args:
        votes: by `read_votes`.
        answers: policy to prompt to its answers: several where prompts of one text differ in something else, such as
            their tools, in one order for all policies.

    Returns:
        The pairs, in the policies' order, and how many votes are on answers that no policy gave.
    """
    pairs = []
    used: set[int] = set()
    for a, b in combinations(answers, 2):
        cast = {at: found for at, vote in enumerate(votes) if (found := _cast(vote, answers[a], answers[b]))}
        used.update(cast)
        if not cast:
            continue
        shares = by_prompt(cast.values())
        lengths = [
            (share, len(answers[a][prompt][place]), len(answers[b][prompt][place]))
            for (prompt, place), share in shares.items()
        ]
        voters = len({votes[at].who for at in cast})
        pairs.append(VotedPair(a=a, b=b, votes=len(cast), voters=voters, figures=win_figures(lengths)))
    return pairs, len(votes) - len(used)


def _cast(
    vote: Vote, a: Mapping[str, Sequence[str]], b: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, int], float] | None:
    """Which of the prompts of its text a vote is on, and B's share in it; None if on none of these two's answers."""
    shown = (vote.answer_a.strip(), vote.answer_b.strip())
    for place, given in enumerate(zip(a.get(vote.prompt, ()), b.get(vote.prompt, ()), strict=False)):
        answers = (given[0].strip(), given[1].strip())
        if shown == answers:
            return (vote.prompt, place), CHOICES[vote.choice]
        if shown == answers[::-1]:
            return (vote.prompt, place), 1 - CHOICES[vote.choice]
    return None


def _earlier(vote: Vote, other: Vote) -> bool:
    return vote.when is not None and other.when is not None and vote.when < other.when


def _vote(line: str, where: str) -> Vote:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON; expected one vote per line") from error
    lacking = [name for name in _FIELDS if not isinstance(row.get(name), str)] if isinstance(row, dict) else [*_FIELDS]
    if lacking:
        raise DataError(f"{where}: lacks {', '.join(lacking)}; a vote has {', '.join(_FIELDS)}, who and when")
    if row["choice"] not in CHOICES:
        raise DataError(f"{where}: choice is '{row['choice']}'; expected one of {', '.join(CHOICES)}")
    who, when = (str(row.get(name) or "") for name in ("who", "when"))
    return Vote(**{name: row[name] for name in _FIELDS}, who=who, when=_time(when, where) if when else None)


def _time(when: str, where: str) -> datetime:
    try:
        found = datetime.fromisoformat(when)
    except ValueError as error:
        raise DataError(
            f"{where}: when is '{when[:40]}'; expected a date or a time such as 2026-11-22T14:03:00Z, or nothing"
        ) from error
    # Without a zone one and the same is meant for all: which one does not change who was later.
    return found if found.tzinfo else found.replace(tzinfo=UTC)
