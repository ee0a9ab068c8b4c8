"""The single measurements that need one policy alone: each gives some columns of its row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.checks import passes
from data_prep.records import Prompt
from evaluation.intervals import SHARE, bootstrap_mean_ci, preference_accuracy
from evaluation.likelihood import Likelihood, Scorer, demonstration_rows, mean_loss
from evaluation.text_measures import refusal_rate
from pipeline.context import HELD_OUT_PAIRS
from pipeline.durable import json_lines
from pipeline.rollouts.answers import Answer, Progress, Sampling
from pipeline.rollouts.generate import Generator

COLUMNS = (
    "rule_accuracy", "rule_n", "rule_ci95", "score", "score_n", "score_ci95", "score_heldout", "score_heldout_n",
    "score_heldout_ci95", "kl_to_reference", "kl_ci95", "response_tokens", "eos_rate", "perplexity", "perplexity_n",
    "preference_accuracy", "preference_ci95", "preference_n", "preference_margin", "win_rate", "win_rate_ci95",
    "win_rate_n", "win_rate_agreed", "win_rate_agreed_ci95", "win_rate_agreed_n", "distinct_1", "distinct_2",
    "repetition", "entropy", "refusal_rate", "bleu", "chrf", "rouge_l", "overlap_n",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer and what the prompt's rule says of it."""

    text: str
    correct: bool | None
    """None when the prompt has no rule."""
    tokens: int
    stopped: bool

    @property
    def right(self) -> float | None:
        """1 or 0."""
        return None if self.correct is None else float(self.correct)

    def as_list(self) -> list[Any]:
        """For JSON."""
        return [self.text, self.correct, self.tokens, self.stopped]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Answered:
        """What `as_list` gave."""
        return cls(*values)


def base_row() -> dict[str, Any]:
    """A policy's row with nothing measured yet: every run has the same columns."""
    return dict.fromkeys(COLUMNS)


def answer_all(
    generator: Generator,
    prompts: Sequence[tuple[Prompt, list[int]]],
    max_new_tokens: int,
    formatter: ChatFormatter,
    progress: Progress,
) -> list[Answered]:
    """Greedy answers to all prompts, scored by rule where there is one."""
    found = generator.answers([ids for _, ids in prompts], Sampling(max_new_tokens), progress)
    return [_scored(prompt, answer, formatter) for (prompt, _), answer in zip(prompts, found, strict=True)]


def rule_row(answers: Sequence[Answered]) -> dict[str, Any]:
    """Rule-checked accuracy with its interval; length and stopping of the greedy answers."""
    if not answers:
        return {}
    correct = [answer.right for answer in answers if answer.right is not None]
    row: dict[str, Any] = {
        "response_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "eos_rate": sum(answer.stopped for answer in answers) / len(answers),
        "refusal_rate": refusal_rate([answer.text for answer in answers]),
    }
    if correct:
        found = bootstrap_mean_ci(correct, within=SHARE)
        row.update(rule_accuracy=found.estimate, rule_n=found.n, rule_ci95=found.bounds)
    return row


def rule_families(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> dict[str, dict[str, int]]:
    """Answers right and in all, by task family."""
    count: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt.origin.family is not None and answer.correct is not None:
            count[prompt.origin.family] += 1
            right[prompt.origin.family] += answer.correct
    return {family: {"n": count[family], "correct": right[family]} for family in sorted(count)}


def answer_lines(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answered]]) -> list[dict[str, Any]]:
    """The lines of `answers.jsonl`: prompt by prompt, each policy's answer below the other's."""
    return [
        {
            "prompt_id": index,
            "policy": name,
            "family": prompt.origin.family,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
            "response": found[index].text,
            "check": prompt.check,
            "correct": found[index].correct,
            "tokens": found[index].tokens,
            "eos": found[index].stopped,
        }
        for index, prompt in enumerate(prompts)
        for name, found in answers.items()
    ]


def likelihoods(scorer: Scorer, rows: Sequence[EncodedDemonstration], progress: Progress) -> list[Likelihood]:
    """Log-probability of each held-out demonstration's answer, and its tokens."""
    return scorer.score(demonstration_rows(rows), progress)


def perplexity_of(found: Sequence[Likelihood]) -> dict[str, Any]:
    """exp of the mean loss per response token over all rows together."""
    return {"perplexity": math.exp(mean_loss(found)), "perplexity_n": len(found)}


def perplexity_lines(found: Mapping[str, Sequence[Likelihood]]) -> list[dict[str, Any]]:
    """The lines of `perplexity.jsonl`: held-out row by row, each policy's log-probability below the other's."""
    rows = max(map(len, found.values()), default=0)
    return [
        {"row_id": index, "policy": name, "logp": given[index].logp, "tokens": given[index].tokens}
        for index in range(rows)
        for name, given in found.items()
        if given
    ]


def preference_row(artefact: Path) -> dict[str, Any]:
    """Implicit-reward accuracy on held-out pairs, as the policy's own stage measured and left it."""
    path = artefact / HELD_OUT_PAIRS
    if not path.is_file():
        return {}
    margins = [json.loads(line)["margin"] for line in json_lines(path)]
    if not margins:
        return {}
    accuracy, interval = preference_accuracy(margins)
    return {
        "preference_accuracy": accuracy,
        "preference_ci95": interval.bounds,
        "preference_n": interval.n,
        "preference_margin": sum(margins) / len(margins),
    }


def _scored(prompt: Prompt, answer: Answer, formatter: ChatFormatter) -> Answered:
    text = formatter.response_text(answer.ids)
    correct = None if prompt.check is None else passes(prompt.check, text)
    return Answered(text, correct, len(answer.ids), answer.stopped)
