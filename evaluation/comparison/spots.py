"""A policy prompt by prompt, as `evaluation.frontier` takes it; prompts have the same places in every compared run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evaluation.comparison.load import ComparedRun
from evaluation.frontier import Array, Spot


def spot_of(compared: ComparedRun, policy: str, metric: str) -> Spot | None:
    """A policy's divergence and value on every prompt; None where its evaluation left none of either.

    Args:
        compared: its run.
        policy: its name there.
        metric: `score` or `score_heldout` of the sampled answers, or `rule_accuracy` of the greedy ones.
    """
    return _spot(compared, _sampled(compared, policy, "kl"), _by_prompt(compared, policy, metric))


def values_of(compared: ComparedRun, policy: str, metric: str) -> Array | None:
    """A policy's value on every prompt, NaN where it was not measured; None where nowhere. Arguments as `spot_of`."""
    values = _by_prompt(compared, policy, metric)
    found = np.array(_vector([values.get(prompt) for prompt in _prompts(compared)]), float)
    return found if np.isfinite(found).any() else None


def best_spot(compared: ComparedRun, n: int, kl: float) -> Spot | None:
    """The best of n answers of the reference on every prompt, each at the bound of its KL."""
    scores = compared.best_of_n.get(n, {})
    return _spot(compared, dict.fromkeys(scores, kl), dict(scores))


def _by_prompt(compared: ComparedRun, policy: str, metric: str) -> dict[str, float | None]:
    if metric != "rule_accuracy":
        return _sampled(compared, policy, metric)
    greedy = [answer for answer in compared.run.answers if answer.policy == policy]
    return {one.prompt_id: None if one.correct is None else float(one.correct) for one in greedy}


def _sampled(compared: ComparedRun, policy: str, figure: str) -> dict[str, float | None]:
    return {row.prompt_id: row.figures.get(figure) for row in compared.sampled if row.policy == policy}


def _spot(compared: ComparedRun, kl: dict[str, float | None], value: dict[str, float | None]) -> Spot | None:
    prompts = _prompts(compared)
    kl_P, value_P = (_vector([figures.get(prompt) for prompt in prompts]) for figures in (kl, value))
    found = np.isfinite(kl_P).any() and np.isfinite(value_P).any()
    return Spot.of(kl_P, value_P) if found else None


def _vector(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _prompts(compared: ComparedRun) -> list[str]:
    """The places of all prompts that any policy answered: greedy ones first, of which the sampled are the beginning."""
    ids = [*(answer.prompt_id for answer in compared.run.answers), *(row.prompt_id for row in compared.sampled)]
    return list(dict.fromkeys(ids))
