"""The single measurements: each takes a policy and held-out material and gives some columns of its row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.checks import passes
from data_prep.records import Prompt
from evaluation.generate import Answer, Generator, Progress, Sampling
from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci, preference_accuracy
from evaluation.likelihood import Row, Scorer, demonstration_rows, mean_loss
from evaluation.policies import Policies
from pipeline.algorithms.kl import k1
from pipeline.context import HELD_OUT_PAIRS

COLUMNS = (
    "rule_accuracy", "rule_n", "rule_ci95", "score", "score_heldout", "kl_to_reference", "kl_ci95", "response_tokens",
    "eos_rate", "perplexity", "perplexity_n", "preference_accuracy", "preference_ci95", "preference_n",
    "preference_margin", "win_rate",
)  # fmt: skip
SAMPLING_SEED = 0
"""Answers for the KL estimate are drawn alike in every run."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A greedy answer and what the prompt's rule says of it."""

    text: str
    correct: bool | None
    """None when the prompt has no rule."""
    tokens: int
    stopped: bool

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
    correct = [float(answer.correct) for answer in answers if answer.correct is not None]
    row: dict[str, Any] = {
        "response_tokens": sum(answer.tokens for answer in answers) / len(answers),
        "eos_rate": sum(answer.stopped for answer in answers) / len(answers),
    }
    if correct:
        found = bootstrap_mean_ci(correct)
        row.update(rule_accuracy=found.estimate, rule_n=found.n, rule_ci95=found.bounds)
    return row


def rule_comparison(
    start: str, before: Sequence[Answered], name: str, after: Sequence[Answered]
) -> dict[str, Any] | None:
    """Difference in rule accuracy on the same prompts, with a paired interval."""
    pairs = [
        (float(a.correct), float(b.correct))
        for a, b in zip(before, after, strict=True)
        if a.correct is not None and b.correct is not None
    ]
    if not pairs:
        return None
    found = paired_bootstrap_ci([a for a, _ in pairs], [b for _, b in pairs])
    return {
        "metric": "rule_accuracy",
        "from": start,
        "to": name,
        "difference": found.estimate,
        "ci95": found.bounds,
        "n": found.n,
    }


def rule_families(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> dict[str, dict[str, int]]:
    """Answers right and in all, by task family."""
    count: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt.origin.family is not None and answer.correct is not None:
            count[prompt.origin.family] += 1
            right[prompt.origin.family] += answer.correct
    return {family: {"n": count[family], "correct": right[family]} for family in sorted(count)}


def perplexity_row(scorer: Scorer, rows: Sequence[EncodedDemonstration], progress: Progress) -> dict[str, Any]:
    """exp of the mean loss per response token on held-out demonstrations."""
    loss = mean_loss(scorer.score(demonstration_rows(rows), progress))
    return {"perplexity": math.exp(loss), "perplexity_n": len(rows)}


def kl_row(
    policies: Policies,
    name: str,
    reference: str,
    prompts: Sequence[list[int]],
    generator: Callable[[Any], Generator],
    scorer: Callable[[Any], Scorer],
    max_new_tokens: int,
    progress: Progress,
) -> dict[str, Any]:
    """KL(policy || reference) in nats per response: the mean of log pi(y|x) - log ref(y|x) over sampled answers.

    Answers are drawn at temperature 1 from the whole distribution and scored by both policies in the same batches.
    """
    sampling = Sampling(max_new_tokens, temperature=1.0, seed=SAMPLING_SEED)
    with policies.use(name) as model:
        answers = generator(model).answers(prompts, sampling, progress)
        rows = [_answer_row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        logps = [row.logp for row in scorer(model).score(rows)]
    with policies.use(reference) as model:
        ref_logps = [row.logp for row in scorer(model).score(rows)]
    found = bootstrap_mean_ci(k1(torch.tensor(logps), torch.tensor(ref_logps)).tolist())
    return {"kl_to_reference": found.estimate, "kl_ci95": found.bounds}


def preference_row(artefact: Path) -> dict[str, Any]:
    """Implicit-reward accuracy on held-out pairs, as the policy's own stage measured and left it."""
    path = artefact / HELD_OUT_PAIRS
    if not path.is_file():
        return {}
    margins = [json.loads(line)["margin"] for line in path.read_text(encoding="utf-8").splitlines()]
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


def _answer_row(prompt: list[int], answer: Answer) -> Row:
    return [*prompt, *answer.ids], [False] * len(prompt) + [True] * len(answer.ids)
