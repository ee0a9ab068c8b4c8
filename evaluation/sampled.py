"""What is measured on sampled answers: divergence from the reference, and the score of a reward model.

Answers are drawn at temperature 1 from the whole distribution, once per policy and with the same noise for each, so
that policies are compared on the same prompts with as little chance between them as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evaluation.intervals import bootstrap_mean_ci
from evaluation.likelihood import Row, Scorer
from evaluation.policies import Policies
from pipeline.algorithms.kl import k1
from pipeline.rollouts.answers import Progress, Sampling
from pipeline.rollouts.generate import Generator

SAMPLING_SEED = 0
"""Answers are drawn alike in every run."""
Ids = Sequence[int]


def draw(generator: Generator, prompts: Sequence[Ids], max_new_tokens: int, progress: Progress) -> list[list[int]]:
    """Token ids of one sampled answer per prompt, in the prompts' order."""
    sampling = Sampling(max_new_tokens, temperature=1.0, seed=SAMPLING_SEED)
    return [answer.ids for answer in generator.answers(prompts, sampling, progress)]


def answer_rows(prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[Row]:
    """Each prompt with its answer, and which of the tokens are the answer's."""
    return [
        ([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def kl_row(
    policies: Policies, name: str, reference: str, rows: Sequence[Row], scorer: Callable[[Any], Scorer]
) -> dict[str, Any]:
    """KL(policy || reference) in nats per response: the mean of log pi(y|x) - log ref(y|x) over the policy's answers.

    Both score them in the same batches, so that a policy equal to its reference has exactly 0.
    """
    with policies.use(name) as model:
        logps = [row.logp for row in scorer(model).score(rows)]
    with policies.use(reference) as model:
        ref_logps = [row.logp for row in scorer(model).score(rows)]
    found = bootstrap_mean_ci(k1(torch.tensor(logps), torch.tensor(ref_logps)).tolist())
    return {"kl_to_reference": found.estimate, "kl_ci95": found.bounds}


def score_row(found: Sequence[float]) -> dict[str, Any]:
    """Mean score of a policy's answers with its interval."""
    mean = bootstrap_mean_ci(found)
    return {"score": mean.estimate, "score_ci95": mean.bounds, "score_n": mean.n} if found else {}
