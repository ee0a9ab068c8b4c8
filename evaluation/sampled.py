"""What is measured on sampled answers: divergence from the reference, and the score of a reward model.

Answers are drawn at temperature 1 from the whole distribution, once per policy and with the same noise for each, so
that policies are compared on the same prompts with as little chance between them as possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from data_prep.chat import ChatFormatter
from data_prep.records import Prompt
from evaluation.intervals import bootstrap_mean_ci
from evaluation.likelihood import Row
from pipeline.algorithms.kl import k1
from pipeline.rollouts.answers import Progress, Sampling
from pipeline.rollouts.generate import Generator

SAMPLING_SEED = 0
"""Answers are drawn alike in every run."""
Ids = Sequence[int]


def draw(
    generator: Generator, prompts: Sequence[Ids], max_new_tokens: int, progress: Progress, seed: int = SAMPLING_SEED
) -> list[list[int]]:
    """Token ids of one sampled answer per prompt, in the prompts' order; another seed draws others."""
    sampling = Sampling(max_new_tokens, temperature=1.0, seed=seed)
    return [answer.ids for answer in generator.answers(prompts, sampling, progress)]


def answer_rows(prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[Row]:
    """Each prompt with its answer, and which of the tokens are the answer's."""
    return [
        ([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def divergences(logps: Sequence[float], ref_logps: Sequence[float]) -> list[float]:
    """log pi(y|x) - log ref(y|x) of each of a policy's own answers, in nats: their mean estimates KL(pi || ref).

    Both must have scored them in the same batches, so that a policy equal to its reference has exactly 0.
    """
    found: list[float] = k1(torch.tensor(logps), torch.tensor(ref_logps)).tolist()
    return found


def kl_row(found: Sequence[float]) -> dict[str, Any]:
    """KL(policy || reference) in nats per response, with its interval, from `divergences`."""
    mean = bootstrap_mean_ci(found)
    return {"kl_to_reference": mean.estimate, "kl_ci95": mean.bounds}


def score_row(found: Sequence[float], figure: str = "score") -> dict[str, Any]:
    """Mean score of a policy's answers with its interval, under the figure's name."""
    mean = bootstrap_mean_ci(found)
    return {figure: mean.estimate, f"{figure}_ci95": mean.bounds, f"{figure}_n": mean.n} if found else {}


def sample_lines(
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Ids]],
    measured: Mapping[str, Mapping[str, Sequence[float]]],
    formatter: ChatFormatter,
) -> list[dict[str, Any]]:
    """The lines of `sampled.jsonl`: what each figure of a policy's sampled answers was, prompt by prompt.

    Args:
        prompts: that were answered.
        answers: token ids by policy, one answer per prompt.
        measured: figure (`kl`, `score`, `logp`: the policy's own) to policy to one number per prompt; null in the line
            where it was not measured.
        formatter: turns ids into text.
    """
    return [
        {
            "prompt_id": index,
            "policy": name,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in prompt.messages],
            "response": formatter.response_text(found[index]),
            "tokens": len(found[index]),
            "eos": bool(found[index]) and found[index][-1] in formatter.stop_ids,
            "ids": list(found[index]),
            **{figure: values[name][index] if name in values else None for figure, values in measured.items()},
        }
        for index, prompt in enumerate(prompts)
        for name, found in answers.items()
    ]
