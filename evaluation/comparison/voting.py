"""What people voted on the answers of the compared policies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.rows import PolicyRow
from evaluation.judging.votes import VotedPair, read_votes, voted_pairs
from evaluation.report.answers import Prompt
from evaluation.report.measures import LEAST_PROMPTS, alike, measure_named
from evaluation.report.words import Sentence


def voted_on(
    runs: Sequence[ComparedRun], rows: Sequence[PolicyRow], path: Path | None
) -> tuple[list[VotedPair], list[str]]:
    """Figures of every two policies that the votes are on, and a note on votes that belong to none of them.

    A vote's `prompt` is the conversation as text: one turn as it is, several with their roles.
    """
    if path is None:
        return [], []
    by_run = {compared.label: compared for compared in runs}
    answers: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        own = answers.setdefault(row.name, {})
        for one in by_run[row.runs[0]].run.answers:
            if one.policy == row.policy:
                own.setdefault(_text(one.prompt), []).append(one.response)
    pairs, unknown = voted_pairs(read_votes(path), answers)
    votes = "vote is" if unknown == 1 else "votes are"
    return pairs, [f"{unknown} {votes} on answers that none of these policies gave."] if unknown else []


def vote_sentence(pair: VotedPair) -> Sentence:
    """What the votes say of two policies, never more than their interval allows."""
    measure = measure_named("win_rate")
    bounds = pair.figures["win_rate_ci95"]
    size, low, high = alike(measure, [pair.figures["win_rate"], *bounds])
    voters = "1 person" if pair.voters == 1 else f"{pair.voters} people"
    over = f"{size} % of {pair.figures['win_rate_n']} prompts [{low}, {high}], ties as halves, {voters}"
    if bounds[0] <= 0.5 <= bounds[1] or pair.figures["win_rate_n"] < LEAST_PROMPTS:
        text = f"Votes: no preference shown between {pair.a} and {pair.b} ({pair.b} wins {over})."
        return Sentence(text=text, tone="none")
    ahead = f"{pair.b} is preferred to {pair.a}" if bounds[0] > 0.5 else f"{pair.a} is preferred to {pair.b}"
    return Sentence(text=f"Votes: {ahead} ({pair.b} wins {over}).", tone="better")


def _text(prompt: Prompt) -> str:
    if len(prompt) == 1:
        return prompt[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in prompt)
